"""Two servers behind HAProxy and nginx, by the examples: callers stay where they are, streams flow, and who goes is passed over."""

import json
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai
import pytest

from tests.parallel.launching import free_port
from tests.serve.conftest import KEY, ROOT, Running, start
from tests.serve.talking import sum_of_two_and_three

CALLERS = [f"caller {number}" for number in range(12)]
NOTICE_S = 10
PROXIES = ["haproxy", "nginx"]
pytestmark = pytest.mark.slow


def asked(server: Running) -> int:
    """Questions that a server has answered, by its own account."""
    return server.said().count(" GET /v1/audio/voices 200 ")


@dataclass
class Proxied:
    """A proxy that runs, and the servers behind it."""

    url: str
    engines: list[Running]
    name: str

    def voices(self, caller: str | None = None) -> httpx.Response:
        session = {"X-Session-Id": caller} if caller else {}
        headers = {"Authorization": f"Bearer {KEY}", **session}
        return httpx.get(f"{self.url}/v1/audio/voices", headers=headers, timeout=60, trust_env=False)

    def engine_of(self, caller: str | None = None) -> int:
        """The number of the engine that answers a caller."""
        before = [asked(engine) for engine in self.engines]
        assert self.voices(caller).status_code == 200
        ends = time.monotonic() + NOTICE_S
        while True:  # a line is written behind the answer
            found = [number for number, engine in enumerate(self.engines) if asked(engine) > before[number]]
            if found:
                (number,) = found
                return number
            assert time.monotonic() < ends
            time.sleep(0.02)

    def client(self, caller: str = "somebody") -> openai.OpenAI:
        headers = {"X-Session-Id": caller}
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=KEY, default_headers=headers, max_retries=0, timeout=120)

    def until_ready(self):
        ends = time.monotonic() + NOTICE_S
        while time.monotonic() < ends:
            try:
                if self.voices().status_code == 200:
                    return time.sleep(0.5)  # until the lines about that are written
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        raise AssertionError(f"{self.name} does not answer")


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    running = [start(tmp_path_factory.mktemp(f"engine{number}")) for number in range(2)]
    for one in running:
        one.wait()
    yield running
    for one in running:
        one.process.kill()
        one.process.wait(60)


@pytest.fixture(params=PROXIES)
def proxied(request, engines, tmp_path):
    """A proxy by its example, at free ports."""
    name = request.param
    program = shutil.which(name) or shutil.which(name, path="/usr/sbin")
    if program is None:
        pytest.skip(f"{name} is not installed here")
    port = free_port()
    example = ROOT / "examples" / {"haproxy": "haproxy.cfg", "nginx": "nginx.conf"}[name]
    text = example.read_text(encoding="utf-8")
    for number, to in ((8000, port), (8001, engines[0].port), (8002, engines[1].port)):
        assert f"127.0.0.1:{number}" in text
        text = text.replace(f"127.0.0.1:{number}", f"127.0.0.1:{to}")
    file = tmp_path / example.name
    if name == "nginx":  # which would write where the system has it
        folders = "".join(
            f"{kind}_temp_path {tmp_path / kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        text = text.replace("http {", f"http {{ {folders}", 1)
    file.write_text(text, encoding="utf-8")
    own = ["-g", f"daemon off; pid {tmp_path / 'pid'}; error_log stderr;"]
    command = [program, "-f", file, "-db"] if name == "haproxy" else [program, "-c", file, *own]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        found = Proxied(f"http://127.0.0.1:{port}", engines, name)
        found.until_ready()
        yield found
    finally:
        process.terminate()
        process.wait(30)


def test_callers_stay_where_they_are(proxied):
    places = [proxied.engine_of(caller) for caller in CALLERS]
    assert set(places) == {0, 1}
    assert [proxied.engine_of(caller) for caller in CALLERS] == places
    assert len({proxied.engine_of() for _ in range(4)}) == 1  # by his address


def test_streams_flow(proxied):
    """Each piece comes as it is made: the first one long before the last."""
    stream = proxied.client().chat.completions.create(
        model="miniature",
        messages=[{"role": "user", "content": "What is 2 plus 3?"}],
        stream=True,
        max_completion_tokens=400,
        extra_body={"min_tokens": 400},
    )
    times = [time.monotonic() for _ in stream]
    assert len(times) > 100 and times[10] - times[0] < 0.5 * (times[-1] - times[0])


def test_errors_are_the_servers(proxied):
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{proxied.url}/v1", api_key="wrong", max_retries=0).models.list()
    with pytest.raises(openai.NotFoundError, match="there is no model"):
        proxied.client().models.retrieve("another")


def test_realtime(proxied):
    assert sum_of_two_and_three(proxied.client()) == "5"


def test_engines_that_go_are_passed_over(engines, proxied):
    """One that is told to end finishes what it has, while others take its callers; one that is killed fails what it had, clearly."""
    going = proxied.engine_of("somebody")
    port, folder = engines[going].port, engines[going].log.parent
    body = {"model": "miniature", "messages": [{"role": "user", "content": "Hello!"}], "max_completion_tokens": 1000}
    long = proxied.client().chat.completions.create(**body, stream=True, extra_body={"min_tokens": 1000})
    next(long)
    engines[going].process.terminate()
    for _ in range(10):
        assert proxied.engine_of("somebody") == 1 - going
        time.sleep(0.1)
    *_, last = long
    assert last.choices[0].finish_reason == "length"
    assert engines[going].process.wait(60) == 0
    assert all(proxied.engine_of(caller) == 1 - going for caller in CALLERS)

    engines[going] = again(folder, port)
    ends = time.monotonic() + NOTICE_S
    while proxied.engine_of("somebody") != going:
        assert time.monotonic() < ends
        time.sleep(0.2)
    long = proxied.client().chat.completions.create(**body, stream=True, extra_body={"min_tokens": 1000})
    next(long)
    engines[going].process.kill()
    with pytest.raises((openai.APIError, httpx.TransportError)):
        list(long)
    assert all(proxied.engine_of(caller) == 1 - going for caller in CALLERS)
    engines[going].process.wait(60)
    engines[going] = again(folder, port)


def again(folder: Path, port: int) -> Running:
    """A server at the port of one that has ended."""
    running = start(folder, port=port)
    running.wait()
    return running


def test_no_engine(engines, proxied):
    """Nobody is there: the proxy says so as OpenAI does."""
    for engine in engines:
        engine.process.kill()
        engine.process.wait(60)
    ends = time.monotonic() + NOTICE_S
    answer = proxied.voices()
    while answer.status_code != 503 and time.monotonic() < ends:
        time.sleep(0.2)
        answer = proxied.voices()
    assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
    assert json.loads(answer.text)["error"]["code"] == "unavailable"
    for number, engine in enumerate(engines):
        engines[number] = again(engine.log.parent, engine.port)
