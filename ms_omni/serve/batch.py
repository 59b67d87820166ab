"""A file of requests answered by the engine, as many at a time as it has rows: what `POST` would answer, without a server."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx
from tqdm import tqdm

from ..api_client import JSON
from ..errors import ProcessError
from ..parallel.mesh import under_msrun
from .batch_files import Answers, Requests
from .errors import ApiError
from .inside import running
from .schema import MOST_CHOICES
from .settings import Settings

AHEAD = 4
"""Requests beside those at work: their media are decoded meanwhile."""
PATHS = ("/v1/chat/completions",)
UNAVAILABLE = 503
FAILED, INTERRUPTED = 1, 130
SIGNALS = (signal.SIGINT, signal.SIGTERM)


def batch(settings: Settings, requests: Requests, answers: Answers, tell: Callable[[str], None]) -> int:
    """Answers what is not answered yet. Returns an exit code: 0 all requests succeeded, 1 some did not, 130 interrupted.

    Raises what the model cannot be loaded for, and `ProcessError` when the engine has stopped.
    """
    return asyncio.run(_batch(settings, requests, answers, tell))


async def _batch(settings, requests, answers, tell):
    at_once = settings.max_rows + AHEAD
    settings = replace(settings, max_queue=at_once * MOST_CHOICES)  # whatever they ask for, none is turned away
    if requests.left or under_msrun():  # other ranks wait for somebody to follow
        with interruptions() as interrupted:
            async with running(settings, tell) as (_, client):
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
    """A line of the answers. Raises `ProcessError` when nobody is there who could answer."""
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
        raise ApiError(
            400, f"a batch answers POST {' and '.join(PATHS)}, got {method!r:.20} {path!r:.80}", "url", "invalid_url"
        )
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

    def hear(self) -> None:
        """A signal has come."""
        if self.is_set() or not self.gentle:
            os.write(2, b"\nms-omni: interrupted\n")
            os._exit(INTERRUPTED)
        self.set()


@contextlib.contextmanager
def interruptions() -> Iterator[Interrupted]:
    """Signals are heard; for the main thread's event loop. Not gently yet: nobody can stop a model that is being loaded."""
    loop, interrupted = asyncio.get_running_loop(), Interrupted()
    for number in SIGNALS:
        loop.add_signal_handler(number, interrupted.hear)
    try:
        yield interrupted
    finally:
        for number in SIGNALS:
            loop.remove_signal_handler(number)
