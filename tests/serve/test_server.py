"""Start, end, keys and limits of a server, in processes of their own."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest
from prometheus_client import generate_latest

from ms_omni.cli import build_parser, main
from ms_omni.commands.serve import settings_of
from ms_omni.serve.app import AccessLog, Limits
from ms_omni.serve.server import Server
from ms_omni.serve.settings import Settings
from tests.parallel.launching import free_port

from .conftest import KEY, MINIATURE, ROOT, Running, start


def error_of(response, status):
    """OpenAI's error object of an answer with this status."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"] and error["type"]
    return error


def test_what_is_here(server, http):
    (model,) = http.get("/v1/models").json()["data"]
    assert model["id"] == "miniature" and model["object"] == "model"
    assert http.get("/v1/models/miniature").json() == model
    assert error_of(http.get("/v1/models/other"), 404)["code"] == "model_not_found"
    assert http.get("/v1/audio/voices").json() == {"voices": ["Ethan", "Chelsie"], "default": "Ethan"}
    assert "no /v1/nothing here" in error_of(http.get("/v1/nothing"), 404)["message"]
    assert "does not take DELETE" in error_of(http.delete("/v1/models"), 405)["message"]


def test_keys(server):
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        assert client.get("/health").status_code == client.get("/ready").status_code == 200
        assert error_of(client.get("/v1/models"), 401)["code"] == "missing_api_key"
        for wrong in (f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", "Bearer", "Bearer \xe9".encode("latin-1"), f"Basic {KEY}"):
            error_of(client.get("/v1/models", headers={"Authorization": wrong}), 401)
        assert client.get("/v1/models", headers={"authorization": f"bearer {KEY}"}).status_code == 200
        assert KEY not in server.said()


def test_pages_of_others(server, http):
    own = {"Origin": server.url}
    assert http.get("/v1/models", headers=own).status_code == 200
    error = error_of(http.get("/v1/models", headers={"Origin": "https://elsewhere.example"}), 403)
    assert "--allow-origin" in error["message"]
    for headers in ({"Origin": "http://["}, {"Host": "[", "Origin": "http://["}, {"Host": "[", "Origin": "http://a"}):
        error_of(http.get("/v1/models", headers=headers), 403)


@pytest.mark.parametrize("origin, host, status", [
    ("http://localhost:{port}", "localhost:{port}", 200),
    ("http://127.0.0.1:{port}", "127.0.0.1:{port}", 200),
    ("http://rebound.example:{port}", "rebound.example:{port}", 403),
    ("http://elsewhere.example", "127.0.0.1:{port}", 403),
    ("null", "127.0.0.1:{port}", 403),
    ("https://known.example", "127.0.0.1:{port}", 200),
])  # fmt: skip
def test_pages_of_others_without_keys(keyless, origin, host, status):
    headers = {"Origin": origin.format(port=keyless.port), "Host": host.format(port=keyless.port)}
    assert httpx.get(keyless.url + "/v1/models", headers=headers, trust_env=False).status_code == status


@pytest.fixture(scope="module")
def keyless(tmp_path_factory):
    """Without keys, with small limits."""
    options = ("--allow-origin", "https://known.example", "--max-body-mb", "1", "--idle-timeout", "1")
    running = start(tmp_path_factory.mktemp("keyless"), *options, key=None)
    running.wait()  # bodies are read by those who could answer
    yield running
    running.process.kill()
    running.process.wait(60)


def test_bodies_that_are_too_large(keyless):
    for path in ("/v1/models", "/v1/chat/completions", "/"):
        response = httpx.post(keyless.url + path, content=b"x" * (2 << 20), trust_env=False)
        assert error_of(response, 413)["code"] == "request_too_large"
    error_of(httpx.post(keyless.url + "/v1/chat/completions", content=iter([b"x" * 65536] * 40), trust_env=False), 413)


def test_senders_that_keep_still(keyless):
    with socket.create_connection(("127.0.0.1", keyless.port)) as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{")
        connection.settimeout(20)
        assert b"408" in connection.recv(4096).split(b"\r\n")[0]


def test_ends_when_told(make_server):
    """Also while it is starting; /health answers then."""
    server = make_server()
    server.wait("/health")
    began = time.monotonic()
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(60) == 0, server.said()
    assert "Traceback" not in server.said()
    assert time.monotonic() - began < 60


def test_a_port_that_is_taken(make_server, capsys):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen(1)
        port = holder.getsockname()[1]
        assert main(["serve", "--model", str(MINIATURE), "--port", str(port)]) == 1
    assert f"cannot listen on 127.0.0.1, port {port}: Address already in use; choose another" in capsys.readouterr().err


def test_a_damaged_model(tmp_path, make_server):
    """What can be said before MindSpore is imported is; what cannot ends the server with one line and an exit code."""
    for file in MINIATURE.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = next(tmp_path.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:5000])
    server = make_server(model=tmp_path)
    assert server.process.wait(120) == 1
    assert "ms-omni: error:" in server.said() and "Traceback" not in server.said()


@pytest.mark.parametrize("options, said", [
    (["--model", "/nowhere"], "/nowhere"),
    (["--port", "0"], "--port is 0, expected 1 to 65535"),
    (["--max-rows", "0"], "--max-rows is 0, expected 1 or more"),
    (["--request-timeout", "nan"], "--request-timeout is nan"),
    (["--ssl-certfile", "x.pem"], "belong together"),
    (["--ssl-certfile", "x.pem", "--ssl-keyfile", "y.pem"], "there is no file x.pem"),
    (["--text-only", "--speech", "process"], "leave one of them out"),
    (["--speech-device", "1"], "add that"),
    (["--api-key", ""], "API key"),
])  # fmt: skip
def test_options_that_cannot_be(options, said, capsys):
    model = [] if "--model" in options else ["--model", str(MINIATURE)]
    assert main(["serve", *model, *options]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_answers_under_way_are_finished(make_server):
    """One signal: a stream goes on to its end, new callers are turned away; /ready says so. A second signal ends it at once."""
    server = make_server("--drain-timeout", "60")
    server.wait()
    body = {"model": "miniature", "stream": True, "max_completion_tokens": 3000, "stop": ["never"], "min_tokens": 3000}
    body |= {"messages": [{"role": "user", "content": "Hello!"}]}
    with (
        httpx.Client(base_url=server.url, headers=server.headers, timeout=120, trust_env=False) as client,
        client.stream("POST", "/v1/chat/completions", json=body) as stream,
    ):
        assert stream.status_code == 200, stream.read()
        lines = stream.iter_lines()
        next(lines)
        server.process.terminate()
        time.sleep(0.5)
        refused = httpx.get(server.url + "/ready", trust_env=False)
        assert refused.status_code == 503 and refused.json()["status"] == "draining"
        assert (
            httpx.post(server.url + "/v1/chat/completions", json=body, headers=server.headers, trust_env=False).status_code
            == 503
        )
        *_, last = (line for line in lines if line)
    assert last == "data: [DONE]"
    assert server.process.wait(60) == 0, server.said()


@pytest.mark.slow
def test_a_second_signal(make_server):
    server = make_server()
    server.wait()
    body = {"model": "miniature", "stream": True, "max_completion_tokens": 3000, "min_tokens": 3000}
    body |= {"messages": [{"role": "user", "content": "Hello!"}]}
    with (
        httpx.Client(base_url=server.url, headers=server.headers, timeout=120, trust_env=False) as client,
        client.stream("POST", "/v1/chat/completions", json=body) as stream,
    ):
        lines = stream.iter_lines()  # kept: an iterator that is dropped closes the connection
        assert stream.status_code == 200 and json.loads(next(lines).removeprefix("data: "))
        server.process.send_signal(signal.SIGINT)
        ends = time.monotonic() + 60
        while "a second signal gives them up" not in server.said():  # two at once may be one
            assert server.process.poll() is None and time.monotonic() < ends, server.said()
            time.sleep(0.01)
        server.process.send_signal(signal.SIGINT)
        # MindSpore 2.7.1 turns the first SIGINT into SIGTERM, and leaves the second one to the system.
        assert server.process.wait(5) in (130, -signal.SIGINT)


def test_heads_that_never_end(keyless):
    """Also behind a whole request."""
    for first, then in (
        (b"", b""),
        (b"", b"GET /health HT"),
        (b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"GET /h"),
    ):
        with socket.create_connection(("127.0.0.1", keyless.port)) as connection:
            connection.settimeout(20)
            connection.sendall(first)
            received = b"" if first else b"}"
            while not received.endswith(b"}"):  # its answer is whole
                received += connection.recv(4096)
            connection.sendall(then)
            while connection.recv(4096):  # until the server closes it
                pass


def test_keys_may_have_spaces_around_them(monkeypatch):
    monkeypatch.setenv("MS_OMNI_API_KEY", "a, b ,")
    settings = settings_of(build_parser().parse_args(["serve", "--model", str(MINIATURE)]))
    assert settings.api_keys == ("a", "b")


def test_what_goes_wrong_here_is_told_and_counted():
    """By the status of the answer, as OpenAI's error; nothing of the reason leaves the server but for its log."""

    async def broken(scope, receive, send):
        raise KeyError("inner")

    async def main():
        server = Server(Settings("none", "none"), lambda text: None)
        app, found = AccessLog(Limits(broken, server), server), []

        async def send(message):
            found.append(message)

        async def receive():
            return {"type": "http.request", "body": b"", "more_body": False}

        scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}
        await app(scope, receive, send)
        assert found[0]["status"] == 500 and json.loads(found[1]["body"])["error"]["code"] == "internal_error"
        assert b"inner" not in found[1]["body"] and server.requests == server.body_bytes == 0
        assert 'status="500"' in generate_latest(server.metrics.registry).decode()

    asyncio.run(main())


def test_who_leaves_in_the_middle_of_a_body_leaves_no_trace(keyless):
    before = keyless.said()
    with socket.create_connection(("127.0.0.1", keyless.port)) as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{")
    ends = time.monotonic() + 20
    while "499" not in keyless.said()[len(before) :]:
        assert time.monotonic() < ends, keyless.said()
        time.sleep(0.05)
    assert "Traceback" not in keyless.said()


def test_bodies_of_all_together():
    async def main():
        server = Server(Settings("none", "none", max_body_bytes=100), lambda text: None)
        sent, going = [], asyncio.Event()

        async def reading(scope, receive, send):
            while (await receive()).get("more_body"):
                pass

        async def ask():
            pieces = [b"x" * 90, None]

            async def receive():
                piece = pieces.pop(0)
                if piece is None:
                    await going.wait()
                return {"type": "http.request", "body": piece or b"", "more_body": piece is not None}

            async def send(message):
                sent.append(message)

            await Limits(reading, server)({"type": "http", "method": "POST", "path": "/", "headers": []}, receive, send)

        asked = [asyncio.ensure_future(ask()) for _ in range(5)]
        await asyncio.sleep(0.1)
        assert [message["status"] for message in sent if "status" in message] == [429]
        going.set()
        await asyncio.gather(*asked)
        assert server.body_bytes == server.requests == 0

    asyncio.run(main())


@pytest.mark.slow
def test_on_two_ranks(tmp_path):
    """Rank 0 listens; the others have the same model, without a talker too, and end with it."""
    port = free_port()
    command = [sys.executable, "-m", "ms_omni", "launch", "--cards", "2", "--log-dir", str(tmp_path / "logs"), "serve"]
    command += ["--model", str(MINIATURE), "--port", str(port), "--text-only"]
    log = tmp_path / "server.log"
    with log.open("wb") as file:
        server = Running(port, subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file), log)
    try:
        server.wait()
        body = {"model": "miniature", "messages": [{"role": "user", "content": "What is 2 plus 3?"}], "logprobs": True}
        answer = httpx.post(server.url + "/v1/chat/completions", json=body, timeout=120, trust_env=False).json()
        (choice,) = answer["choices"]
        assert choice["message"]["content"] == "5" and choice["logprobs"]["content"][0]["token"] == "5"
        body |= {"modalities": ["text", "audio"], "audio": {"voice": "Ethan", "format": "wav"}}
        spoken = httpx.post(server.url + "/v1/chat/completions", json=body, timeout=120, trust_env=False)
        assert "text only" in error_of(spoken, 400)["message"]
        server.process.send_signal(signal.SIGINT)
        server.process.wait(60)
        assert "Traceback" not in server.said()
    finally:
        server.process.kill()
        server.process.wait(60)
