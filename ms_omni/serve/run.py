"""Starts a server, and ends it: one that listens on a socket, or one for an HTTP client in this process."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from types import FrameType
from typing import Any

import httpx
import uvicorn
from starlette.types import ASGIApp, Message

from ..errors import InputError
from .app import create_app
from .realtime.route import MESSAGE_BYTES
from .server import Server, load_model, make_engine
from .settings import MIB, Settings

INTERRUPTED = 130
KEEP_ALIVE_S, GRACE_S, POLL_S = 30, 10, 5
BASE_URL = "http://inside"
UNREAD_PIECES = 4
"""Pieces of an answer that may wait to be read; then the application waits."""


class Listener(uvicorn.Server):
    """uvicorn with our signals: for the first one `ending` is called in the event loop, a second one ends the process."""

    def __init__(self, config: uvicorn.Config, ending: Callable[[], None]):
        super().__init__(config)
        self.ending, self._loop, self._signalled = ending, asyncio.get_running_loop(), False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._signalled:
            os.write(2, b"ms-omni serve: ended at once\n")
            os._exit(INTERRUPTED)
        self._signalled = True
        self._loop.call_soon_threadsafe(self.ending)


def serve(settings: Settings) -> int:
    """Listens until it is told to end. Returns an exit code; raises what the model cannot be loaded for."""
    worker = asyncio.run(_serve(settings))
    if worker.is_alive():  # a model that is being loaded cannot be told to stop
        sys.stderr.flush()
        os._exit(0)
    return 0


async def _serve(settings):
    server, tasks = Server(settings), []

    def ending():
        count = len(server.worker.answers)
        server.report(f"ending; {count} answers are under way, a second signal gives them up" if count else "ending")
        server.drain()
        tasks.append(asyncio.ensure_future(end()))

    async def end():
        await server.drained()
        listener.should_exit = True

    config = uvicorn.Config(
        create_app(server),
        settings.host,
        settings.port,
        ssl_certfile=settings.certificate,
        ssl_keyfile=settings.certificate_key,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws_max_size=min(settings.max_body_bytes, MESSAGE_BYTES + MIB),  # with room to say what is too large
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=GRACE_S,
    )
    listener = Listener(config, ending)
    listening = asyncio.ensure_future(listener.serve(_bound(config)))
    starting = asyncio.ensure_future(server.start())
    tasks.append(asyncio.ensure_future(_close_silent(listener, settings.silence_s)))
    server.report(f"listening on {address(settings)}, but /ready says when questions are answered")
    try:
        await asyncio.wait([listening, starting], return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()  # raises why it cannot start
            stopped = asyncio.ensure_future(server.worker.stopped.wait())
            await asyncio.wait([listening, stopped], return_when=asyncio.FIRST_COMPLETED)
    finally:
        failure = server.worker.failure  # before the thread is told to end
        listener.should_exit = True
        await listening
        starting.cancel()
    if failure is not None:
        raise failure
    return server.worker


async def _close_silent(listener, silence_s):
    """Closes connections whose callers do not finish the head of a request: uvicorn waits for them for ever."""
    since: dict[Any, float] = {}
    while True:
        await asyncio.sleep(min(silence_s / 2, POLL_S))
        now = time.monotonic()
        connections = [connection for connection in listener.server_state.connections if _lacks_head(connection)]
        since = {connection: since.get(connection, now) for connection in connections}
        for connection, began in since.items():
            if now - began > silence_s:
                connection.transport.close()


def _lacks_head(connection):
    """Whether the head of a request is not whole; what waits for a next request is closed by uvicorn itself."""
    if not hasattr(connection, "cycle"):  # a websocket
        return False
    cycle = connection.cycle
    return cycle is None or (cycle.response_complete and connection.timeout_keep_alive_task is None)


def _bound(config):
    """The socket, bound before anything that takes long. Raises `InputError`."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    bound = socket.socket(family)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((config.host, config.port))
    except OSError as error:
        bound.close()
        reason = error.strerror or error
        raise InputError(
            f"cannot listen on {config.host}, port {config.port}: {reason}; choose another --host or --port"
        ) from None
    return [bound]


def address(settings: Settings) -> str:
    """Where browsers find the server."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"{'https' if settings.certificate else 'http'}://{host}:{settings.port}"


def follow(settings: Settings) -> int:
    """On the other ranks: executes what rank 0 plans."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # rank 0 ends them all
    make_engine(load_model(settings), settings).follow()
    return 0


# -- without a socket ------------------------------------------------------------------------------------------------


class LocalTransport(httpx.AsyncBaseTransport):
    """Sends requests to an ASGI application in this process. Answers come piece by piece (httpx's own transport collects them), and
    closing one tells the application that the caller has gone.
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
    """One request, and the body of its answer."""

    def __init__(self, body: bytes):
        self._messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        self._answer: asyncio.Queue[Message | None] = asyncio.Queue(UNREAD_PIECES)
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
        if not self._gone.is_set():  # like uvicorn, which reports a caller that has gone by `receive` alone
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
        while not self._answer.empty():  # the application may be waiting to put a piece
            self._answer.get_nowait()
        await asyncio.wait([self.task])
        if not self.task.cancelled():
            self.task.exception()  # which the application has logged


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
async def local_server(settings: Settings, log: Callable[[str], None]) -> AsyncIterator[tuple[Server, httpx.AsyncClient]]:
    """A server that is ready, and a client of it; it ends with the block. log: what the server does while it starts.

    Raises what the model cannot be loaded for.
    """
    server = Server(settings, log)
    async with httpx.AsyncClient(transport=LocalTransport(create_app(server)), base_url=BASE_URL, timeout=None) as client:
        try:
            await server.start()
            yield server, client
        finally:
            server.drain()
            await server.stop()
