"""A server that answers by a rule, and the command as users have it: behind a pipe, or at a terminal."""

import asyncio
import base64
import contextlib
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from tests.parallel.launching import free_port

ROOT = Path(__file__).resolve().parents[2]
PCM = bytes(2 * 2400)  # 0.1 s


class Rule:
    """Says how many messages there were and what the last one was; "slowly" never ends; "badly" is refused."""

    def __init__(self):
        self.bodies, self.left = [], threading.Event()

    async def models(self, request):
        return JSONResponse({"data": [{"id": "a-model"}]})

    async def voices(self, request):
        return JSONResponse({"voices": ["Ethan", "Chelsie"]})

    async def chat(self, request):
        body = await request.json()
        self.bodies.append(body)
        content = body["messages"][-1]["content"]
        asked = content if isinstance(content, str) else content[-1]["text"]
        if asked == "badly":
            return JSONResponse({"error": {"message": "that is bad"}}, 400)
        return StreamingResponse(self._pieces(body, asked))

    async def _pieces(self, body, asked):
        def line(delta):
            return f"data: {json.dumps({'choices': [{'index': 0, 'delta': delta}]})}\n\n"

        spoken = "audio" in body
        try:
            if asked == "think":
                yield line({"reasoning_content": "hmm"})
            for word in (f"{len(body['messages'])}", " ", asked):
                yield line({"audio": {"transcript": word}} if spoken else {"content": word})
                await asyncio.sleep(0.01)
            while asked == "slowly":
                yield line({"content": "."})
                await asyncio.sleep(0.02)
            if spoken:
                yield line({"audio": {"data": base64.b64encode(PCM).decode()}})
            yield "data: [DONE]\n\n"
        except (asyncio.CancelledError, GeneratorExit):
            self.left.set()
            raise


@pytest.fixture
def rule():
    rule, port = Rule(), free_port()
    routes = [Route("/v1/models", rule.models), Route("/v1/audio/voices", rule.voices)]
    app = Starlette(routes=[*routes, Route("/v1/chat/completions", rule.chat, methods=["POST"])])
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    rule.url = f"http://127.0.0.1:{port}"
    yield rule
    server.should_exit = True
    thread.join()


class Typed:
    """The command at a terminal of its own: `say` types a line, `wait` reads until a text is there."""

    def __init__(self, arguments, environment):
        self._ours, theirs = pty.openpty()
        command = [sys.executable, "-m", "ms_omni", "chat", *map(str, arguments)]
        streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, preexec_fn=_own_terminal(theirs), **streams)
        os.close(theirs)
        self.shown = ""

    def say(self, text, end="\n"):
        os.write(self._ours, (text + end).encode())

    def interrupt(self, awaited, *what):
        """Ctrl-C, until what is awaited (`wait` of a text, `ended`) comes, which is returned: Python does not see a signal that comes
        just before it waits for a key, but with the next.
        """
        for _ in range(6):
            os.write(self._ours, b"\x03")
            with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
                return awaited(*what, limit_s=10)
        raise AssertionError(f"ctrl-C changes nothing: {self.shown}")

    def wait(self, pattern, limit_s=60):
        """What stands before a text, and what stands behind stays for the next call."""
        ends = time.monotonic() + limit_s
        while not (found := re.search(pattern, self.shown)):
            assert time.monotonic() < ends, self.shown
            if select.select([self._ours], [], [], 0.1)[0]:
                try:
                    self.shown += os.read(self._ours, 1 << 16).decode(errors="replace")
                except OSError:
                    raise AssertionError(f"it has ended: {self.shown}") from None
        before, self.shown = self.shown[: found.end()], self.shown[found.end() :]
        return before

    def ended(self, limit_s=60):
        return self.process.wait(limit_s)

    def close(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(60)
        os.close(self._ours)


def _own_terminal(terminal):
    def prepare():
        import fcntl
        import termios

        os.setsid()
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)

    return prepare


@pytest.fixture
def environment(tmp_path):
    """With a history of the test's own, beside the kernels that were compiled before."""
    known = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ms_omni"
    cache = tmp_path / "cache/ms_omni"
    cache.mkdir(0o700, parents=True)
    for file in known.glob("*.so"):
        shutil.copy2(file, cache)
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "XDG_CACHE_HOME": str(tmp_path / "cache"), "TERM": "dumb"}


@pytest.fixture
def typed(environment):
    """`typed(*arguments)`: the command at a terminal."""
    running = []

    def start(*arguments):
        running.append(Typed(arguments, environment))
        return running[-1]

    yield start
    for one in running:
        one.close()


@pytest.fixture
def piped(environment, tmp_path):
    """`piped("question", ..., at=("--url", URL))`: the finished process, which worked in a folder of the test's."""

    def run(*lines, at):
        command = [sys.executable, "-m", "ms_omni", "chat", *map(str, at)]
        given = "".join(f"{line}\n" for line in lines)
        return subprocess.run(
            command, cwd=tmp_path, env=environment, input=given, capture_output=True, text=True, timeout=120
        )

    return run
