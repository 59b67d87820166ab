"""A file of requests answered by the engine, as many at a time as it has rows: what `POST` would answer, without a socket.

Requests are read line by line, and answers written so that every line is whole at any moment; what is interrupted can be resumed.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import json
import os
import signal
import sys
import time
import uuid
from array import array
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from tqdm import tqdm

from ..api_client import JSON
from ..errors import InputError, ProcessError
from ..files import open_regular
from .protocol import ApiError, invalid
from .run import local_server
from .schema import MAX_CHOICES
from .settings import Settings

SYNC_S = 1.0
"""At most so much work is lost when the machine stops."""
LINE_START = b'{"id": "batch_req_'
DIGEST_BYTES = 16
DECODED_AHEAD = 4
"""Requests beside those at work, whose media are decoded meanwhile."""
PATHS = ("/v1/chat/completions",)
UNAVAILABLE = 503
FAILED, INTERRUPTED = 1, 130
SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Requests:
    """A file of requests, one JSON object a line, blank lines aside. It is read twice, and only 16 bytes of every name stay in memory.

    Raises `InputError` for a line that is no object with a `custom_id`, and for one name on two lines.
    """

    def __init__(self, path: str | os.PathLike):
        self.path, digests, numbers = Path(path), bytearray(), array("q")
        for number, request in self._read():
            digests += _digest(request["custom_id"])
            numbers.append(number)
        names = np.frombuffer(bytes(digests), f"S{DIGEST_BYTES}")
        order = np.argsort(names, kind="stable")
        self._names, self._lines = names[order], np.frombuffer(numbers, np.int64)[order]
        self._check_unique()
        self.done = np.zeros(len(names), bool)

    def __len__(self) -> int:
        return len(self.done)

    @property
    def left(self) -> int:
        """How many are not answered yet."""
        return int(len(self) - self.done.sum())

    def answered(self, name: str) -> bool:
        """Notes that a request has its answer. False: there is no such request."""
        index = self._index(name)
        if index is None:
            return False
        self.done[index] = True
        return True

    def unanswered(self) -> Iterator[dict[str, Any]]:
        """Requests without an answer, in their order."""
        for _, request in self._read():
            index = self._index(request["custom_id"])
            if index is None:
                raise InputError(f"{self.path} has changed while it was read; leave it alone until all is answered")
            if not self.done[index]:
                yield request

    def _index(self, name):
        digest = np.array(_digest(name), f"S{DIGEST_BYTES}")
        index = int(np.searchsorted(self._names, digest))
        return index if index < len(self._names) and self._names[index] == digest else None

    def _read(self):
        try:
            file = open_regular(self.path)
        except OSError as error:
            raise InputError(f"cannot read {self.path}: {error.strerror or error}") from None
        with file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, self._request(number, line)

    def _request(self, number, line):
        what = f"{self.path}, line {number}"
        try:
            request = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{what}: not JSON ({error}); every line is one JSON object") from None
        name = request.get("custom_id") if isinstance(request, dict) else None
        if not isinstance(name, str) or not name:
            raise InputError(f'{what}: expected {{"custom_id": "...", "method": "POST", "url": ..., "body": {{...}}}}')
        return request

    def _check_unique(self):
        same = np.flatnonzero(self._names[1:] == self._names[:-1])
        if len(same):
            first, second = self._lines[same[0]], self._lines[same[0] + 1]
            more = f", and so on {len(same) - 1} times more" if len(same) > 1 else ""
            raise InputError(
                f"{self.path}: lines {first} and {second} have the same custom_id{more}; answers are told apart by it"
            )


class Answers:
    """A file of answers that grows by whole lines; a context manager. Those that are in it already are noted in `requests`.

    What a kill has left of a last line is cut off. overwrite: begins anew, whatever is there. Raises `InputError` for a file that
    holds something else, or that another process is writing.
    """

    def __init__(self, path: str | os.PathLike, requests: Requests, overwrite: bool = False):
        self.path = Path(path)
        if self.path.exists() and self.path.samefile(requests.path):
            raise InputError(f"{self.path} is the file of the requests; answers need one of their own")
        try:
            self._file = self.path.open("a+b", buffering=0)
        except OSError as error:
            raise InputError(f"cannot write {self.path}: {error.strerror or error}") from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise InputError(f"another process is writing {self.path}; wait for it, or choose another file") from None
        self.failed = 0
        self._synced = time.monotonic()
        if overwrite:
            self._file.truncate(0)
        try:
            self._file.truncate(self._resume(requests))
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "Answers":
        return self

    def __exit__(self, *_) -> None:
        os.fsync(self._file.fileno())
        self._file.close()

    def add(self, answer: dict[str, Any]) -> None:
        """Appends a line; it is on the disk within `SYNC_S` of the next one."""
        line = json.dumps(answer, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        view = memoryview(line)
        while view:  # a full disk takes a part and then fails; what is torn is cut off the next time
            view = view[self._file.write(view) :]
        self.failed += not succeeded(answer)
        if time.monotonic() - self._synced > SYNC_S:
            os.fsync(self._file.fileno())
            self._synced = time.monotonic()

    def _resume(self, requests):
        """Notes the answers that are there; returns the length of the whole lines."""
        length = 0
        self._file.seek(0)
        with open(self._file.fileno(), "rb", closefd=False) as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    if not (line.startswith(LINE_START) or LINE_START.startswith(line)):
                        raise self._not_ours(number)
                    break
                answer = _loaded(line)
                if not isinstance(answer, dict) or not {"custom_id", "response", "error"} <= answer.keys():
                    raise self._not_ours(number)
                name = answer["custom_id"]
                if not isinstance(name, str) or not requests.answered(name):
                    raise InputError(
                        f"{self.path}, line {number}: {requests.path} has no request {name!r:.80}, so these are answers to other "
                        "requests; choose another file, or begin anew with --overwrite"
                    )
                self.failed += not succeeded(answer)
                length += len(line)
        return length

    def _not_ours(self, number):
        return InputError(
            f"{self.path}, line {number}: not an answer of a batch, so it is left as it is; choose another file, or replace it "
            "with --overwrite"
        )


def succeeded(answer: dict[str, Any]) -> bool:
    """Whether a line holds what was asked for."""
    response = answer["response"]
    return answer["error"] is None and isinstance(response, dict) and response.get("status_code") == 200


def _loaded(line):
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _digest(name):
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()


def batch(settings: Settings, requests: Requests, answers: Answers, log: Callable[[str], None]) -> int:
    """Answers what is not answered yet. Returns an exit code: 0 all requests succeeded, 1 some did not, 130 interrupted.

    Raises what the model cannot be loaded for, and `ProcessError` when the engine has stopped.
    """
    return asyncio.run(_batch(settings, requests, answers, log))


async def _batch(settings, requests, answers, log):
    from ..parallel.mesh import under_msrun  # MindSpore takes seconds, and files are checked before

    at_once = settings.max_rows + DECODED_AHEAD
    settings = replace(settings, max_queue=at_once * MAX_CHOICES)  # whatever they ask for, none is turned away
    if requests.left or under_msrun():  # the other ranks wait for rank 0
        with interruptions() as interrupted:
            async with local_server(settings, log) as (_, client):
                interrupted.gentle = True
                bar = tqdm(total=len(requests), initial=len(requests) - requests.left, unit="request", disable=None)
                with bar:
                    await answer_all(client, requests, answers, at_once, interrupted, bar.update)
    done = len(requests) - requests.left
    print(
        f"{done} of {len(requests)} requests are answered in {answers.path}, {answers.failed} of them with an error",
        file=sys.stderr,
    )
    if requests.left:
        print("ms-omni batch: interrupted; the same command goes on", file=sys.stderr)
        return INTERRUPTED
    return FAILED if answers.failed else 0


async def answer_all(
    client: httpx.AsyncClient,
    requests: Requests,
    answers: Answers,
    at_once: int,
    interrupted: asyncio.Event,
    done: Callable[[], Any],
) -> None:
    """Writes an answer for every request that has none, until all have one or it is interrupted; `done` is called behind each."""
    waiting = requests.unanswered()

    async def work():
        for request in waiting:  # one iterator for all of them
            if interrupted.is_set():
                return
            answer = await _answer(client, request)
            answers.add(answer)
            requests.answered(request["custom_id"])
            done()

    tasks = [asyncio.ensure_future(work()) for _ in range(at_once)]
    stop = asyncio.ensure_future(interrupted.wait())
    try:
        left = {*tasks}
        while left and not interrupted.is_set():
            finished, _ = await asyncio.wait({*left, stop}, return_when=asyncio.FIRST_COMPLETED)
            left -= finished
            for task in finished - {stop}:
                task.result()
    finally:
        for task in (*tasks, stop):
            task.cancel()
        await asyncio.wait({*tasks, stop})


async def _answer(client, request):
    """A line of the answers. Raises `ProcessError` when the engine has stopped."""
    id = uuid.uuid4().hex
    try:
        response = await client.post(request["url"], content=_body(request), headers=JSON)
        status, body = response.status_code, response.json()
    except ApiError as error:
        status, body = error.status, error.body()
    if status == UNAVAILABLE and body["error"]["code"] == "unavailable":  # else it is about this request
        raise ProcessError(body["error"]["message"])
    answer = {"status_code": status, "request_id": f"req_{id}", "body": body}
    return {"id": f"batch_req_{id}", "custom_id": request["custom_id"], "response": answer, "error": None}


def _body(request):
    """As it is sent. Raises `ApiError` for what a batch does not do."""
    method, path, body = (request.get(name) for name in ("method", "url", "body"))
    if method != "POST" or path not in PATHS:
        raise invalid(f"a batch answers POST {' and '.join(PATHS)}, got {method!r:.20} {path!r:.80}", "url", "invalid_url")
    if not isinstance(body, dict):
        raise ApiError(400, "body has to be an object", "body")
    if body.get("stream"):
        raise ApiError(400, "answers of a batch are not streamed; leave stream out", "stream")
    try:
        return json.dumps(body).encode()
    except RecursionError:
        raise ApiError(400, "body is nested too deeply", "body") from None


class Interrupted(asyncio.Event):
    """Set by the first SIGINT or SIGTERM. It ends the process if it is not `gentle`, and so does a second one."""

    gentle = False

    def signalled(self) -> None:
        """A signal has come."""
        if self.is_set() or not self.gentle:
            os.write(2, b"\nms-omni: interrupted\n")
            os._exit(INTERRUPTED)
        self.set()


@contextlib.contextmanager
def interruptions() -> Iterator[Interrupted]:
    """Catches signals in the main thread's event loop. Not `gentle` yet: a model that is being loaded cannot be stopped."""
    loop, interrupted = asyncio.get_running_loop(), Interrupted()
    for number in SIGNALS:
        loop.add_signal_handler(number, interrupted.signalled)
    try:
        yield interrupted
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)
