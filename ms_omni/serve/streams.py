"""Answers that go on for a while: sent as server-sent events, and given up when nobody waits for them any more."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .errors import ApiError, api_error

EVENTS = "text/event-stream"
LOG = logging.getLogger("ms_omni.serve")
HEARTBEAT_S = 15.0
"""After so long without an event a comment is sent, so that nobody on the way closes the connection."""
AGAIN_S = 0.05
HEARTBEAT = b": still at work\n\n"
DONE = b"data: [DONE]\n\n"
CLOSED = 499
"""As nginx has it: the caller went away."""

Found = TypeVar("Found")


def event(data: Any, name: str | None = None) -> bytes:
    """A server-sent event with JSON."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


def error_event(error: Exception) -> bytes:
    """The event of what went wrong in the middle of an answer; what is no mistake of the caller's is logged."""
    told = api_error(error)
    if told.status >= 500 and not isinstance(error, ApiError):
        LOG.error("an answer failed in its middle", exc_info=error)
    return event(told.body())


async def within(seconds: float, work: Awaitable[Found]) -> Found:
    """What work returns; `asyncio.TimeoutError` if that takes longer. Unlike `asyncio.wait_for` before Python 3.12 it never keeps a
    cancellation to itself.
    """
    task = asyncio.ensure_future(work)
    try:
        done, _ = await asyncio.wait([task], timeout=seconds)
    except BaseException:
        task.cancel()
        raise
    if not done:
        task.cancel()
        raise asyncio.TimeoutError
    return task.result()


async def unless_gone(request: Request, work: Awaitable[Found]) -> Found:
    """What work returns; it is cancelled as soon as the caller goes away. The body must have been read."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request.receive))
    try:
        await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ApiError(CLOSED, "the caller has gone")
    finally:
        await _ended(task, gone)


class EventStream(Response):
    """Sends events, which are bytes of whole ones, until there are no more or nobody listens; then it closes their generator.

    media_type: of anything else that is sent in pieces, none of them empty; closed: called at the end, also where the caller was gone
    before the generator began, which does not hear of it then.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        media_type: str = EVENTS,
        closed: Callable[[], None] = lambda: None,
    ):
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}, media_type=media_type)
        del self.headers["content-length"]
        self._events, self._closed = events, closed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending, gone = asyncio.ensure_future(self._send(send)), asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait([sending, gone], return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            await _ended(sending, gone)
            self._closed()

    async def _send(self, send):
        pending = None
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            while True:
                pending = pending or asyncio.ensure_future(anext(self._events, b""))
                await asyncio.wait([pending], timeout=HEARTBEAT_S if self.media_type == EVENTS else None)
                data = pending.result() if pending.done() else HEARTBEAT
                if pending.done():
                    pending = None
                await send({"type": "http.response.body", "body": data, "more_body": bool(data)})
                if not data:
                    return
        finally:
            if pending is not None:
                await _ended(pending)
            await self._events.aclose()


async def _gone(receive):
    while (await receive())["type"] != "http.disconnect":
        pass


async def _ended(*tasks):
    """Cancels tasks and waits until they are over."""
    left = set(tasks)
    while left:  # one may have swallowed it: `asyncio.wait_for` does at times, up to Python 3.11
        for task in left:
            task.cancel()
        done, left = await asyncio.wait(left, timeout=AGAIN_S)
        for task in done:
            with suppress(asyncio.CancelledError):
                task.exception()
