"""Before any request is looked at: its key, the size of its body, and how long its sender may keep still."""

import asyncio
import logging

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import OmniError
from .errors import ApiError, api_error, busy
from .server import Server
from .streams import within

OPEN = ("/health", "/ready")
"""For whoever asks, as is the page; everything below `/v1` and `/metrics` needs a key, if there are any."""
PROTECTED = ("/v1/", "/metrics")
BODIES = 4
"""Bodies of the largest size that may be under way together."""
LOG = logging.getLogger("ms_omni.serve")


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

        counted = _Counted(self.server, receive, headers)
        try:
            if scope["path"].startswith(PROTECTED):
                self.server.check_caller(headers)
            counted.check_declared()
            self.server.requests += 1
            try:
                await self.app(scope, counted, limited_send)
            finally:
                self.server.requests -= 1
                self.server.body_bytes -= counted.received
        except ClientDisconnect:  # in the middle of its body: nobody is there to be told
            return
        except Exception as error:
            if begun and isinstance(error, asyncio.TimeoutError):  # nobody reads; uvicorn closes what is not complete
                return
            if begun:  # it is too late for a status
                raise
            if not isinstance(error, (ApiError, OmniError, asyncio.TimeoutError)):
                LOG.error("%s %s failed", scope["method"], scope["path"], exc_info=error)
            await api_error(error).response()(scope, receive, limited_send)


class _Counted:
    """`receive` of one request, which counts the bytes of its body: `received`."""

    def __init__(self, server: Server, receive: Receive, headers: Headers):
        self._server, self._receive = server, receive
        self._declared = headers.get("content-length", "")
        self.received, self._whole = 0, False

    def check_declared(self) -> None:
        """Raises `ApiError` 413 for a body that says itself that it is too large."""
        most = self._server.settings.max_body_bytes
        if self._declared.isascii() and self._declared.isdigit() and int(self._declared) > most:
            raise _too_large(most)

    async def __call__(self) -> Message:
        if self._whole:  # what comes now is that the caller goes away, whenever that is
            return await self._receive()
        settings = self._server.settings
        most = settings.max_body_bytes
        try:
            message = await within(settings.silence_s, self._receive())
        except asyncio.TimeoutError:
            raise ApiError(408, f"nothing came for {settings.silence_s:g} s, and the body is not whole") from None
        length = len(message.get("body", b""))
        self.received += length
        self._server.body_bytes += length
        self._whole = message["type"] != "http.request" or not message.get("more_body", False)
        if self.received > most:
            raise _too_large(most)
        if self._server.body_bytes > BODIES * most:
            raise busy("the bodies of other requests fill the memory that is for them; try again later")
        return message


def _too_large(most):
    return ApiError(413, f"the body is larger than {most} bytes, the most that this server takes", code="request_too_large")
