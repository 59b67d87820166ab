"""Servers of several makes, measured from outside: what is noted of each format, and a whole run against one that keeps time."""

import asyncio
import base64
import contextlib
import io
import json
import threading
import time
import wave

import numpy as np
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from ms_omni.api_client import ServerError, events
from ms_omni.bench.callers import Timings
from ms_omni.bench.remote import record
from tests.cli.conftest import cli  # noqa: F401
from tests.parallel.launching import free_port

PCM = base64.b64encode(bytes(2 * 24_000 // 5)).decode()  # 0.2 s


def wav(rate=16_000):
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setparams((1, 2, rate, 0, "NONE", "not compressed"))
        sound.writeframes(bytes(2 * rate // 5))
    return base64.b64encode(file.getvalue()).decode()


def chunk(delta, **others):
    return {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta}], **others}


FORMATS = {
    "OpenAI": [
        chunk({"role": "assistant", "audio": {"id": "a", "transcript": "One"}}),
        chunk({"audio": {"id": "a", "data": PCM}}),
        chunk({"audio": {"id": "a", "transcript": " two"}}),
        chunk({"audio": {"id": "a", "data": PCM}}),
        chunk({"audio": {"id": "a", "expires_at": 1}}),
        chunk({}),
    ],
    "SGLang": [
        chunk({"role": "assistant", "content": "One"}),
        chunk({"content": " two"}),
        chunk({"audio": {"id": "audio-1", "data": wav()}}),
        chunk({"audio": {"id": "audio-1", "data": wav(24_000)}}),
    ],
    "vLLM": [
        chunk({"role": "assistant", "content": ""}, modality="text"),
        chunk({"content": "One"}, modality="text"),
        chunk({"content": wav()}, modality="audio"),
        chunk({"content": " two"}, modality="text"),
        chunk({"content": wav(24_000)}, modality="audio", choices=[{"index": 1, "delta": {"content": wav(24_000)}}]),
        {"choices": [], "usage": {"completion_tokens": 2}},
    ],
}


def lines(chunks, end="data: [DONE]"):
    return [": still here", *(f"data: {json.dumps(one)}" for one in chunks), "", end]


def recorded(given):
    async def source():
        for line in given:
            yield line

    timings, moments = Timings(0.0), iter(range(1, 100))
    asyncio.run(record(events(source()), timings, lambda: float(next(moments))))
    return timings


@pytest.mark.parametrize("make", FORMATS)
def test_two_tokens_and_two_pieces_of_sound(make):
    answer = recorded(lines(FORMATS[make]))
    assert len(answer.tokens) == 2 and answer.tokens[0] < answer.tokens[1]
    assert [length for _, length in answer.sounds] == pytest.approx([0.2, 0.2])
    assert answer.ended is not None and answer.ended > answer.sounds[1][0]


def test_tokens_that_came_in_one_piece_are_counted_by_the_usage():
    usage = {"completion_tokens": 45, "completion_tokens_details": {"audio_tokens": 40, "text_tokens": 5}}
    answer = recorded(lines([chunk({"content": "a"}), chunk({"content": "b c d e"}), {"choices": [], "usage": usage}]))
    assert len(answer.tokens) == 5 and (answer.tokens[0], answer.tokens[-1]) == (1, 2) and answer.token_s == 0.25
    answer = recorded(lines([chunk({"content": "a"}), {"choices": [], "usage": {"completion_tokens": 2}}]))
    assert len(answer.tokens) == 1  # what takes no time would be no measure


BROKEN = {
    "an error in the middle": (lines([chunk({"content": "a"}), {"error": {"message": "out of luck"}}]), "out of luck"),
    "no end": (lines([chunk({"content": "a"})], end=""), "ended without"),
    "no JSON": (["data: {"], "not JSON"),
    "no object": (["data: []"], "no object"),
    "no base64": (lines([chunk({"audio": {"data": "?"}})]), "not base64"),
    "half a header": (lines([chunk({"audio": {"data": base64.b64encode(b"RIFF12").decode()}})]), "whole header"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_wrong_is_said(what):
    given, message = BROKEN[what]
    with pytest.raises(ServerError, match=message):
        recorded(given)


class Peer:
    """Answers 50 ms after the call, in a format; every third call in speech is refused when `moody`."""

    def __init__(self):
        self.make, self.moody, self.bodies, self.at_work, self.most = "OpenAI", False, [], 0, 0

    async def models(self, request):
        return JSONResponse({"data": [{"id": "a-model"}]})

    async def chat(self, request):
        body = await request.json()
        self.bodies.append(body)
        if self.moody and len(self.bodies) % 3 == 0:
            return JSONResponse({"error": {"message": "too many"}}, 429)
        spoken = "audio" in body["modalities"]
        chunks = FORMATS[self.make] if spoken else [chunk({"content": "One"}), chunk({"content": " two"})]

        async def pieces():
            self.at_work += 1
            self.most = max(self.most, self.at_work)
            await asyncio.sleep(0.05)
            for line in lines(chunks):
                if line.endswith("[DONE]"):
                    self.at_work -= 1
                yield f"{line}\n\n"
                await asyncio.sleep(0.01)

        return StreamingResponse(pieces(), media_type="text/event-stream")


@pytest.fixture
def peer():
    peer, port = Peer(), free_port()
    app = Starlette(routes=[Route("/v1/models", peer.models), Route("/v1/chat/completions", peer.chat, methods=["POST"])])
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    peer.url = f"http://127.0.0.1:{port}"
    yield peer
    server.should_exit = True
    thread.join()


def figures(folder):
    data = json.loads((folder / "serve.json").read_text())
    return {(item["scenario"], item["metric"]): item["ours"]["median"] for item in data["results"]}


@pytest.mark.parametrize("make", FORMATS)
def test_a_run(make, peer, cli, tmp_path):
    peer.make = make
    arguments = ("--callers", 8, "--at-once", "1,4", "--tokens", 9, "--extra-body", '{"ignore_eos": true}')
    code, out, err = cli("bench", "serve", "--url", peer.url, *arguments, "--out", tmp_path)
    assert code == 0, err
    found = figures(tmp_path)
    for at_once in (1, 4):
        assert 0.05 < found[f"serve/{at_once}", "first_token_p50_s"] < 2
        assert found[f"serve/{at_once}", "first_sound_p50_s"] > found[f"serve/{at_once}", "first_token_p50_s"]
        assert found[f"serve/{at_once}", "failed"] == 0 and found[f"serve/{at_once}", "under_runs"] == 0
    assert found["serve/4", "requests_per_s"] > 1.2 * found["serve/1", "requests_per_s"]
    assert peer.most == 4 and len(peer.bodies) == 16
    body = peer.bodies[0]
    assert body["model"] == "a-model" and body["max_completion_tokens"] == 9 and body["ignore_eos"] is True
    assert sum("audio" in one for one in peer.bodies) == 8
    assert {part["type"] for one in peer.bodies for part in one["messages"][0]["content"] if isinstance(part, dict)} == {
        "image_url",
        "input_audio",
        "text",
    }
    assert b"## Serving 8 callers, each followed by the next, 50 % of them to be answered in speech" in out
    assert b"| callers at once | first token, median ms |" in out
    assert {"serve.json", "serve.md", "serve.png"} == {path.name for path in tmp_path.iterdir()}


def test_failures_are_counted_and_named(peer, cli, tmp_path):
    peer.moody = True
    code, out, _ = cli("bench", "serve", "--url", peer.url + "/v1/", "--callers", 9, "--rate", 100, "--out", tmp_path)
    assert code == 1 and figures(tmp_path)["serve/9", "failed"] == 3
    assert b"- 3 calls: 429: too many" in out


def test_speech_that_does_not_come_is_a_failure(peer, cli, tmp_path, monkeypatch):
    monkeypatch.setitem(FORMATS, "OpenAI", [chunk({"content": "One"})])
    code, out, _ = cli("bench", "serve", "--url", peer.url, "--callers", 1, "--spoken", 1, "--out", tmp_path)
    assert code == 1 and b"speech was asked for, and none came" in out


MISTAKES = {
    "no server": (["serve", "--url", "http://127.0.0.1:9"], "nobody answers at http://127.0.0.1:9/v1"),
    "no scheme": (["serve", "--url", "127.0.0.1"], "expected http://... or https://..."),
    "not serve": (["--url", "http://127.0.0.1:9"], "--url is for 'ms-omni bench serve'"),
    "an engine's": (["serve", "--url", "http://127.0.0.1:9", "--rows", "2"], "--rows is about a model that is loaded here"),
    "a geometry": (["serve", "--url", "http://a", "--geometry", "mini"], "--geometry is about a model"),
    "no url": (["serve", "--at-once", "2"], "--at-once is for 'ms-omni bench serve --url URL'"),
    "two loads": (["serve", "--url", "http://a", "--at-once", "2", "--rate", "1"], "leave one of them out"),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_mistakes_are_one_line(what, cli, tmp_path):
    arguments, message = MISTAKES[what]
    code, _, err = cli("bench", *arguments, "--out", tmp_path)
    assert code == 1 and message in err and "Traceback" not in err


def test_a_server_is_measured_without_mindspore(peer, tmp_path):
    import subprocess
    import sys

    code = "import sys; from ms_omni.cli import main; code = main(sys.argv[1:]); print('mindspore' in sys.modules, code)"
    command = ["bench", "serve", "--url", peer.url, "--callers", "1", "--spoken", "0", "--out", str(tmp_path)]
    run = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True)
    assert run.stdout.endswith("False 0\n"), run.stdout + run.stderr


def test_pictures_and_sounds_are_of_each_caller():
    from ms_omni.bench.callers import callers
    from ms_omni.bench.remote import question

    shown = [question(caller, "m", "Ethan") for caller in callers(8, None, 0.0, 0) if caller.media]
    (first, second), again = shown, [question(caller, "m", "Ethan") for caller in callers(8, None, 0.0, 0) if caller.media]
    assert again == shown
    for part in range(2):
        assert first["messages"][0]["content"][part] != second["messages"][0]["content"][part]
    data = first["messages"][0]["content"][1]["input_audio"]["data"]
    with contextlib.closing(wave.open(io.BytesIO(base64.b64decode(data)))) as sound:
        assert np.frombuffer(sound.readframes(10**6), "<i2").std() > 1000
