"""Starts a server, and ends it: a first signal lets the answers under way end, a second one does not."""

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn

from ..errors import InputError
from .app import create_app
from .realtime.route import MESSAGE_BYTES
from .server import Server, load_model, make_engine
from .settings import MIB, Settings

INTERRUPTED = 130
KEEP_ALIVE_S, GRACE_S, LOOK_S = 30, 10, 5


class Listener(uvicorn.Server):
    """Hears of signals: `ending` is called for the first one, in the event loop; a second one ends the process."""

    def __init__(self, config: uvicorn.Config, ending: Callable[[], None]):
        super().__init__(config)
        self.ending, self._loop, self._told = ending, asyncio.get_running_loop(), False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._told:
            os.write(2, b"ms-omni serve: ended at once\n")
            os._exit(INTERRUPTED)
        self._told = True
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
        server.say(f"ending; {count} answers are under way, a second signal gives them up" if count else "ending")
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
    server.say(f"listening on {address(settings)}, but /ready says when questions are answered")
    try:
        await asyncio.wait([listening, starting], return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()  # raises why it cannot
            stopped = asyncio.ensure_future(server.worker.stopped.wait())
            await asyncio.wait([listening, stopped], return_when=asyncio.FIRST_COMPLETED)
    finally:
        failure = server.worker.failure  # before it is told to end
        listener.should_exit = True
        await listening
        starting.cancel()
    if failure is not None:
        raise failure
    return server.worker


async def _close_silent(listener, silence_s):
    """Closes connections whose callers do not get to the end of a request's head: uvicorn waits for them for ever."""
    since: dict[Any, float] = {}
    while True:
        await asyncio.sleep(min(silence_s / 2, LOOK_S))
        now = time.monotonic()
        since = {one: since.get(one, now) for one in listener.server_state.connections if _waits(one)}
        for one, began in since.items():
            if now - began > silence_s:
                one.transport.close()


def _waits(connection):
    """Whether the head of a request is not whole; what waits for a next request is closed by uvicorn itself."""
    if not hasattr(connection, "cycle"):  # a socket's
        return False
    cycle = connection.cycle
    return cycle is None or (cycle.response_complete and connection.timeout_keep_alive_task is None)


def _bound(config):
    """Sockets that are listened on, before anything that takes long. Raises `InputError`."""
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
    """Where browsers find it."""
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"{'https' if settings.certificate else 'http'}://{host}:{settings.port}"


def follow(settings: Settings) -> int:
    """On the other ranks: does what rank 0 plans."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # rank 0 ends them all
    make_engine(load_model(settings), settings).follow()
    return 0
