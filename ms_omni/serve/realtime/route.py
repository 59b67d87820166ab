"""`/v1/realtime`: who may open a socket, and how it is read and written."""

import asyncio
import contextlib
import json
from collections import deque
from typing import Any

from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from ..protocol import ApiError, busy, invalid, within
from ..server import DRAINING, Server
from .session import Session

PROTOCOL, KEY_PROTOCOL = "realtime", "openai-insecure-api-key."
"""Browsers cannot send headers with a socket, so a key may come among its protocols."""
MESSAGE_BYTES = 48 << 20
MAX_UNSENT_BYTES = 2 * MESSAGE_BYTES
"""Of events that wait behind the one that a client is reading: half an hour of sound, or its largest item twice."""
POLL_S = 0.25
NORMAL, POLICY, RESTART = 1000, 1008, 1012


class Outbox:
    """Events on their way to a client that reads as fast as it likes, up to a limit."""

    def __init__(self, socket: WebSocket, silence_s: float):
        self._socket, self._silence_s = socket, silence_s
        self._waiting: deque[str] = deque()
        self._bytes, self._news = 0, asyncio.Event()
        self._closed = False

    def put(self, event: dict[str, Any]) -> None:
        """Sends an event when its turn comes."""
        text = json.dumps(event, separators=(",", ":"))  # in ASCII: whatever is in it can be sent
        self._waiting.append(text)
        self._bytes += len(text)
        self._news.set()

    def close(self) -> None:
        """Nothing follows."""
        self._closed = True
        self._news.set()

    async def run(self) -> str:
        """Until it is closed and all is sent, or nobody reads. Returns why it ended, "" if all is well."""
        while True:
            while self._waiting:
                if self._bytes - len(self._waiting[0]) > MAX_UNSENT_BYTES:
                    return f"{self._bytes >> 20} MiB of events were not read"
                text = self._waiting.popleft()
                try:
                    await within(self._silence_s, self._socket.send_text(text))
                except asyncio.TimeoutError:
                    return f"nothing was read for {self._silence_s:g} s"
                self._bytes -= len(text)
            if self._closed:
                return ""
            self._news.clear()
            await self._news.wait()


async def realtime(socket: WebSocket) -> None:
    """A conversation, from the handshake on."""
    server: Server = socket.app.state.server
    protocols = socket.scope.get("subprotocols", [])
    key = next((name.removeprefix(KEY_PROTOCOL) for name in protocols if name.startswith(KEY_PROTOCOL)), None)
    try:
        server.check_caller(socket.headers, key)
        server.check_ready()
        server.check_model(socket.query_params.get("model") or None)
        if len(server.sessions) >= server.settings.max_sessions:
            raise busy(f"{len(server.sessions)} realtime sessions are open already; try again later")
    except ApiError as error:
        return await socket.send_denial_response(error.response())
    entry = object()  # added before the handshake, during which other callers come
    server.sessions.add(entry)
    try:
        await socket.accept(subprotocol=PROTOCOL if PROTOCOL in protocols else None)
        outbox = Outbox(socket, server.settings.silence_s)
        session = Session(server, outbox.put)
        try:
            await _converse(socket, server, session, outbox)
        finally:
            session.close()
    finally:
        server.sessions.discard(entry)


async def _converse(socket, server, session, outbox):
    """Until one side closes."""
    sending, reading = asyncio.ensure_future(outbox.run()), asyncio.ensure_future(_read(socket, server, session))
    draining = asyncio.ensure_future(_drained(server, session))
    tasks = (sending, reading, draining)
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if sending in done:
            return await _close(socket, POLICY, _outcome(sending))
        code, reason = _outcome(reading if reading in done else draining) or (NORMAL, "")
        if code is None:  # the client has gone
            return
        session.fail(ApiError(503 if code == RESTART else 400, reason, code="session_ended"))
        outbox.close()
        await asyncio.wait([sending], timeout=server.settings.silence_s)
        await _close(socket, code, reason)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _outcome(task):
    try:
        return task.result()
    except (WebSocketDisconnect, RuntimeError, OSError):  # the client has gone while something was sent to it
        return (None, "")


async def _close(socket, code, reason):
    if not isinstance(reason, str):
        return
    with contextlib.suppress(RuntimeError, OSError, WebSocketDisconnect):
        await socket.close(code, reason[:120])


async def _read(socket, server, session) -> tuple[int | None, str]:
    """Why it ended: a code and a reason; no code if the client has gone."""
    idle_s = server.settings.session_idle_s
    most = min(MESSAGE_BYTES, server.settings.max_body_bytes)
    while True:
        try:
            message = await within(idle_s, socket.receive())
        except asyncio.TimeoutError:
            return POLICY, f"the client sent nothing for {idle_s:g} s"
        if message["type"] == "websocket.disconnect":
            return None, ""
        text = message.get("text")
        if text is None:
            session.fail(invalid("events are JSON in text frames, not binary ones", code="invalid_event"))
        elif len(text) > most:
            session.fail(invalid(f"an event has {len(text)} bytes, at most {most} are taken", code="event_too_large"))
        else:
            await session.handle(text)


async def _drained(server, session) -> tuple[int, str]:
    """Waits until the server ends and the session's response is done."""
    while server.state != DRAINING or session.active is not None or session.detached:
        await asyncio.sleep(POLL_S)
    return RESTART, "the server is ending"


ROUTES = [WebSocketRoute("/v1/realtime", realtime)]
