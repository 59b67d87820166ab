"""An ASGI application that passes requests and sockets on to one of several servers, unchanged, and their answers back, as they come."""

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from urllib.parse import urlsplit

import aiohttp
from starlette.types import Message, Receive, Scope, Send
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from yarl import URL

from .affinity import ANY_ENGINE, affinity_of
from .metrics import merged
from .protocol import EVENT_STREAM, ApiError, busy, too_large

LOG = logging.getLogger("ms_omni.serve")
CONNECT_S = 5.0
TRIES = 3
LARGE_BYTES = 1 << 20
"""Bodies above are parsed in a thread."""
METRICS, CHAT = "/metrics", "/v1/chat/completions"
HEALTH, HEALTH_WAIT_S = ("/health", "/ready"), 5.0
"""Probes do not wait long."""
HOP_HEADERS = {
    *(
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    )
}
"""For the next hop alone."""
OWN_HEADERS = {"date", "server"}
"""Which each server writes for itself."""
PING_S, NORMAL, BROKEN, REFUSED, TRY_LATER = 60.0, 1000, 1011, 1008, 1013
REASON_CHARACTERS = 120

Lease = Callable[..., AbstractAsyncContextManager[str]]
"""`async with lease(affinity, wait_s=...) as url`: the server for a request, which counts as busy until the end of the block. Raises
`ApiError` where there is none."""


def engine_lost() -> ApiError:
    """For callers whose engine has ended under their request."""
    return busy("the engine that worked on this has ended, and another one takes over; ask again", 503, "engine_lost")


def request_headers(scope: Scope) -> list[tuple[str, str]]:
    """Headers of a request that are passed on, names in lower case."""
    pairs = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]
    return [(name, value) for name, value in pairs if name not in HOP_HEADERS]


def answer_headers(raw: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Headers of an answer that are passed on."""
    return [(name.lower(), value) for name, value in raw if name.decode("latin-1").lower() not in HOP_HEADERS | OWN_HEADERS]


def target(url: str, scope: Scope) -> str:
    """The address that a request asks for, at another server."""
    path = scope.get("raw_path") or scope["path"].encode()
    query = scope.get("query_string", b"")
    return url + (path.split(b"?")[0] + (b"?" + query if query else b"")).decode("latin-1")


class Relay:
    """lease: finds the server that is to answer; engines: returns the addresses of all by their names.

    max_bytes: of a chat request, which is read whole to find its conversation.
    """

    _session: aiohttp.ClientSession

    def __init__(self, lease: Lease, engines: Callable[[], Awaitable[Mapping[str, str]]], max_bytes: int):
        self._lease, self._engines, self._max_bytes = lease, engines, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._lifespan(receive, send)
        if not hasattr(self, "_session"):  # which needs a running event loop
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
                connector=aiohttp.TCPConnector(limit=0),
                auto_decompress=False,
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        if scope["type"] == "websocket":
            await relay_socket(self._lease, scope, receive, send)
        else:
            await self._http(scope, receive, send)

    async def _lifespan(self, receive, send):
        while True:
            kind = (await receive())["type"]
            if kind == "lifespan.shutdown" and hasattr(self, "_session"):
                await self._session.close()
            await send({"type": f"{kind}.complete"})
            if kind == "lifespan.shutdown":
                return

    async def _http(self, scope, receive, send):
        answer = _Answer(send)
        whole = asyncio.Event()
        metrics = scope["path"] == METRICS
        work = self._metrics(scope, answer) if metrics else self._pass(scope, _Upload(receive, whole), answer)
        passing = asyncio.ensure_future(work)
        watching = asyncio.ensure_future(_disconnected(receive, whole))
        try:
            await asyncio.wait([passing, watching], return_when=asyncio.FIRST_COMPLETED)
            if passing.done():
                await passing
        except _LeftError:
            pass
        except ApiError as error:
            await error.response()(scope, receive, send)
        except (aiohttp.ClientError, OSError) as error:
            LOG.warning("%s %s: its engine is gone: %s", scope["method"], scope["path"], error or type(error).__name__)
            await answer.broken(scope, receive)
        finally:  # the answer of a caller who has gone is cancelled
            for task in (passing, watching):
                task.cancel()
            await asyncio.gather(passing, watching, return_exceptions=True)

    async def _pass(self, scope, upload, answer):
        affinity, body = ANY_ENGINE, upload
        if not {name.lower() for name, _ in scope["headers"]} & {b"content-length", b"transfer-encoding"}:
            body = await upload.whole_body(0) or None
        elif scope["method"] == "POST" and scope["path"] == CHAT:
            body = await upload.whole_body(self._max_bytes)
            affinity = await asyncio.to_thread(affinity_of, body) if len(body) > LARGE_BYTES else affinity_of(body)
        for left in reversed(range(TRIES)):
            async with self._lease(affinity, *([HEALTH_WAIT_S] if scope["path"] in HEALTH else [])) as url:
                try:
                    return await self._forward(url, scope, body, answer)
                except aiohttp.ClientConnectorError:  # it has ended, and has got nothing of this request
                    if not left:
                        raise

    async def _metrics(self, scope, answer):
        """Those of all engines. What one of them refuses is refused."""
        pages, status, headers, page = {}, 200, [], b""
        for name, url in (await self._engines()).items():
            path = URL(target(url, scope), encoded=True)
            async with self._session.request(scope["method"], path, headers=request_headers(scope)) as response:
                status, page = response.status, await response.read()
                headers = [(key, value) for key, value in answer_headers(response.raw_headers) if key != b"content-length"]
            if status != 200:
                break
            pages[name] = page.decode()
        else:
            page = merged(pages).encode()
        await answer.begin(status, headers)
        await answer.send(page)
        await answer.end()

    async def _forward(self, url, scope, body, answer):
        headers, path = request_headers(scope), URL(target(url, scope), encoded=True)
        async with self._session.request(
            scope["method"], path, headers=headers, data=body, allow_redirects=False
        ) as response:
            await answer.begin(response.status, answer_headers(response.raw_headers))
            async for piece in response.content.iter_any():
                await answer.send(piece)
            await answer.end()


class _Answer:
    """The answer to a caller, and what of it has been sent."""

    def __init__(self, send):
        self._send, self._status, self._kind = send, None, b""

    async def begin(self, status, headers):
        self._status, self._kind = status, dict(headers).get(b"content-type", b"")
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def send(self, piece):
        await self._send({"type": "http.response.body", "body": piece, "more_body": True})

    async def end(self):
        await self._send({"type": "http.response.body", "body": b""})

    async def broken(self, scope, receive):
        """An error object where one can still be sent; else the answer breaks off, which clients see."""
        problem = engine_lost()
        if self._status is None:
            await problem.response()(scope, receive, self._send)
        elif self._kind.startswith(EVENT_STREAM.encode()):
            await self.send(f"\n\nevent: error\ndata: {json.dumps(problem.body())}\n\n".encode())
            await self.end()
        else:
            raise ConnectionError(problem.message)


class _LeftError(Exception):
    """The caller went away before his request was whole."""


class _Upload:
    """The body of a request, piece by piece."""

    def __init__(self, receive, whole):
        self._receive, self._whole = receive, whole

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise _LeftError
            yield message.get("body", b"")
            if not message.get("more_body", False):
                self._whole.set()
                return

    async def whole_body(self, limit):
        """All of it. Raises `ApiError` 413."""
        pieces, size = [], 0
        async for piece in self:
            pieces.append(piece)
            size += len(piece)
            if size > limit:
                raise too_large(limit)
        return b"".join(pieces)


async def _disconnected(receive, whole):
    """Returns when the caller has gone."""
    await whole.wait()
    while (await receive())["type"] != "http.disconnect":
        pass


async def relay_socket(lease: Lease, scope: Scope, receive: Receive, send: Send) -> None:
    """One connection from its beginning to its end. Neither side is read faster than the other takes it."""
    await receive()  # websocket.connect
    accepted = False
    try:
        async with lease(ANY_ENGINE) as url, _dial(url, scope) as engine:
            await send({"type": "websocket.accept", "subprotocol": engine.subprotocol})
            accepted = True
            await _relay_messages(engine, receive, send)
    except InvalidStatus as error:
        response = error.response
        headers = [(name.encode(), value.encode()) for name, value in response.headers.raw_items()]
        await _deny(scope, send, response.status_code, answer_headers(headers), response.body or b"")
    except (ApiError, WebSocketException, OSError, asyncio.TimeoutError) as error:
        problem = error if isinstance(error, ApiError) else engine_lost()
        if accepted:
            return await _close_broken(send, problem)
        headers = [(b"content-type", b"application/json")]
        headers += [(name.lower().encode(), value.encode()) for name, value in problem.headers.items()]
        await _deny(scope, send, problem.status, headers, json.dumps(problem.body()).encode())


def _dial(url, scope):
    """A socket to an engine, which sees the host that the caller has asked for."""
    address, headers = urlsplit(url), dict(request_headers(scope))
    host = headers.pop("host", address.netloc)
    return connect(
        target(f"ws://{host}", scope),
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


async def _relay_messages(engine, receive, send):
    """Until one of both closes. Raises `ConnectionClosed` when the engine breaks off."""
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
        with contextlib.suppress(ConnectionClosed):  # which `_downwards` reports
            await engine.send(message["bytes"] if message.get("text") is None else message["text"])


async def _downwards(engine, send):
    """From an engine to its caller, until the engine closes."""
    try:
        while True:
            data = await engine.recv()
            await send({"type": "websocket.send", "text" if isinstance(data, str) else "bytes": data})
    except ConnectionClosed as error:
        if error.rcvd is None:  # without a closing handshake
            raise


async def _deny(scope, send, status, headers, body):
    """Before a socket is open: an HTTP answer where the server in front of this application can send one."""
    if "websocket.http.response" not in (scope.get("extensions") or {}):
        return await send({"type": "websocket.close", "code": TRY_LATER if status >= 500 else REFUSED})
    await send({"type": "websocket.http.response.start", "status": status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": body})


async def _close_broken(send, error):
    """On an open socket: an event as the realtime protocol has it, then the end."""
    event = {"type": "error", "event_id": "event_engine_lost", "error": {**error.fields, "event_id": None}}
    with contextlib.suppress(Exception):
        await send({"type": "websocket.send", "text": json.dumps(event)})
        await send({"type": "websocket.close", "code": BROKEN, "reason": error.message[:REASON_CHARACTERS]})
