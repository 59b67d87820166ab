"""A socket that is passed on: what is said on one side is said on the other, until one of both has enough."""

import asyncio
import contextlib
import json
from urllib.parse import urlsplit

from starlette.types import Message, Receive, Scope, Send
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from .affinity import ANYWHERE
from .errors import ApiError
from .relay_words import CONNECT_S, Lease, headers_of, lost, target_of, to_caller

PING_S, NORMAL, BROKEN, REFUSED, TRY_LATER = 60.0, 1000, 1011, 1008, 1013
REASON_CHARACTERS = 120


async def pass_socket(lease: Lease, scope: Scope, receive: Receive, send: Send) -> None:
    """One connection from its beginning to its end. Neither side is read faster than the other takes it."""
    await receive()  # websocket.connect
    accepted = False
    try:
        async with lease(ANYWHERE) as url, _dial(url, scope) as engine:
            await send({"type": "websocket.accept", "subprotocol": engine.subprotocol})
            accepted = True
            await _talk(engine, receive, send)
    except InvalidStatus as error:
        found = error.response
        headers = [(name.encode(), value.encode()) for name, value in found.headers.raw_items()]
        await _deny(scope, send, found.status_code, to_caller(headers), found.body or b"")
    except (ApiError, WebSocketException, OSError, asyncio.TimeoutError) as error:
        problem = error if isinstance(error, ApiError) else lost()
        if accepted:
            return await _tell(send, problem)
        headers = [(b"content-type", b"application/json")]
        headers += [(name.lower().encode(), value.encode()) for name, value in problem.headers.items()]
        await _deny(scope, send, problem.status, headers, json.dumps(problem.body()).encode())


def _dial(url, scope):
    """A socket to an engine, which sees the host that the caller has asked for."""
    address, headers = urlsplit(url), dict(headers_of(scope))
    host = headers.pop("host", address.netloc)
    return connect(
        target_of(f"ws://{host}", scope),
        host=address.hostname,
        port=address.port,
        additional_headers=[pair for pair in headers.items() if not pair[0].startswith("sec-websocket")],
        subprotocols=scope.get("subprotocols") or None,
        user_agent_header=None,
        compression=None,
        proxy=None,
        max_size=None,
        open_timeout=CONNECT_S,
        ping_timeout=PING_S,
    )


async def _talk(engine, receive, send):
    """Until one of both has enough. Raises `ConnectionClosed` when the engine breaks off."""
    up = asyncio.ensure_future(_upwards(engine, receive))
    down = asyncio.ensure_future(_downwards(engine, send))
    try:
        await asyncio.wait([up, down], return_when=asyncio.FIRST_COMPLETED)
        if down.done():
            await down
            await send({"type": "websocket.close", "code": engine.close_code, "reason": engine.close_reason})
        else:  # the caller has gone
            await engine.close(await up)
    finally:
        for task in (up, down):
            task.cancel()
        await asyncio.gather(up, down, return_exceptions=True)


async def _upwards(engine, receive):
    """From a caller to his engine; returns the code to close with."""
    while True:
        message: Message = await receive()
        if message["type"] == "websocket.disconnect":
            return NORMAL
        with contextlib.suppress(ConnectionClosed):  # whoever reads from it says so
            await engine.send(message["bytes"] if message.get("text") is None else message["text"])


async def _downwards(engine, send):
    """From an engine to its caller, until it closes."""
    try:
        while True:
            data = await engine.recv()
            await send({"type": "websocket.send", "text" if isinstance(data, str) else "bytes": data})
    except ConnectionClosed as error:
        if error.rcvd is None:  # it has not said goodbye
            raise


async def _deny(scope, send, status, headers, body):
    """Before a socket is open: an HTTP answer where whoever listens can send one."""
    if "websocket.http.response" not in (scope.get("extensions") or {}):
        return await send({"type": "websocket.close", "code": TRY_LATER if status >= 500 else REFUSED})
    await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})


async def _tell(send, error):
    """On an open socket: an event as the realtime protocol has it, then the end."""
    event = {"type": "error", "event_id": "event_engine_lost", "error": {**error.body()["error"], "event_id": None}}
    with contextlib.suppress(Exception):
        await send({"type": "websocket.send", "text": json.dumps(event)})
        await send({"type": "websocket.close", "code": BROKEN, "reason": error.message[:REASON_CHARACTERS]})
