"""Two engines behind Ray Serve: OpenAI's client passes through, and an engine that is killed takes only what it held with it."""

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from ms_omni.serve.affinity import affinity_of, ranked
from tests.parallel.launching import free_port
from tests.serve.conftest import KEY, MINIATURE, ROOT, Running, start
from tests.serve.talking import sum_of_two_and_three

pytest.importorskip("ray.serve", reason="Ray is not installed here: pip install 'ms-omni[ray]'")
from pydantic import ValidationError

from ms_omni.errors import InputError
from ms_omni.serve import ray_app

START_S, BACK_S = 300, 90
CALLERS = 8
SUM = [{"role": "user", "content": "What is 2 plus 3?"}]
SPOKEN = {"modalities": ["text", "audio"], "audio": {"voice": "Ethan", "format": "pcm16"}, "seed": 3}
LONG = {"max_completion_tokens": 300, "extra_body": {"min_tokens": 300}}


def engines_of(running: Running) -> dict[str, psutil.Process]:
    """Processes of the engines that answer, by the names that Ray gave them."""
    found = {}
    for process in psutil.Process(running.process.pid).children(recursive=True):
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        names = [word.partition("=")[2] for word in words if word.startswith("--instance=")]
        if names and "serve" in words:
            found[names[0]] = process
    return found


def running_of(omni: Running) -> dict[str, float]:
    """Engines that answer, by their own account: how many answers each has at work."""
    text = httpx.get(omni.url + "/metrics", headers=omni.headers, trust_env=False, timeout=60).text
    lines = [line for line in text.splitlines() if "requests_running{" in line]
    return {line.partition('engine="')[2].partition('"')[0]: float(line.split()[-1]) for line in lines}


def client_of(running: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{running.url}/v1", api_key=KEY, max_retries=0, timeout=120)


@pytest.fixture(scope="module")
def omni():
    """The application as its users start it, but for the port; Ray wants a short path for its sockets."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    port, log = free_port(), folder / "serve.log"
    settings = {
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [
            {
                "name": "omni",
                "import_path": "ms_omni.serve.ray_app:app",
                "route_prefix": "/",
                "args": {"model": str(MINIATURE), "replicas": 2, "cards": 0},
            }
        ],
    }
    (folder / "omni.yaml").write_text(json.dumps(settings), encoding="utf-8")
    command = [sys.executable, "-c", "from ray.serve.scripts import cli; cli()", "run", str(folder / "omni.yaml")]
    variables = {
        "RAY_ADDRESS": "local",
        "RAY_TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
        "MS_OMNI_API_KEY": KEY,
    }
    python_path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **variables, "PYTHONPATH": python_path}, stderr=file, stdout=file
        )
    running = Running(port, process, log)
    try:
        running.wait(limit_s=START_S)
        until(lambda: len(running_of(running)) == 2, START_S, "two engines")
        yield running
    finally:
        process.terminate()
        process.wait(120)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One server, with as many threads as Ray gives an engine of one CPU: sums of other numbers of threads are rounded otherwise."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        running = start(tmp_path_factory.mktemp("alone"))
    running.wait()
    yield running
    running.process.terminate()
    running.process.wait(60)


def until(condition, limit_s, what):
    ends = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < ends, f"no {what} in {limit_s} s"
        time.sleep(0.2)


@pytest.mark.slow
def test_answers_are_those_of_one_server(omni, alone):
    several, one = client_of(omni), client_of(alone)
    for client in (several, one):
        assert [model.id for model in client.models.list()] == ["miniature"]

    def answers(client):
        plain = client.chat.completions.create(model="miniature", messages=SUM)
        spoken = client.chat.completions.create(model="miniature", messages=SUM, **SPOKEN)
        chunks = list(client.chat.completions.create(model="miniature", messages=SUM, **SPOKEN, stream=True))
        pieces = [chunk.choices[0].delta.audio for chunk in chunks if chunk.choices and chunk.choices[0].delta.audio]
        streamed = b"".join(base64.b64decode(piece.data) for piece in pieces if piece.data)
        audio = spoken.choices[0].message.audio
        return plain.choices[0].message.content, audio.transcript, base64.b64decode(audio.data), streamed

    found = answers(several)
    assert found == answers(one) and found[0] == "5" and found[2] == found[3]


@pytest.mark.slow
def test_speech_is_that_of_one_server(omni, alone):
    asked = {
        "model": "miniature",
        "voice": "Chelsie",
        "input": "blue star",
        "response_format": "pcm",
        "extra_body": {"seed": 3},
    }
    several, one = (client_of(running).audio.speech.create(**asked).content for running in (omni, alone))
    assert several == one and len(several) > 24_000


@pytest.mark.slow
def test_errors_are_the_servers(omni):
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{omni.url}/v1", api_key="wrong", max_retries=0).models.list()
    with pytest.raises(openai.NotFoundError, match="there is no model"):
        client_of(omni).chat.completions.create(model="another", messages=SUM)
    with pytest.raises(openai.BadRequestError):
        client_of(omni).chat.completions.create(model="miniature", messages=[])


@pytest.mark.slow
def test_realtime(omni):
    assert sum_of_two_and_three(client_of(omni)) == "5"


@pytest.mark.slow
def test_conversations_stay_where_their_sound_is(omni):
    """The id of a spoken answer names its engine, and later turns find it there, whatever the conversation is called."""
    client, names = client_of(omni), set()
    for number in range(12):  # names of engines are random: of a few conversations all may prefer one of them
        spoken = client.chat.completions.create(model="miniature", messages=SUM, prompt_cache_key=str(number), **SPOKEN)
        id = spoken.choices[0].message.audio.id
        names.add(id.split("_")[1])
        turns = [*SUM, {"role": "assistant", "audio": {"id": id}}, {"role": "user", "content": "What is 4 plus 5?"}]
        for key in ("a", "b", "c"):
            answer = client.chat.completions.create(model="miniature", messages=turns, prompt_cache_key=key)
            assert answer.choices[0].message.content == "9"
    assert names == set(engines_of(omni))


@pytest.mark.slow
def test_callers_who_go_away_free_their_row(omni):
    with client_of(omni).chat.completions.create(
        model="miniature", messages=SUM, stream=True, max_completion_tokens=20_000, extra_body={"min_tokens": 20_000}
    ) as stream:
        next(iter(stream))
    until(lambda: set(running_of(omni).values()) == {0}, 20, "free row")


@dataclass
class Caller(threading.Thread):
    """Asks one long question after the other; keeps when each failed, and how, and how many were answered since a moment."""

    running: Running
    name_of_conversation: str
    ends: threading.Event
    errors: list[Exception] = field(default_factory=list)
    answered: list[float] = field(default_factory=list)

    def __post_init__(self):
        super().__init__(daemon=True)

    def __hash__(self):
        return id(self)

    def run(self):
        client = client_of(self.running)
        while not self.ends.is_set():
            try:
                stream = client.chat.completions.create(
                    model="miniature", messages=SUM, stream=True, prompt_cache_key=self.name_of_conversation, **LONG
                )
                *_, last = stream
                assert last.choices[0].finish_reason == "length"
                self.answered.append(time.monotonic())
            except Exception as error:
                self.errors.append(error)


@pytest.mark.slow
def test_an_engine_that_is_killed(omni):
    """Each request that it held ends with a clear error, once; nobody else notices; another engine comes."""
    engines, ends = engines_of(omni), threading.Event()
    assert len(engines) == 2
    callers = [Caller(omni, str(number), ends) for number in range(CALLERS)]

    def home(caller):
        key = affinity_of(
            json.dumps({"model": "miniature", "messages": SUM, "prompt_cache_key": caller.name_of_conversation}).encode()
        )
        return ranked(key.key, list(engines))[0]

    victim = home(callers[0])
    held = [caller for caller in callers if home(caller) == victim]
    assert 0 < len(held) < CALLERS
    for caller in callers:
        caller.start()
    until(lambda: all(caller.answered for caller in callers), 120, "answer for everybody")
    engines[victim].kill()
    killed = time.monotonic()
    until(lambda: all(sum(at > killed + 1 for at in caller.answered) > 1 for caller in callers), 120, "answers without it")
    until(lambda: len(engines_of(omni)) == 2 and victim not in engines_of(omni), BACK_S, "new engine")
    until(lambda: running_of(omni).keys() == engines_of(omni).keys(), BACK_S, "new engine that answers")
    ends.set()
    for caller in callers:
        caller.join(120)
    assert {caller: len(caller.errors) for caller in callers if caller.errors} == dict.fromkeys(held, 1)
    for caller in held:
        (error,) = caller.errors
        assert isinstance(error, openai.APIError) and "another one takes over" in str(error), repr(error)
        assert error.code == "engine_lost"
    print(f"a new engine answers {time.monotonic() - killed:.1f} s after one was killed")


@pytest.mark.parametrize("given, said", [
    ({}, "model"),
    ({"model": "m", "replcas": 2}, "replcas"),
    ({"model": "m", "replicas": 0}, "greater than or equal to 1"),
    ({"model": "m", "cards": -1}, "greater than or equal to 0"),
    ({"model": "m", "host": "0.0.0.0"}, "'127.0.0.1' or 'node'"),
    ({"model": "m", "options": "--port 9"}, "--port is set by this application"),
    ({"model": "m", "options": "--api-key=x"}, "set MS_OMNI_API_KEY"),
    ({"model": "m", "options": "--ssl-keyfile x"}, "end TLS before it"),
])  # fmt: skip
def test_arguments_that_cannot_be(given, said):
    with pytest.raises(ValidationError, match="1 validation error") as refused:
        ray_app.Arguments(**given)
    assert said in str(refused.value)


def test_more_cards_than_there_are(monkeypatch):
    monkeypatch.setattr(ray_app, "_npus", lambda: 8)
    arguments = ray_app.Arguments(model=str(MINIATURE), replicas=4, cards=2)
    assert ray_app.app(arguments) is not None
    with pytest.raises(InputError, match="need 10 NPUs, and the cluster has 8"):
        ray_app.app(arguments.model_copy(update={"replicas": 5}))
