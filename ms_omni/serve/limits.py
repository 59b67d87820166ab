"""Before any request is looked at: its key, the size of its body, and how long its sender may keep still."""

import asyncio
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import ApiError, api_error
from .server import Server
from .streams import within

OPEN = ("/health", "/ready")
"""For whoever asks, as is the page; everything below `/v1` and `/metrics` needs a key, if there are any."""
PROTECTED = ("/v1/", "/metrics")


class Limits:
    """Middleware: 401 and 403 for callers, 413 for bodies, 408 for senders that keep still; readers that do are left alone."""

    def __init__(self, app: ASGIApp, server: Server):
        self.app, self.server = app, server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # sockets look at keys themselves, which come another way there
            return await self.app(scope, receive, send)
        settings, headers = self.server.settings, Headers(scope=scope)
        begun = False

        async def limited_send(message: Message) -> None:
            nonlocal begun
            begun = True
            await within(settings.silence_s, send(message))  # TimeoutError: nobody reads

        try:
            if scope["path"].startswith(PROTECTED):
                self.server.check_caller(headers)
            await self.app(scope, _limited(receive, headers, settings), limited_send)
        except (ApiError, asyncio.TimeoutError) as error:
            if begun:  # it is too late for a status
                raise
            await api_error(error).response()(scope, receive, send)


def _limited(receive: Receive, headers: Headers, settings: Any) -> Receive:
    """`receive` that counts."""
    most, received, whole = settings.max_body_bytes, 0, False
    declared = headers.get("content-length", "")
    if declared.isdigit() and int(declared) > most:
        raise _too_large(most)

    async def limited() -> Message:
        nonlocal received, whole
        if whole:  # what comes now is that the caller goes away, whenever that is
            return await receive()
        try:
            message = await within(settings.silence_s, receive())
        except asyncio.TimeoutError:
            raise ApiError(408, f"nothing came for {settings.silence_s:g} s, and the body is not whole") from None
        received += len(message.get("body", b""))
        whole = message["type"] != "http.request" or not message.get("more_body", False)
        if received > most:
            raise _too_large(most)
        return message

    return limited


def _too_large(most):
    return ApiError(413, f"the body is larger than {most} bytes, the most that this server takes", code="request_too_large")
