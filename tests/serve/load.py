"""Many clients of one server for a while, well-behaved and not: whether all get what each would get alone.

python -m tests.serve.load --clients 64 --seconds 300

Starts a server of the miniature, asks every question once alone, then all at once, and prints what happened as JSON. The exit code is 1
when an answer was lost or was not the one expected, or when the server said 500.
"""

import argparse
import asyncio
import base64
import hashlib
import io
import json
import random
import sys
import tempfile
import time
from collections import Counter
from contextlib import aclosing
from pathlib import Path
from typing import Any

import httpx
import soundfile

from ms_omni.api_client import ServerError, events
from tests.serve.conftest import MINIATURE, Running, start

MODEL, BODY_MB, ROWS = "miniature", 1, 8
MANNERS = {"plain": 50, "slow reader": 12, "slow writer": 8, "leaves": 10, "oversize": 5, "malformed": 5, "whole": 10}
"""How clients behave, in percent; "whole": well-behaved, and not streamed."""
GOOD = ("plain", "slow reader", "slow writer", "whole")
SILENCE_S, SAMPLE_S, IDLE_S = 600.0, 1.0, 10.0
BUSY = ("vllm:num_requests_running", "vllm:num_requests_waiting")


def _file(name):
    return base64.b64encode((MINIATURE / "samples" / name).read_bytes()).decode()


def _asked(*content, **others):
    body = {"model": MODEL, "messages": [{"role": "user", "content": list(content)}], "temperature": 0, "seed": 1}
    return {**body, "max_completion_tokens": 24, **others}


def _text(words):
    return {"type": "text", "text": words}


def _picture(name):
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{_file(name)}"}}


SOUND = {"type": "input_audio", "input_audio": {"data": _file("digits.wav"), "format": "wav"}}
SPOKEN: dict[str, Any] = {"modalities": ["text", "audio"]}


def questions() -> dict[str, dict[str, Any]]:
    """Bodies that have one answer each; every one has another."""
    found = {f"text {number}": _asked(_text(f"Say the number {number}.")) for number in range(4)}
    for name in ("star.jpg", "circle.png", "triangle.jpg"):
        found[name] = _asked(_picture(name), _text("What is it?"))
    found["sound"] = _asked(SOUND, _text("What do you hear?"))
    found["turns"] = _asked(_text("What is it?"))
    found["turns"]["messages"] = [
        {"role": "user", "content": [_picture("star.jpg"), _text("What is it?")]},
        {"role": "assistant", "content": "A star."},
        {"role": "user", "content": "Are you sure?"},
    ]
    for voice in ("Ethan", "Chelsie"):
        speech = {**SPOKEN, "audio": {"voice": voice, "format": "pcm16"}}
        found[f"spoken by {voice}"] = _asked(_picture("circle.png"), _text("What is it?"), **speech)
    found["sound, spoken"] = _asked(SOUND, _text("What do you hear?"), **SPOKEN, audio={"voice": "Ethan", "format": "pcm16"})
    return found


MALFORMED: tuple[Any, ...] = (
    b"{",
    b"[]",
    b"\xff\xfe",
    {},
    {"model": MODEL, "messages": []},
    {"model": MODEL, "messages": [{"role": "user", "content": 7}]},
    {"model": "another", "messages": [{"role": "user", "content": "x"}]},
    b'{"model": "miniature", "messages": [{"role": "user", "content": "\\ud800"}]}',
    _asked(_text("x"), temperature="hot"),
    _asked(_text("x"), max_completion_tokens=-1),
    _asked(_text("x"), no_such_argument=1),
    _asked(_text("x"), **SPOKEN, audio={"voice": "Nobody", "format": "wav"}),
    _asked({"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}),
    _asked({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}),
    _asked({"type": "image_url", "image_url": {"url": "http://127.0.0.1:9/x.png"}}),
    _asked({"type": "input_audio", "input_audio": {"data": "????", "format": "wav"}}),
    _asked({"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}}),
)


class Clients:
    """expected: {question: (text, hash of its samples)}; counts: what has happened; times: seconds of good answers."""

    def __init__(self, client: httpx.AsyncClient, seed: int):
        self.client, self.rng = client, random.Random(seed)
        self.questions, self.first = questions(), list(MANNERS)
        self.expected: dict[str, Any] = {}
        self.counts: Counter[str] = Counter()
        self.times: list[float] = []
        self.remarks: list[str] = []

    async def learn(self):
        """Asks every question alone, both ways."""
        for name, body in self.questions.items():
            self.expected[name] = await self.streamed(body)
            assert await self.whole(body) == self.expected[name], f"{name}: streamed and whole answers differ"
        answers = [text for text, _ in self.expected.values()]
        assert len(set(answers)) > len(answers) // 2, f"the questions have few answers: {answers}"

    async def one(self):
        """One call of a client who behaves in some manner."""
        manner = self.first.pop() if self.first else self.rng.choices(list(MANNERS), list(MANNERS.values()))[0]
        name = self.rng.choice(list(self.questions))
        self.counts[manner] += 1
        try:
            if manner in GOOD:
                await self.good(manner, name)
            elif manner == "leaves":
                await self.leave(self.questions[name])
            elif manner == "oversize":
                await self.refused(b"x" * ((BODY_MB << 20) + 1), (413,))
            else:
                await self.refused(self.rng.choice(MALFORMED), (400, 404, 422))
        except (httpx.HTTPError, ServerError, AssertionError) as error:
            self.counts["lost" if manner in GOOD else f"{manner}: wrong end"] += 1
            self.remark(f"{manner}, {name}: {type(error).__name__} {error}")

    async def good(self, manner, name):
        """A question that has to be answered, and rightly."""
        body, started = self.questions[name], time.perf_counter()
        found = await (self.whole(body) if manner == "whole" else self.streamed(body, manner))
        self.counts["answers"] += 1
        if manner in ("plain", "whole"):
            self.times.append(time.perf_counter() - started)
        if found != self.expected[name]:
            self.counts["mixed up"] += 1
            self.remark(f"{manner}, {name}: {found} instead of {self.expected[name]}")

    async def streamed(self, body, manner="plain"):
        """Text and hash of the samples of an answer."""
        text, samples = "", hashlib.sha256()
        async with self.client.stream("POST", "/v1/chat/completions", **self.sent(body, manner)) as response:
            await self.checked(response)
            async with aclosing(events(response.aiter_lines())) as found:
                async for chunk in found:
                    for choice in chunk["choices"]:
                        delta = choice["delta"]
                        audio = delta.get("audio") or {}
                        text += delta.get("content") or audio.get("transcript") or ""
                        samples.update(base64.b64decode(audio.get("data") or ""))
                    if manner == "slow reader":
                        await asyncio.sleep(self.rng.uniform(0, 0.3))
        return text, samples.hexdigest()

    def sent(self, body, manner):
        """The arguments of a request that streams; slow writers send in small pieces."""
        content = json.dumps({**body, "stream": True}).encode()
        if manner != "slow writer":
            return {"content": content}

        async def pieces():
            size = max(len(content) // 8, 1)
            for begin in range(0, len(content), size):
                yield content[begin : begin + size]
                await asyncio.sleep(self.rng.uniform(0, 0.3))

        return {"content": pieces()}

    async def whole(self, body):
        """The same of an answer in one piece; its sound as a WAV file."""
        if "audio" in body:
            body = {**body, "audio": {**body["audio"], "format": "wav"}}
        response = await self.client.post("/v1/chat/completions", json=body)
        await self.checked(response)
        message, pcm = response.json()["choices"][0]["message"], b""
        if message.get("audio"):
            pcm = soundfile.read(io.BytesIO(base64.b64decode(message["audio"]["data"])), dtype="int16")[0].tobytes()
        return message["content"] or message["audio"]["transcript"], hashlib.sha256(pcm).hexdigest()

    async def leave(self, body):
        """Goes away: while it sends, before the answer begins, or in the middle of it."""
        if self.rng.random() < 0.5:
            sent = self.sent(body, self.rng.choice(("slow writer", "plain")))
            asking = asyncio.ensure_future(self.client.post("/v1/chat/completions", **sent))
            await asyncio.wait([asking], timeout=self.rng.uniform(0, 1))
            asking.cancel()
            await asyncio.wait([asking])
            return
        async with self.client.stream("POST", "/v1/chat/completions", **self.sent(body, "plain")) as response:
            await self.checked(response)
            lines = response.aiter_lines()
            for _ in range(self.rng.randrange(1, 12)):
                await anext(lines, None)

    async def idle(self):
        """Waits until nobody's answer is at work any more. Raises `ServerError` where one is left."""
        ends = time.monotonic() + IDLE_S
        while time.monotonic() < ends:
            text = (await self.client.get("/metrics")).text
            busy = [line for line in text.splitlines() if line.startswith(BUSY) and not line.endswith(" 0.0")]
            if not busy:
                return
            await asyncio.sleep(0.2)
        raise ServerError(f"nobody asks any more, and yet {busy}")

    async def refused(self, body, statuses):
        """A body that cannot be taken, and the error object that says why."""
        how = {"content": body} if isinstance(body, bytes) else {"json": body}
        response = await self.client.post("/v1/chat/completions", **how)
        self.count(response)
        error = response.json()["error"]
        assert response.status_code in statuses, f"{response.status_code} {error}"
        assert error["message"] and error["type"] and {"param", "code"} <= error.keys(), error

    async def checked(self, response):
        """Raises for an answer that is an error."""
        self.count(response)
        if response.status_code != 200:
            raise ServerError(f"{response.status_code}: {(await response.aread())!r:.300}")

    def count(self, response):
        """Of answers, whatever they are for."""
        self.counts["500s"] += response.status_code >= 500

    def remark(self, text):
        """Some of what went wrong."""
        if len(self.remarks) < 20:
            self.remarks.append(text[:500])


async def load(server: Running, clients: int, seconds: float, seed: int = 0) -> dict[str, Any]:
    """What happened; memory: resident MiB of the server, every second."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=clients)
    options: dict[str, Any] = {"base_url": server.url, "headers": server.headers, "trust_env": False}
    async with httpx.AsyncClient(timeout=SILENCE_S, limits=limits, **options) as client:
        crowd = Clients(client, seed)
        await crowd.learn()
        memory, ends = [], time.monotonic() + seconds

        async def behave():
            while time.monotonic() < ends:
                await crowd.one()

        async def watch():
            while True:
                memory.append(resident_mib(server.process.pid))
                await asyncio.sleep(SAMPLE_S)

        watching = asyncio.ensure_future(watch())
        await asyncio.gather(*(behave() for _ in range(clients)))
        await crowd.idle()
        watching.cancel()
        again = {name: await crowd.streamed(body) for name, body in crowd.questions.items()}
        crowd.counts["different afterwards"] = sum(again[name] != crowd.expected[name] for name in again)
    times = sorted(crowd.times)
    return {
        "clients": clients,
        "seconds": seconds,
        **{name: crowd.counts[name] for name in ("answers", "mixed up", "lost", "500s")},
        "others": dict(crowd.counts),
        "median_s": round(times[len(times) // 2], 3) if times else None,
        "p95_s": round(times[len(times) * 95 // 100], 3) if times else None,
        "memory_mib": {"start": memory[0], "middle": memory[len(memory) // 2], "end": memory[-1], "most": max(memory)},
        "memory_by_tenths": memory[:: max(len(memory) // 10, 1)],
        "remarks": crowd.remarks,
    }


def resident_mib(pid: int) -> int:
    """Memory of a process and its children."""
    import psutil

    process = psutil.Process(pid)
    return sum(one.memory_info().rss for one in (process, *process.children(recursive=True))) >> 20


def failed(found: dict[str, Any]) -> list[str]:
    """Of what should not have happened, what did."""
    wrong = [name for name in ("mixed up", "lost", "500s") if found[name]]
    ends = [name for name, count in found["others"].items() if count and name.endswith(("wrong end", "afterwards"))]
    return wrong + ends


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server = start(Path(folder), "--max-body-mb", f"{BODY_MB}", "--max-rows", f"{arguments.rows}")
        try:
            server.wait()
            found = asyncio.run(load(server, arguments.clients, arguments.seconds, arguments.seed))
        finally:
            server.process.terminate()
            server.process.wait(120)
            print("\n".join(server.said().splitlines()[-20:]), file=sys.stderr)
    print(json.dumps(found, indent=1))
    return int(bool(failed(found)))


if __name__ == "__main__":
    sys.exit(main())
