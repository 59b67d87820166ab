"""The page, a real server and the miniature: asked in writing, by pictures and by voice, and interrupted."""

import pytest

from .browser import Browser
from .conftest import KEY
from .test_page import ANSWER, DONE, PROBE, SAMPLES, SPOKEN, STATE, ask, microphone, pytestmark  # noqa: F401


@pytest.fixture(scope="module")
def make_browser(tmp_path_factory):
    browsers = []

    def make(*pieces):
        folder = tmp_path_factory.mktemp("browser")
        browsers.append(Browser(folder / "profile", microphone(folder, *pieces)))
        return browsers[-1]

    yield make
    for browser in browsers:
        browser.close()


@pytest.fixture(scope="module")
def browser(make_browser):
    """Its microphone: three digits, and time for the answer."""
    return make_browser(1.0, SPOKEN, 7.0)


def open_with_key(browser, server):
    """The server wants a key, says so, and gets it."""
    page = browser.open(server.url + "/", script=PROBE, ready=False)
    assert "key" in page.wait("document.querySelector('.toast')?.innerText")
    page.click(".toast button")
    page.type(KEY)  # its field has the focus
    page.key("Enter")
    page.wait("document.querySelector('#model').textContent == 'miniature'")
    return page


def spoken_answers(page):
    return page.js("[...document.querySelectorAll('.transcript .assistant p')].map(line => line.innerText)")


def test_chat(browser, server):
    page = open_with_key(browser, server)
    ask(page, "What is 4 + 5?")
    assert page.js(ANSWER).strip() == "9"
    page.wait("heard.some(([, level]) => level > 0.02)")  # and it is heard
    page.wait("heard.slice(-30).every(([, level]) => level == 0)")
    figures = page.js("document.querySelector('.turn.answer .meters').innerText")
    assert all(name in figures for name in ("first token", "first sound", "real-time factor", "tokens"))
    page.drop("main", SAMPLES / "star.jpg")
    page.wait("document.querySelector('#attached li')")
    ask(page, "What do you see?", f"document.querySelectorAll('.turn.answer').length == 2 && {DONE}")
    assert page.js(ANSWER).strip() == "an orange star"
    page.click("#clear")
    page.drop("main", SAMPLES / "moving.mp4")  # has no sound, and is asked with the setting to listen to it
    page.wait("document.querySelector('#attached li')")
    ask(page, "Which way does it move?")
    assert page.js(ANSWER).strip() == "left"
    page.click("#clear")
    page.click("#record")
    page.wait("document.querySelector('#recorded').innerText == '0:04'")
    page.click("#record")
    page.wait("document.querySelector('#attached li')")
    ask(page, "What number do you hear?")
    assert page.js(ANSWER).strip() == "374"
    assert not page.problems
    page.close()


def test_call_is_heard_and_answered(browser, server):
    page = open_with_key(browser, server)
    page.js("import('./settings.js').then(({ settings }) => (settings.key = 'wrong'))")
    page.click("#start-call")
    page.wait(f"{STATE} == 'ended'")
    assert "wants a key" in page.js("document.querySelector('#call-note').innerText")
    page.js(f"import('./settings.js').then(({{ settings }}) => (settings.key = '{KEY}'))")
    page.click("#again")
    page.wait(f"{STATE} == 'speaking'")
    page.wait(f"{STATE} == 'listening'")
    assert spoken_answers(page) == ["374"]
    assert "answered after" in page.js("document.querySelector('#call-meters').innerText")
    page.key("Escape")
    assert not page.problems
    page.close()


def test_call_is_interrupted(make_browser, server):
    """It is asked again and again, sooner or later behind the last time: some of them in the middle of an answer, which lasts two
    seconds, however fast the machine is.
    """
    pauses = (pause for seconds in (1.2, 1.6, 2.0, 2.4, 2.8) for pause in (SPOKEN, seconds))
    page = open_with_key(make_browser(1.0, *pauses, SPOKEN, 6.0), server)
    page.click("#start-call")
    cut = page.wait("events.find(event => event.type == 'conversation.item.truncate' && event.audio_end_ms > 0)", 240)
    page.wait(f"events.some(event => event.type == 'conversation.item.truncated' && event.item_id == '{cut['item_id']}')")
    later = f"event.at > {cut['at']} && event.item_id != '{cut['item_id']}'"
    done = "event.type == 'response.output_audio_transcript.done' && event.transcript"
    page.wait(f"events.some(event => {later} && {done})")  # what is asked then is answered
    events, heard = page.js("events"), page.js("heard")
    begun = [event["at"] for event in events if event["type"] == "input_audio_buffer.speech_started"]
    begun = max(at for at in begun if at <= cut["at"])
    sound = page.js(f"events.find(event => {later} && event.type == 'response.output_audio.delta').at")
    silent = [level for at, level in heard if begun + 100 < at < sound]
    assert len(silent) > 20 and max(silent) == 0
    assert not [event for event in events if event["type"] == "error"], events
    assert not page.problems
    page.close()
