"""A server without a socket: its application is called by an HTTP client of this process, for the commands that ask it themselves."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import httpx
from starlette.types import ASGIApp, Message

from .app import create_app
from .server import Server
from .settings import Settings

BASE_URL = "http://inside"
AHEAD = 4
"""Pieces of an answer that may wait to be read; then the application waits."""


class Inside(httpx.AsyncBaseTransport):
    """Sends requests to an ASGI application. Answers come piece by piece (httpx's own transport has them whole); whoever closes one
    has gone away, as a socket would say it.
    """

    def __init__(self, app: ASGIApp):
        self._app = app

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """The answer, as soon as its head is known. Raises what the application raises."""
        call = _Call(await request.aread())
        call.task = asyncio.ensure_future(call.run(self._app, _scope(request)))
        try:
            head = await call.next()
        except BaseException:
            await call.aclose()
            raise
        if head is None:
            raise httpx.RemoteProtocolError("the application ended without an answer", request=request)
        return httpx.Response(head["status"], headers=head["headers"], stream=call)


class _Call(httpx.AsyncByteStream):
    """One request, and its answer's body."""

    def __init__(self, body: bytes):
        self._messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        self._answer: asyncio.Queue[Message | None] = asyncio.Queue(AHEAD)
        self._gone = asyncio.Event()
        self.task: asyncio.Future = asyncio.get_running_loop().create_future()

    async def run(self, app, scope):
        try:
            await app(scope, self._receive, self._send)
        finally:
            if not self._gone.is_set():
                await self._answer.put(None)

    async def _receive(self) -> Message:
        if self._messages:
            return self._messages.pop()
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if not self._gone.is_set():  # else nobody takes it, which uvicorn tells by `receive` alone as well
            await self._answer.put(message)

    async def next(self) -> Message | None:
        """The next message of the application; None behind the last one."""
        message = await self._answer.get()
        if message is None:
            await self.task
        return message

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (message := await self.next()) is not None:
            yield message.get("body", b"")
            if not message.get("more_body", False):
                return

    async def aclose(self) -> None:
        self._gone.set()
        while not self._answer.empty():  # the application may be waiting for somebody to take a piece
            self._answer.get_nowait()
        await asyncio.wait([self.task])
        self.task.cancelled() or self.task.exception()  # which the application has logged


def _scope(request):
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": request.method,
        "headers": [(name.lower(), value) for name, value in request.headers.raw],
        "scheme": request.url.scheme,
        "path": request.url.path,
        "raw_path": request.url.raw_path.split(b"?")[0],
        "query_string": request.url.query,
        "server": (request.url.host, request.url.port),
        "client": ("127.0.0.1", 0),
        "root_path": "",
    }


@contextlib.asynccontextmanager
async def running(settings: Settings, tell: Callable[[str], None]) -> AsyncIterator[tuple[Server, httpx.AsyncClient]]:
    """A server that is ready, and a client of it; it ends with the block. tell: is told what it does while it starts.

    Raises what the model cannot be loaded for.
    """
    server = Server(settings, tell)
    async with httpx.AsyncClient(transport=Inside(create_app(server)), base_url=BASE_URL, timeout=None) as client:
        try:
            await server.start()
            yield server, client
        finally:
            server.drain()
            await server.stop()
