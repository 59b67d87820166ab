"""Real servers of the miniature, each a process of its own on a free port."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest

from tests.parallel.launching import free_port

ROOT = Path(__file__).resolve().parents[2]
MINIATURE = ROOT / "examples/miniature"
START_S = 120
KEY = "a-key-for-tests"


@dataclass
class Running:
    """A server: where it is, its key, its process, and what it has said on standard error."""

    port: int
    process: subprocess.Popen
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {KEY}"}

    def said(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def wait(self, path: str = "/ready", limit_s: float = START_S) -> None:
        """Until a path answers with 200."""
        ends = time.monotonic() + limit_s
        while time.monotonic() < ends:
            assert self.process.poll() is None, self.said()
            try:
                if httpx.get(self.url + path, timeout=5, trust_env=False).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        raise AssertionError(f"{path} did not answer in {limit_s} s: {self.said()}")


def start(folder: Path, *options: str, model: Path = MINIATURE, key: str | None = KEY, port: int | None = None) -> Running:
    """Starts a server; wait for it with `Running.wait`."""
    port, log = port or free_port(), folder / "server.log"
    command = [sys.executable, "-m", "ms_omni", "serve", "--model", str(model), "--port", str(port), *options]
    environment = {**os.environ, **({"MS_OMNI_API_KEY": key} if key else {})}
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=file, stdout=file, stdin=subprocess.DEVNULL)
    return Running(port, process, log)


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """One for all tests that leave it as it was."""
    running = start(tmp_path_factory.mktemp("server"))
    try:
        running.wait()
        yield running
    finally:
        running.process.terminate()
        running.process.wait(60)
        running.log.unlink(missing_ok=True)


@pytest.fixture
def make_server(tmp_path):
    """`make_server(*options, key=None)`: servers of a test's own, which end with it."""
    running = []

    def make(*options: str, **others) -> Running:
        running.append(start(tmp_path, *options, **others))
        return running[-1]

    yield make
    for one in running:
        one.process.kill()
        one.process.wait(60)


@pytest.fixture
def client(server):
    """The official client of the common server."""
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=120) as client:
        yield client


@pytest.fixture
def http(server):
    """An HTTP client of the common server."""
    with httpx.Client(base_url=server.url, headers=server.headers, timeout=120, trust_env=False) as client:
        yield client
