"""An ASGI application that passes requests on to one of several servers, unchanged, as they come, and their answers back."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

import aiohttp
from starlette.types import Receive, Scope, Send
from yarl import URL

from .affinity import ANYWHERE, place_of
from .errors import ApiError
from .relay_metrics import merged
from .relay_socket import pass_socket
from .relay_words import CONNECT_S, Lease, headers_of, lost, sent_by, target_of, to_caller

LOG = logging.getLogger("ms_omni.serve")
TRIES = 3
LARGE_BYTES = 1 << 20
"""Bodies above are read off the event loop."""
STREAM = "text/event-stream"
METRICS, CHAT = "/metrics", "/v1/chat/completions"
HEALTH, HEALTH_WAIT_S = ("/health", "/ready"), 5.0
"""Whoever asks for these does not wait long."""


class Relay:
    """lease: finds the server that is to answer; engines: returns the addresses of all by their names.

    most_bytes: of a chat request, which is read whole to find its conversation.
    """

    def __init__(self, lease: Lease, engines: Callable[[], Awaitable[Mapping[str, str]]], most_bytes: int):
        self._lease, self._engines, self._most = lease, engines, most_bytes
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._lifespan(receive, send)
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
                connector=aiohttp.TCPConnector(limit=0),
                auto_decompress=False,
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        if scope["type"] == "websocket":
            await pass_socket(self._lease, scope, receive, send)
        else:
            await self._http(scope, receive, send)

    async def _lifespan(self, receive, send):
        while True:
            kind = (await receive())["type"]
            if kind == "lifespan.shutdown" and self._session is not None:
                await self._session.close()
            await send({"type": f"{kind}.complete"})
            if kind == "lifespan.shutdown":
                return

    async def _http(self, scope, receive, send):
        answer = _Answer(send)
        whole = asyncio.Event()
        work = (
            self._metrics(scope, answer) if scope["path"] == METRICS else self._pass(scope, _Upload(receive, whole), answer)
        )
        passing = asyncio.ensure_future(work)
        watching = asyncio.ensure_future(_gone(receive, whole))
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
        finally:  # a caller who has gone takes his answer with him
            for task in (passing, watching):
                task.cancel()
            await asyncio.gather(passing, watching, return_exceptions=True)

    async def _pass(self, scope, upload, answer):
        place, body = ANYWHERE, upload
        if not any(name in ("content-length", "transfer-encoding") for name, _ in sent_by(scope)):
            body = await upload.whole_body(0) or None
        elif scope["method"] == "POST" and scope["path"] == CHAT:
            body = await upload.whole_body(self._most)
            place = await asyncio.to_thread(place_of, body) if len(body) > LARGE_BYTES else place_of(body)
        for left in reversed(range(TRIES)):
            async with self._lease(place, *([HEALTH_WAIT_S] if scope["path"] in HEALTH else [])) as url:
                try:
                    return await self._ask(url, scope, body, answer)
                except aiohttp.ClientConnectorError:  # it has ended, and has heard nothing of this yet
                    if not left:
                        raise

    async def _metrics(self, scope, answer):
        """Those of all engines. What one of them refuses is refused."""
        pages = {}
        for name, url in (await self._engines()).items():
            path = URL(target_of(url, scope), encoded=True)
            async with self._session.request(scope["method"], path, headers=headers_of(scope)) as found:
                page = await found.read()
                headers = [(key, value) for key, value in to_caller(found.raw_headers) if key != b"content-length"]
            if found.status != 200:
                break
            pages[name] = page.decode()
        else:
            page = merged(pages).encode()
        await answer.begin(found.status, headers)
        await answer.go_on(page)
        await answer.end()

    async def _ask(self, url, scope, body, answer):
        headers, path = headers_of(scope), URL(target_of(url, scope), encoded=True)
        async with self._session.request(scope["method"], path, headers=headers, data=body, allow_redirects=False) as found:
            await answer.begin(found.status, to_caller(found.raw_headers))
            async for piece in found.content.iter_any():
                await answer.go_on(piece)
            await answer.end()


class _Answer:
    """What has been said to a caller so far."""

    def __init__(self, send):
        self._send, self._status, self._kind = send, None, b""

    async def begin(self, status, headers):
        self._status, self._kind = status, dict(headers).get(b"content-type", b"")
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def go_on(self, piece):
        await self._send({"type": "http.response.body", "body": piece, "more_body": True})

    async def end(self):
        await self._send({"type": "http.response.body", "body": b""})

    async def broken(self, scope, receive):
        """An error object where one can still be sent; else the answer breaks off, which clients see."""
        problem = lost()
        if self._status is None:
            await problem.response()(scope, receive, self._send)
        elif self._kind.startswith(STREAM.encode()):
            await self.go_on(f"\n\nevent: error\ndata: {json.dumps(problem.body())}\n\n".encode())
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

    async def whole_body(self, most):
        """All of it. Raises `ApiError` 413."""
        pieces, size = [], 0
        async for piece in self:
            pieces.append(piece)
            size += len(piece)
            if size > most:
                raise ApiError(
                    413, f"the body is larger than {most} bytes, the most that this server takes", code="request_too_large"
                )
        return b"".join(pieces)


async def _gone(receive, whole):
    """Ends when the caller has gone."""
    await whole.wait()
    while (await receive())["type"] != "http.disconnect":
        pass
