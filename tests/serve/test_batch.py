"""Files of requests: answers that are whole whatever happens, and what is refused before anything is answered."""

import asyncio
import json
import re
import signal
import subprocess
import sys
import time

import httpx
import pytest

from ms_omni.errors import InputError, ProcessError
from ms_omni.serve.batch import Answers, Interrupted, Requests, answer_all
from tests.serve.conftest import MINIATURE, ROOT

FIRST = b'{"id": "batch_req_1", "custom_id": "a", "response": {"status_code": 200, "body": {}}, "error": null}\n'


def request(name, text="What is it?", **others):
    body = {"model": "miniature", "messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 8}
    return {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body, **others}


@pytest.fixture
def written(tmp_path):
    def write(*lines):
        path = tmp_path / "in.jsonl"
        path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
        return path

    return write


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.jsonl"


def read(path):
    return {answer["custom_id"]: answer for answer in map(json.loads, path.read_text().splitlines())}


def test_requests_are_read_in_their_order_and_known_by_name(written):
    requests = Requests(written(request("b"), "", request("a"), request("ä\ud800")))
    assert len(requests) == requests.left == 3
    assert requests.answered("a") and not requests.answered("c") and requests.left == 2
    assert [one["custom_id"] for one in requests.unanswered()] == ["b", "ä\ud800"]


REFUSED = {
    "not JSON": (["{"], "in.jsonl, line 1: not JSON"),
    "no object": ([[1]], 'line 1: expected {"custom_id"'),
    "no name": ([request("a"), {"method": "POST"}], 'line 2: expected {"custom_id"'),
    "a number for a name": ([request(7)], "line 1: expected"),
    "one name twice": ([request("a"), request("b"), "", request("a")], "lines 1 and 4 have the same custom_id"),
    "and more": ([request("a")] * 4, "lines 1 and 2 have the same custom_id, and so on 2 times more"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_file_that_is_no_batch_is_refused(what, written):
    lines, message = REFUSED[what]
    with pytest.raises(InputError, match=re.escape(message)):
        Requests(written(*lines))


def test_answers_go_on_behind_the_last_whole_line(written, out):
    requests = Requests(written(request("a"), request("b")))
    out.write_bytes(FIRST + FIRST.replace(b'"a"', b'"b"')[:40])
    with Answers(out, requests):
        assert out.read_bytes() == FIRST and requests.left == 1
        with pytest.raises(InputError, match="another process is writing"):
            Answers(out, requests)


FOREIGN = {
    "notes": (b"my notes\n", "line 1: not an answer of a batch, so it is left as it is"),
    "notes without an end": (b"my notes", "line 1: not an answer of a batch"),
    "an answer, then notes": (FIRST + b"my notes\n", "line 2: not an answer"),
    "answers to something else": (FIRST.replace(b'"a"', b'"z"'), "has no request 'z'"),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_file_of_something_else_is_left_alone(what, written, out):
    content, message = FOREIGN[what]
    requests = Requests(written(request("a")))
    out.write_bytes(content)
    with pytest.raises(InputError, match=message):
        Answers(out, requests)
    assert out.read_bytes() == content
    with Answers(out, requests, overwrite=True):
        assert out.read_bytes() == b""


def test_the_requests_are_not_written_over(written):
    path = written(request("a"))
    with pytest.raises(InputError, match="is the file of the requests"):
        Answers(path, Requests(path), overwrite=True)
    assert path.stat().st_size


def answered(requests, out, reply, at_once=2):
    interrupted = Interrupted()

    async def run():
        transport = httpx.MockTransport(lambda request: reply(request, interrupted))
        async with httpx.AsyncClient(transport=transport, base_url="http://inside") as client:
            with Answers(out, requests) as answers:
                await answer_all(client, requests, answers, at_once, interrupted, lambda: None)
                return answers.failed

    return asyncio.run(run())


def echo(request, _):
    return httpx.Response(200, content=json.dumps({"echo": json.loads(request.content)["messages"][0]["content"]}))


def test_every_request_has_its_own_answer_and_wrong_ones_have_their_error(written, out):
    wrong = {
        "elsewhere": request("elsewhere", url="/v1/embeddings"),
        "GET": request("GET", method="GET"),
        "no body": request("no body", body=None),
        "streamed": request("streamed", body={"stream": True}),
    }
    right = {f"{number}": request(f"{number}", f"text {number}") for number in range(20)}
    requests = Requests(written(*right.values(), *wrong.values()))
    assert answered(requests, out, echo) == len(wrong) and not requests.left
    found = read(out)
    assert found.keys() == right.keys() | wrong.keys()
    for name in right:
        assert found[name]["response"]["body"] == {"echo": f"text {name}"} and found[name]["error"] is None
    assert all(found[name]["response"]["status_code"] == 400 for name in wrong)
    assert len({answer["id"] for answer in found.values()}) == len(found)
    assert found["elsewhere"]["response"]["body"]["error"]["param"] == "url"


def test_what_json_can_say_and_others_cannot_is_no_end_of_the_run(written, out):
    """Half a pair of surrogates, and no number: the server says what it thinks of them."""
    lines = [request("half", "\ud800"), request("number")]
    lines[1]["body"]["temperature"] = float("nan")
    assert answered(Requests(written(*lines)), out, echo) == 0
    found = read(out)
    assert found["half"]["response"]["body"] == {"echo": "\ud800"} and found.keys() == {"half", "number"}


def test_an_interruption_leaves_what_is_done(written, out):
    def reply(request, interrupted):
        answer = echo(request, None)
        if answer.json()["echo"] == "4":
            interrupted.set()
        return answer

    requests = Requests(written(*(request(f"{number}", f"{number}") for number in range(9))))
    answered(requests, out, reply)
    again = Requests(requests.path)
    first = read(out)
    assert 4 <= len(first) < 9
    answered(again, out, echo)
    assert read(out).keys() == {f"{number}" for number in range(9)}
    assert [json.loads(line)["custom_id"] for line in out.read_text().splitlines()][: len(first)] == list(first)


def test_an_engine_that_has_stopped_is_no_answer(written, out):
    requests = Requests(written(request("a")))
    with pytest.raises(ProcessError, match="has stopped"):
        answered(requests, out, lambda *_: unavailable("unavailable"))
    assert out.read_bytes() == b""


def test_a_request_whose_time_runs_out_is_answered_so(written, out):
    requests = Requests(written(request("a"), request("b")))
    answered(requests, out, lambda *_: unavailable("timeout"))
    assert not requests.left and out.read_bytes().count(b'"timeout"') == 2


def unavailable(code):
    return httpx.Response(503, json={"error": {"message": "the engine has stopped", "code": code}})


def start(*arguments):
    command = [sys.executable, "-m", "ms_omni", "batch", *map(str, arguments), "--model", str(MINIATURE), "--max-rows", "2"]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_killed_and_interrupted_it_goes_on_where_it_was(written, out):
    """As users run it: killed once, interrupted once, and every request is answered once, as a run alone would."""
    names = [f"{number}" for number in range(60)]
    path = written(*(request(name, f"Say {int(name) % 7}.") for name in names), request("wrong", temperature="hot", body={}))
    done = 0
    for ending, code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)):
        process = start(path, out)
        ends = time.monotonic() + 120
        while out.exists() is False or out.read_bytes().count(b"\n") < done + 5:
            assert process.poll() is None and time.monotonic() < ends, process.communicate()
            time.sleep(0.02)
        process.send_signal(ending)
        _, said = process.communicate(timeout=60)
        assert process.returncode == code, said
        done = out.read_bytes().count(b"\n")
        assert done < len(names)
    assert f"{done} of {len(names) + 1} requests are answered in {out}" in said and "the same command goes on" in said
    process = start(path, out)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1, said  # one of them has failed
    lines = out.read_text().splitlines()
    found = read(out)
    assert len(lines) == len(found) == len(names) + 1
    assert found["wrong"]["response"]["status_code"] == 400
    texts = [found[name]["response"]["body"]["choices"][0]["message"]["content"] for name in names]
    assert all(text == texts[number % 7] for number, text in enumerate(texts))
