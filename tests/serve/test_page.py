"""The page in a real Chromium, as people use it: by mouse and keys, with a microphone that plays a file."""

import base64
import io
import json
import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import uvicorn

from .browser import CHROMIUM, Browser
from .conftest import MINIATURE
from .page_server import KEY, create_app

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="chromium is not here (apt-get install chromium): the page is not tried"),
]
SAMPLES = MINIATURE / "samples"
SPOKEN, RATE_HZ = soundfile.read(SAMPLES / "digits.wav", dtype="float32")
# What goes to the loudspeaker, every 10 ms, and what goes over sockets, each with its time.
PROBE = """
window.heard = []; window.events = [];
const connect = AudioNode.prototype.connect;
AudioNode.prototype.connect = function (target, ...rest) {
  if (!(target instanceof AudioDestinationNode)) return connect.call(this, target, ...rest);
  const tap = new AnalyserNode(this.context, { fftSize: 256 }), wave = new Float32Array(256);
  setInterval(() => { tap.getFloatTimeDomainData(wave); heard.push([performance.now(), Math.max(...wave.map(Math.abs))]); }, 10);
  connect.call(this, tap);
  return connect.call(tap, target);
};
const note = (side, text) => {
  const { audio, delta, ...rest } = JSON.parse(text);
  events.push({ side, at: performance.now(), ...rest });
};
window.WebSocket = class extends WebSocket {
  constructor(...given) { super(...given); this.addEventListener("message", ({ data }) => note("server", data)); }
  send(text) { note("page", text); super.send(text); }
};
"""
STATE = "document.querySelector('#call').dataset.state"
DONE = "document.querySelector('.turn.answer:last-child:not(.busy)')"
ANSWER = "document.querySelector('.turn.answer:last-child .body')?.innerText"


def microphone(folder: Path, *pieces) -> str:
    """The flag for a microphone that hears pieces: sound, or seconds of silence; then again from the start."""
    parts = [np.zeros(int(piece * RATE_HZ), "float32") if isinstance(piece, (int, float)) else piece for piece in pieces]
    soundfile.write(folder / "microphone.wav", np.concatenate(parts), RATE_HZ, subtype="PCM_16")
    return f"--use-file-for-fake-audio-capture={folder / 'microphone.wav'}"


@pytest.fixture(scope="module")
def standin():
    """A server without a model, in this process: `app.state` has what it was asked."""
    app = create_app()
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    app.state.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    yield app.state
    server.should_exit = server.force_exit = True
    thread.join(30)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Its microphone: a second of silence, three digits, five seconds of silence, and so on."""
    folder = tmp_path_factory.mktemp("browser")
    browser = Browser(folder / "profile", microphone(folder, 1.0, SPOKEN, 5.0))
    yield browser
    browser.close()


@pytest.fixture
def open_page(browser, standin):
    """Pages whose problems are the test's."""
    pages = []

    def make(url=standin.url, **look):
        pages.append(browser.open(url, script=PROBE, **look))
        return pages[-1]

    standin.asked.clear(), standin.events.clear(), standin.protocols.clear()
    yield make
    for page in pages:
        page.js("heard.length")  # what was said until now is read with it
        assert not page.problems
        page.close()


def ask(page, text, wait=DONE):
    page.click("#prompt")
    page.type(text)
    page.key("Enter")
    return page.wait(wait)


def text_of(page, selector):
    return page.js(f"document.querySelector({json.dumps(selector)}).innerText")


def test_pictures_text_reasoning_and_figures(open_page, standin):
    page = open_page()
    page.drop("main", SAMPLES / "star.jpg", SAMPLES / "digits.flac", SAMPLES / "moving.mp4", MINIATURE / "config.json")
    assert "config.json is neither" in page.wait("document.querySelector('.toast')?.innerText")
    page.wait("document.querySelectorAll('#attached li').length == 3 && document.querySelector('#drop').hidden")
    ask(page, "What do you see? think")
    (body,) = standin.asked
    assert body["modalities"] == ["text", "audio"] and body["audio"] == {"voice": "Ethan", "format": "pcm16"}
    assert body["stream"] and body["stream_options"] == {"include_usage": True} and body["use_audio_in_video"] is True
    assert "temperature" not in body and "seed" not in body  # left to the server
    image, sound, video, words = body["messages"][0]["content"]
    picture = base64.b64encode((SAMPLES / "star.jpg").read_bytes()).decode()
    assert image == {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{picture}"}}
    assert sound["input_audio"]["format"] == "flac" and video["video_url"]["url"].startswith("data:video/mp4;base64,")
    assert words == {"type": "text", "text": "What do you see? think"}

    assert text_of(page, ".turn.answer pre") == "print('<b>star</b>')"  # not as HTML
    assert "Five points" not in text_of(page, ".turn.answer")
    page.click(".thoughts summary")
    assert "Five points, so a star." in text_of(page, ".turn.answer")
    figures = text_of(page, ".turn.answer .meters")
    assert re.search(
        r"first token\s+0\.\d\d s\s+first sound\s+0\.\d\d s\s+real-time factor\s+0\.\d\d\s+tokens\s+12", figures
    )

    ask(page, "And again?")
    assert [one["role"] for one in standin.asked[1]["messages"]] == ["user", "assistant", "user"]
    assert standin.asked[1]["messages"][1]["content"].startswith("It is an orange star.")


def test_sound_is_played_as_it_comes_again_and_saved(open_page, tmp_path):
    page = open_page()
    ask(page, "Hello")
    page.wait("heard.some(([, level]) => level > 0.05)", 5)
    page.wait("heard.slice(-20).every(([, level]) => level == 0)", 20)
    loud = [at for at, level in page.js("heard") if level > 0.01]
    assert (
        1800 < loud[-1] - loud[0] < 4000
    )  # it lasts 2.1 s; that nothing is missing between its chunks is tested under node
    page.js("heard.length = 0")
    page.click(".sound button")
    page.wait("heard.some(([, level]) => level > 0.05)", 5)
    page.browser.call(
        "Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path), browserContextId=page.context
    )
    page.click(".sound button[aria-label='Save as WAV']")
    file = tmp_path / "audio_1.wav"
    page.wait_for(file.exists)
    assert soundfile.info(file).samplerate == 24000 and soundfile.info(file).duration == pytest.approx(2.1)


def test_settings_reach_the_server_and_the_key_is_not_kept_unasked(open_page, standin):
    page = open_page()
    page.click("#open-settings")
    values = {
        "system": "Be brief.",
        "temperature": "0.5",
        "topP": "0.9",
        "topK": "5",
        "maxTokens": "64",
        "seed": "7",
        "key": KEY,
    }
    values |= {"modalities": "text", "voice": "Chelsie", "tools": '[{"type": "function", "function": {"name": "weather"}}]'}
    for name, value in values.items():
        field = f"document.querySelector('#settings [name={name}]')"
        page.js(f"{field}.value = {json.dumps(value)}; {field}.dispatchEvent(new Event('change', {{bubbles: true}}))")
    page.key("Escape")
    ask(page, "With the key, how is the weather?")
    body = standin.asked[0]
    wanted = {"temperature": 0.5, "top_p": 0.9, "top_k": 5, "max_completion_tokens": 64, "seed": 7, "modalities": ["text"]}
    assert {name: body[name] for name in wanted} == wanted and "audio" not in body
    assert (
        body["messages"][0] == {"role": "system", "content": "Be brief."}
        and body["tools"][0]["function"]["name"] == "weather"
    )
    kept = json.loads(page.js("localStorage.getItem('ms-omni')"))
    assert kept["seed"] == "7" and kept["key"] == ""

    assert "weather" in text_of(page, ".tool") and '"Xi\'an"' in text_of(page, ".tool pre")
    page.click(".results textarea")
    page.type("rain")
    page.click(".results button")
    page.wait("document.querySelectorAll('.turn.answer').length == 2 && " + DONE)
    assert standin.asked[1]["messages"][-1] == {"role": "tool", "tool_call_id": "call_1", "content": "rain"}
    assert standin.asked[1]["messages"][-2]["tool_calls"][0]["function"]["arguments"] == '{"city": "Xi\'an"}'


def test_failures_are_said_and_asked_again(open_page, standin):
    page = open_page()
    ask(page, "full")
    assert text_of(page, ".problem") == "All rows are taken. Try again in 3 s."
    page.click(".turn.answer button[aria-label='Ask again']")
    page.wait(f"{DONE} && document.querySelectorAll('.turn').length == 2")
    assert len(standin.asked) == 2 and len(standin.asked[1]["messages"]) == 1
    ask(page, "break")
    assert "The engine has stopped." in text_of(page, ".turn:last-child")
    ask(page, "the key")
    assert "Incorrect API key." in text_of(page, ".turn:last-child .problem")
    assert page.js("document.querySelector('#settings').open")
    page.key("Escape")
    page.click("#clear")
    assert page.js("document.querySelectorAll('.turn').length") == 0
    page.click(".toast button")
    assert page.js("document.querySelectorAll('.turn').length") == 6


def test_by_keyboard_alone(open_page, standin):
    page = open_page()
    page.js("document.querySelector('#prompt').blur()")
    page.key("Tab")
    assert page.js("document.activeElement.className") == "skip"
    page.key("Enter")
    assert page.wait("document.activeElement.id == 'prompt'")
    page.type("long")
    page.key("Enter", shift=True)
    page.type("please")
    page.key("Enter")
    page.wait("heard.some(([, level]) => level > 0.05)")
    assert standin.asked[0]["messages"][0]["content"] == "long\nplease"
    page.key("Escape")
    assert "Stopped." in page.wait(f"{DONE} && document.querySelector('.turn:last-child').innerText")
    assert page.wait("heard.slice(-10).every(([, level]) => level == 0)", 2)
    assert page.js("document.querySelector('#announcer').textContent") == "Stopped."
    seen = []
    for _ in range(16):
        page.key("Tab")
        seen.append(page.js("document.activeElement.ariaLabel || document.activeElement.innerText.trim()"))
        outline = "getComputedStyle(document.activeElement).outlineStyle"
        assert page.js(
            f"document.activeElement == document.body || document.activeElement.id == 'prompt' || {outline} != 'none'"
        )
    assert {"Attach pictures, sounds, videos", "Record your voice", "Call", "Settings", "Ask again", "Copy"} <= set(seen)


def test_a_recording_is_a_wav_of_16_khz(open_page, standin):
    page = open_page()
    page.click("#record")
    page.wait("document.querySelector('#recorded').innerText == '0:03'")
    page.click("#send")
    page.wait(DONE)
    ((part,),) = [one["messages"][0]["content"] for one in standin.asked]
    assert part["input_audio"]["format"] == "wav"
    sound, rate = soundfile.read(io.BytesIO(base64.b64decode(part["input_audio"]["data"])))
    assert rate == 16000 and 2.5 < len(sound) / rate < 5 and np.abs(sound).max() > 0.05
    assert page.js("document.querySelector('.turn.user audio').src.startsWith('blob:')")


def kinds(standin):
    return [event["type"] for event in standin.events if event["type"] != "input_audio_buffer.append"]


def test_call_interrupted_by_speech(open_page, standin):
    page = open_page()
    page.click("#start-call")
    page.wait(f"{STATE} == 'speaking'", 20)
    assert standin.protocols == [["realtime"]]
    assert standin.events[0]["session"]["audio"]["input"]["format"] == {"type": "audio/pcm", "rate": 24000}
    page.wait("document.querySelector('#transcript').innerText.includes('Three seven four')")
    standin.conversation.run_soon(standin.conversation.hear(np.full(2400, 9000, "<i2")))  # in the middle of the answer
    page.wait(f"{STATE} == 'hearing'", 5)
    page.wait("events.some(event => event.type == 'conversation.item.truncate')", 5)
    time.sleep(0.3)
    events, heard = page.js("events"), page.js("heard")
    begun = next(event["at"] for event in reversed(events) if event["type"] == "input_audio_buffer.speech_started")
    after = [level for at, level in heard if at > begun + 100]
    assert after and max(after) == 0
    (cut,) = [event for event in events if event["type"] == "conversation.item.truncate"]
    first = next(at for at, level in heard if level > 0)
    assert cut["content_index"] == 0 and abs(cut["audio_end_ms"] - (begun - first)) < 250, (cut, begun - first)
    assert "interrupted" in page.wait("document.querySelector('.transcript .cut')?.innerText")
    page.key("Escape")
    assert not page.js("document.querySelector('#call').open")


def test_push_to_talk_camera_and_a_lost_connection(open_page, standin):
    page = open_page()
    page.click("#start-call")
    page.wait(f"{STATE} == 'listening'", 20)
    page.click("#push")
    page.click("#camera")
    page.wait("document.querySelector('#view').videoWidth > 0")
    time.sleep(1.2)
    page.key(" ", ["keyDown"])
    page.wait(f"{STATE} == 'hearing'")
    time.sleep(2.5)
    page.key(" ", ["keyUp"])
    page.wait(f"{STATE} == 'speaking'", 10)
    said = kinds(standin)
    assert said[:2] == ["session.update", "session.update"]
    updates = [event["session"]["audio"]["input"] for event in standin.events if event["type"] == "session.update"]
    assert updates[0]["turn_detection"]["type"] == "server_vad" and updates[1]["turn_detection"] is None
    rest = said[2:]
    assert rest[0] == "input_audio_buffer.clear" and rest[-2:] == ["input_audio_buffer.commit", "response.create"]
    pictures = [event for event in standin.events if event["type"] == "conversation.item.create"]
    assert 2 <= len(pictures) <= 4 and rest[1:-2] == ["conversation.item.create"] * len(pictures)
    assert pictures[0]["item"]["content"][0]["image_url"].startswith("data:image/jpeg;base64,")

    page.press("#talk")
    page.wait("events.some(event => event.type == 'conversation.item.truncate')", 5)
    page.release()
    standin.conversation.run_soon(standin.conversation.socket.close(1011))
    page.wait(f"{STATE} == 'ended'")
    assert "lost" in text_of(page, "#call-note")
    page.click("#again")
    page.wait(f"{STATE} == 'listening'", 20)
    page.click("#hang-up")
    assert not page.js("document.querySelector('#call').open")


def test_chinese_dark_and_narrow(open_page):
    page = open_page(width=360, height=640, phone=True, dark=True, language="zh-CN")
    background = "getComputedStyle(document.body).backgroundColor"
    assert page.js("document.documentElement.lang") == "zh-CN" and "说给它听" in text_of(page, "#empty")
    assert page.js(background) == "rgb(20, 20, 19)"
    ask(page, "weather")
    wide = "document.documentElement.scrollWidth > innerWidth || [...document.querySelectorAll('main, dialog[open]')].some"
    wide = f"{wide}(box => box.scrollWidth > box.clientWidth)"
    assert not page.js(wide)
    for opener, closer in (("#open-settings", "Escape"), ("#start-call", "Escape")):
        page.click(opener)
        assert not page.js(wide), opener
        page.key(closer)
    page.click("#theme")
    assert page.js(background) == "rgb(251, 250, 247)"
    page.click("#language")
    assert text_of(page, "#start-call") == "Call" and page.js("document.documentElement.lang") == "en"
    page.call("Page.reload")
    page.wait("document.readyState == 'complete' && document.querySelector('#model')?.textContent")
    assert page.js(background) == "rgb(251, 250, 247)" and page.js("document.documentElement.lang") == "en"
