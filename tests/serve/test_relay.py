"""The relay between callers and several engines: here a server that plays the engine, which does what none of ours should."""

import asyncio
import socketserver
import threading
import time
from contextlib import asynccontextmanager, contextmanager

import httpx
import openai
import pytest
import uvicorn
from prometheus_client.parser import text_string_to_metric_families
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

from ms_omni.serve.metrics import merged
from ms_omni.serve.protocol import busy
from tests.parallel.launching import free_port

PAGE = """# HELP requests_total Requests
# TYPE requests_total counter
requests_total{{method="GET",path="/a{{b}} c"}} {0}.0
requests_total{{method="POST"}} 1e+06
# HELP running Answers at work
# TYPE running gauge
running {0}.0
"""
PIECE, MOST = b"data: {}\n\n" * 1000, 1 << 20


def test_metrics_of_all_engines_are_one_page():
    text = merged({"one": PAGE.format(1), "two": PAGE.format(2)})
    families = list(text_string_to_metric_families(text))
    assert [family.name for family in families] == ["requests", "running"]
    found = {(sample.name, *sorted(sample.labels.items())): sample.value for family in families for sample in family.samples}
    assert len(found) == 6
    assert found["running", ("engine", "one")] == 1 and found["running", ("engine", "two")] == 2
    assert found["requests_total", ("engine", "two"), ("method", "GET"), ("path", "/a{b} c")] == 2
    assert found["requests_total", ("engine", "one"), ("method", "POST")] == 1e6


@contextmanager
def listening(app):
    """An ASGI application at a free port, in a thread."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)


class Engine:
    """sent: pieces of endless streams so far; ended: streams whose reader has gone."""

    def __init__(self):
        self.sent, self.ended = 0, 0
        post = {"methods": ["POST"]}
        routes = [Route("/v1/echo", self.echo, **post), Route("/v1/endless", self.endless), Route("/v1/breaks", self.breaks)]
        self.app = Starlette(routes=[*routes, Route("/v1/chat/completions", self.breaks, **post)])

    async def echo(self, request):
        size = 0
        async for piece in request.stream():
            size += len(piece)
        return JSONResponse({"size": size, "host": request.headers["host"], "query": str(request.query_params)}, 201)

    async def endless(self, request):
        async def pieces():
            try:
                while True:
                    yield PIECE
                    self.sent += 1
                    await asyncio.sleep(0)
            finally:
                self.ended += 1

        return StreamingResponse(pieces(), media_type="text/event-stream")

    async def breaks(self, request):
        """Says something and dies."""
        kind = request.query_params.get("kind", "text/event-stream")

        async def pieces():
            yield b'data: {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": []}\n\n'
            await asyncio.sleep(0.1)
            raise RuntimeError("on purpose")

        return StreamingResponse(pieces(), media_type=kind)


@pytest.fixture(scope="module")
def relayed():
    """(address of a relay, what plays its engine). The first engine that it is given each time is not there."""
    pytest.importorskip("aiohttp", reason="aiohttp is not installed here: pip install 'ms-omni[ray]'")
    from ms_omni.serve.relay import Relay

    engine, turns = Engine(), []
    with listening(engine.app) as url:

        @asynccontextmanager
        async def lease(place, wait_s=30):
            turns.append(place)
            if wait_s < 30:
                raise busy("no engine is ready", 503, "unavailable")
            yield url if len(turns) % 2 == 0 else f"http://127.0.0.1:{free_port()}"

        async def engines():
            return {"one": url}

        with listening(Relay(lease, engines, MOST)) as address:
            yield address, engine


def test_requests_pass_as_they_are(relayed):
    address, _ = relayed
    big = (b"x" * 65536 for _ in range(320))
    for content, size in ((b"abc", 3), (big, 320 * 65536)):
        headers = {"Host": "known.example:80"}
        found = httpx.post(f"{address}/v1/echo?a=b%2Fc&d=", content=content, headers=headers, trust_env=False, timeout=60)
        assert found.status_code == 201
        assert found.json() == {"size": size, "host": "known.example:80", "query": "a=b%2Fc&d="}
        assert len(found.headers.get_list("date")) == 1


def test_slow_readers_hold_up_their_answer_alone_and_gone_ones_end_it(relayed):
    address, engine = relayed
    before = engine.ended
    with httpx.stream("GET", f"{address}/v1/endless", trust_env=False) as stream:
        pieces = stream.iter_bytes()
        next(pieces)
        time.sleep(0.5)
        sent = engine.sent
        time.sleep(0.5)
        assert engine.sent == sent and sent * len(PIECE) < 32 << 20
    ends = time.monotonic() + 10
    while engine.ended == before:
        assert time.monotonic() < ends
        time.sleep(0.05)


def test_an_engine_that_dies(relayed):
    address, _ = relayed
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="x", max_retries=0)
    with pytest.raises(openai.APIError, match="another one takes over") as told:
        list(client.chat.completions.create(model="m", messages=[{"role": "user", "content": "a"}], stream=True))
    assert told.value.code == "engine_lost"
    with pytest.raises(httpx.RemoteProtocolError):
        httpx.get(f"{address}/v1/breaks?kind=audio/wav", trust_env=False)


def test_an_engine_that_dies_before_it_has_said_anything():
    pytest.importorskip("aiohttp", reason="aiohttp is not installed here: pip install 'ms-omni[ray]'")
    from ms_omni.serve.relay import Relay

    with socketserver.TCPServer(("127.0.0.1", 0), socketserver.BaseRequestHandler) as mute:  # it closes at once
        threading.Thread(target=mute.serve_forever, daemon=True).start()

        @asynccontextmanager
        async def lease(place):
            yield f"http://127.0.0.1:{mute.server_address[1]}"

        with listening(Relay(lease, dict, MOST)) as address:
            found = httpx.post(f"{address}/v1/chat/completions", json={"messages": []}, trust_env=False)
        mute.shutdown()
    assert found.status_code == 503 and found.headers["retry-after"] == "1"
    assert found.json()["error"]["code"] == "engine_lost"


def test_refusals_of_the_relay(relayed):
    address, _ = relayed
    found = httpx.post(f"{address}/v1/chat/completions", content=b"x" * (MOST + 1), trust_env=False)
    assert found.status_code == 413 and found.json()["error"]["code"] == "request_too_large"
    found = httpx.get(f"{address}/ready", trust_env=False)
    assert found.status_code == 503 and found.json()["error"]["message"] == "no engine is ready"
