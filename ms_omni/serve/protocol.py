"""What all endpoints share: bodies of JSON that are read strictly, OpenAI's error objects, and streams of server-sent events."""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from ..errors import OmniError, ProcessError

LOG = logging.getLogger("ms_omni.serve")
ERROR_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
MAX_MISTAKES = 1000
"""More of them are only counted: pydantic makes an object of each one that is looked at."""
RETRY_AFTER_S = 1
MAX_DEPTH = 200
MAX_SEPARATORS, MAX_VALUES = 1_000_000, 100_000
"""What a small body can hold at most: reading, checking and explaining an item costs many times what sending it costs."""
EVENT_STREAM = "text/event-stream"
HEARTBEAT_S = 15.0
"""A stream without events for so long gets a comment, so that no proxy closes the connection."""
HEARTBEAT = b": still at work\n\n"
DONE = b"data: [DONE]\n\n"
CANCEL_AGAIN_S = 0.05
DISCONNECTED = 499
"""nginx's status for callers who went away before there was one."""

Result = TypeVar("Result")


# -- errors ----------------------------------------------------------------------------------------------------------


class ApiError(Exception):
    """An answer that is an error: HTTP status, a message for people, and OpenAI's `param` (the argument at fault) and `code`."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    @property
    def type(self) -> str:
        """OpenAI's name for errors of this status."""
        return ERROR_TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")

    @property
    def fields(self) -> dict[str, Any]:
        """`{"message", "type", "param", "code"}`."""
        return {"message": self.message, "type": self.type, "param": self.param, "code": self.code}

    def body(self) -> dict[str, Any]:
        """`{"error": {...}}`."""
        return {"error": self.fields}

    def response(self) -> Response:
        """As an HTTP answer."""
        return JSONResponse(self.body(), self.status, self.headers)


def invalid(message: str, param: str | None = None, code: str | None = "invalid_value") -> ApiError:
    """A 400; param: the argument at fault."""
    return ApiError(400, message, param, code)


def refuse(param: str, message: str, code: str | None = "invalid_value") -> ApiError:
    """A 400 whose message begins with the argument at fault."""
    return invalid(f"{param}: {message}", param, code)


def missing(param: str) -> ApiError:
    """A 400 for an argument that is needed."""
    return invalid(f"{param} is missing", param, "missing_required_parameter")


def too_large(limit: int) -> ApiError:
    """A 413 for a body of more bytes than that."""
    return ApiError(413, f"the body is larger than {limit} bytes, the most that this server takes", code="request_too_large")


def busy(message: str, status: int = 429, code: str = "rate_limit_exceeded", again: bool = True) -> ApiError:
    """A refusal that says when to come again; again: whether OpenAI's clients are to do so by themselves."""
    headers = {"Retry-After": str(RETRY_AFTER_S), **({} if again else {"x-should-retry": "false"})}
    return ApiError(status, message, code=code, headers=headers)


def api_error(error: BaseException) -> ApiError:
    """What an exception means for the caller: his mistakes are 400, ours 500."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ValidationError):
        return _first_mistake(error)
    if isinstance(error, ProcessError):
        return busy(str(error), 503, "unavailable")
    if isinstance(error, OmniError):
        return ApiError(400, str(error))
    return ApiError(500, "something went wrong here; the server's log has more", code="internal_error")


def is_ours(error: BaseException) -> bool:
    """Whether an exception is no mistake of the caller's, and belongs into the log."""
    return not isinstance(error, ApiError) and api_error(error).status >= 500


def _too_many_mistakes(error):
    return invalid(f"it is wrong in {error.error_count()} places; send a shorter one to hear what is wrong")


def _unknown_argument(param):
    return invalid(f"unknown argument {param!r}; leave it out", param, "unknown_parameter")


def _first_mistake(error):
    if error.error_count() > MAX_MISTAKES:
        return _too_many_mistakes(error)
    first = error.errors(include_url=False, include_context=False)[0]
    param = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return _unknown_argument(param)
    given, message = first.get("input"), first["msg"].removeprefix("Value error, ")
    if first["type"] != "missing" and not isinstance(given, (dict, list)):
        message += f", got {given!r:.80}"
    return ApiError(400, f"{param}: {message}" if param else message, param or None)


# -- JSON bodies -----------------------------------------------------------------------------------------------------


class Body(BaseModel):
    """What callers send: nothing else than is named, and of no other type. None means that it was left out."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


BodyType = TypeVar("BodyType", bound=Body)


async def read_body(request: Request, kind: type[BodyType]) -> BodyType:
    """The body of a request. Raises `ApiError` 400 that names what is wrong with it."""
    return parse_body(await request.body(), kind)


def parse_body(text: bytes | str, kind: type[BodyType]) -> BodyType:
    """A body from its JSON. Raises `ApiError` 400."""
    check_separators(text)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise invalid(f"the body is not JSON: {str(error)[:200]}", code="invalid_json") from None
    return validate_body(value, kind)


def check_separators(text: bytes | str) -> None:
    """Raises `ApiError` 413 for JSON whose objects would fill the memory. Base64 has none of these letters."""
    if sum(text.count(mark) if isinstance(text, str) else text.count(mark.encode()) for mark in ",[{") > MAX_SEPARATORS:
        raise ApiError(
            413,
            f"the body holds more than {MAX_SEPARATORS} commas and brackets, the most that this server takes",
            code="request_too_large",
        )


def validate_body(value: Any, kind: type[BodyType]) -> BodyType:
    """A body from what JSON gave. Raises `ApiError` 400."""
    if not isinstance(value, dict):
        raise ApiError(400, f"the body is {_shown(value)}, expected a JSON object")
    check_values(value, "the body")
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise _deepest_mistake(error, value) from None


def check_values(value: Any, what: str) -> None:
    """Raises `ApiError` 400 for what JSON can say and nothing behind it can take, or not while others wait."""
    if sum(1 for _ in islice(_values(value), MAX_VALUES + 1)) > MAX_VALUES:
        raise invalid(f"{what} holds more than {MAX_VALUES} values, the most that this server takes")
    if _depth(value) > MAX_DEPTH:
        raise invalid(f"{what} is nested more than {MAX_DEPTH} deep")
    if not all(_is_unicode(text) for text in _values(value) if isinstance(text, str)):
        raise invalid(f"{what} has a text that is no Unicode: half of a pair of surrogates")


def _deepest_mistake(error, value):
    """What is wrong, by the name that it has in the body: of a union's branches the deepest error is of the one that was meant."""
    if error.error_count() > MAX_MISTAKES:
        return _too_many_mistakes(error)
    mistakes = [(_path(mistake, value), mistake) for mistake in error.errors(include_url=False, include_context=False)]
    path, first = max(mistakes, key=lambda pair: len(pair[0]))
    param = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".")
    if first["type"] == "extra_forbidden":
        return _unknown_argument(param)
    if first["type"] == "missing":
        return missing(param)
    texts = {mistake["msg"].removeprefix("Value error, ") for where, mistake in mistakes if where == path}
    message = " or ".join(sorted(text[:1].lower() + text[1:] for text in texts))
    if first["type"] != "value_error":  # our own messages name the value where that helps
        message += f", got {_shown(first.get('input'))}"
    return refuse(param, message) if param else invalid(message)


def _path(mistake, value):
    """Where it is, without the names of a union's branches, which nobody has written."""
    path, location = [], mistake["loc"]
    for number, step in enumerate(location):
        absent = mistake["type"] == "missing" and number == len(location) - 1
        if isinstance(value, dict) and (step in value or absent):
            value = value.get(step)
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            value = value[step]
        else:
            continue
        path.append(step)
    return tuple(path)


def _depth(value):
    depth, level = 0, [value]
    while level and depth <= MAX_DEPTH:
        depth += 1
        inner = [parent.values() if isinstance(parent, dict) else parent for parent in level]
        level = [item for items in inner for item in items if isinstance(item, (dict, list))]
    return depth


def _values(value) -> Iterator[Any]:
    """Everything in it, names included."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        yield item
        if isinstance(item, dict):
            waiting += [*item, *item.values()]
        elif isinstance(item, list):
            waiting += item


def _is_unicode(text):
    """JSON can name halves of surrogate pairs, which tokenizers and answers cannot."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _shown(value):
    names = {dict: "an object", list: "a list", bool: "true" if value is True else "false", type(None): "null"}
    return names.get(type(value)) or (f"{value!r:.80}" if isinstance(value, (str, int, float)) else "something else")


# -- streams ---------------------------------------------------------------------------------------------------------


def event(data: Any) -> bytes:
    """A server-sent event with JSON."""
    return f"data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


def error_event(error: Exception) -> bytes:
    """The event of what went wrong in the middle of an answer; what is no mistake of the caller's is logged."""
    if is_ours(error):
        LOG.error("an answer failed in its middle", exc_info=error)
    return event(api_error(error).body())


async def within(seconds: float, work: Awaitable[Result]) -> Result:
    """What work returns; `asyncio.TimeoutError` if that takes longer. Unlike `asyncio.wait_for` before Python 3.12 it never swallows
    a cancellation.
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


async def unless_disconnected(request: Request, work: Awaitable[Result]) -> Result:
    """What work returns; it is cancelled as soon as the caller goes away. The body must have been read."""
    task, disconnected = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request.receive))
    try:
        await asyncio.wait([task, disconnected], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ApiError(DISCONNECTED, "the caller has gone")
    finally:
        await _cancelled(task, disconnected)


class EventStream(Response):
    """Sends events, which are bytes of whole ones, until there are no more or nobody reads; then it closes their generator.

    media_type: of anything else that is sent in pieces, none of them empty; closed: called at the end, also where the caller was gone
    before the generator began, whose own `finally` does not run then.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        media_type: str = EVENT_STREAM,
        closed: Callable[[], None] = lambda: None,
    ):
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}, media_type=media_type)
        del self.headers["content-length"]
        self._events, self._closed = events, closed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending, disconnected = asyncio.ensure_future(self._send(send)), asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait([sending, disconnected], return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            await _cancelled(sending, disconnected)
            self._closed()

    async def _send(self, send):
        pending = None
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            while True:
                pending = pending or asyncio.ensure_future(anext(self._events, b""))
                await asyncio.wait([pending], timeout=HEARTBEAT_S if self.media_type == EVENT_STREAM else None)
                data = pending.result() if pending.done() else HEARTBEAT
                if pending.done():
                    pending = None
                await send({"type": "http.response.body", "body": data, "more_body": bool(data)})
                if not data:
                    return
        finally:
            if pending is not None:
                await _cancelled(pending)
            await self._events.aclose()


async def _disconnected(receive):
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cancelled(*tasks):
    """Cancels tasks and waits until they are over."""
    left = set(tasks)
    while left:  # `asyncio.wait_for` swallows a cancellation at times, up to Python 3.11
        for task in left:
            task.cancel()
        done, left = await asyncio.wait(left, timeout=CANCEL_AGAIN_S)
        for task in done:
            with suppress(asyncio.CancelledError):
                task.exception()
