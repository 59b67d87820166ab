"""The application of a server: its routes and its page, and the middleware that stands before them (keys, limits, access log)."""

import asyncio
import logging
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from ..errors import OmniError
from . import chat, metrics, speech, transcriptions
from .metrics import RequestTotals, request_totals
from .protocol import DISCONNECTED, ApiError, api_error, busy, is_ours, too_large, within
from .realtime import route as realtime
from .server import FAILED, READY, Server

LOG = logging.getLogger("ms_omni.serve")
STATIC = Path(__file__).parent / "static"
PAGE_HEADERS = {
    "Cache-Control": "no-cache",  # validated by its ETag, so that a new version is seen at once
    "Content-Security-Policy": "frame-ancestors 'none'",  # counts only as a header; what the page may load stands in the page
    "Permissions-Policy": "microphone=(self), camera=(self)",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
PROTECTED = ("/v1/", "/metrics")
"""What needs a key, if there are any."""
MAX_BODIES = 4
"""Bodies of the largest size that may be in memory together."""
PROBES = ("/health", "/ready", "/metrics")
"""Polled by machines: left out of the access log as long as they succeed."""
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "WS")
OTHER = "other"


def create_app(server: Server) -> Starlette:
    """The ASGI application of a server that is starting, or has started."""

    @asynccontextmanager
    async def lifespan(_) -> AsyncIterator[None]:
        yield
        await server.stop()

    middleware = [Middleware(AccessLog, server=server), Middleware(Limits, server=server)]
    if server.settings.origins:
        origins = list(server.settings.origins)
        middleware.insert(1, Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"]))
    app = Starlette(
        routes=[*ROUTES, *(route for module in ENDPOINTS for route in module.ROUTES)],
        middleware=middleware,
        exception_handlers={HTTPException: _http_error, **dict.fromkeys((ApiError, ValueError, Exception), _error)},
        lifespan=lifespan,
    )
    app.router.default = Page()  # as no route, so that methods that a route does not take are told from paths that are none
    app.state.server = server
    return app


def _http_error(request, error):
    """Of the router: no such path, or method."""
    messages = {
        404: f"there is no {request.url.path} here",
        405: f"{request.url.path} does not take {request.method}",
    }
    return ApiError(error.status_code, messages.get(error.status_code, str(error.detail)), headers=error.headers).response()


def _error(request, error):
    if is_ours(error):
        LOG.error("%s %s failed", getattr(request, "method", "WS"), request.url.path, exc_info=error)
    return api_error(error).response()


# -- small endpoints -------------------------------------------------------------------------------------------------


async def health(request: Request) -> Response:
    """200 as long as the process can do something; 503 when only a new start helps."""
    server = request.app.state.server
    failed = server.state == FAILED or server.worker.stopped.is_set()
    return JSONResponse({"status": FAILED if failed else server.state}, 503 if failed else 200)


async def ready(request: Request) -> Response:
    """200 when questions are answered, else 503; `doing` says what the server does meanwhile."""
    server = request.app.state.server
    return JSONResponse({"status": server.state, "doing": server.doing}, 200 if server.state == READY else 503)


async def models(request: Request) -> Response:
    """All models, which is one."""
    return JSONResponse({"object": "list", "data": [_described(request.app.state.server)]})


async def model(request: Request) -> Response:
    """One of them. 404 for others."""
    server = request.app.state.server
    server.check_model(request.path_params["name"])
    return JSONResponse(_described(server))


def _described(server):
    return {"id": server.settings.name, "object": "model", "created": server.created, "owned_by": "ms_omni"}


async def voices(request: Request) -> Response:
    """Names of the voices; none for a model that does not speak."""
    server = request.app.state.server
    server.check_ready()
    return JSONResponse({"voices": server.voices, "default": next(iter(server.voices), None)})


ENDPOINTS = (metrics, chat, speech, transcriptions, realtime)
ROUTES = [
    Route("/health", health),
    Route("/ready", ready),
    Route("/v1/models", models),
    Route("/v1/models/{name:path}", model),
    Route("/v1/audio/voices", voices),
]


class Page(StaticFiles):
    """The page at `/`, for all paths that are no route's."""

    def __init__(self):
        super().__init__(directory=STATIC, html=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            return await WebSocketClose()(scope, receive, send)
        await super().__call__(scope, receive, send)

    async def get_response(self, path: str, scope: Scope) -> Response:
        """As StaticFiles; raises HTTPException 404 and 405."""
        if scope["method"] not in ("GET", "HEAD") and not self.lookup_path(path)[1]:
            raise HTTPException(404)  # no such path in the API either, whatever the method
        response = await super().get_response(path, scope)
        response.headers.update(PAGE_HEADERS)
        return response


# -- limits ----------------------------------------------------------------------------------------------------------


class Limits:
    """Middleware: 401 and 403 for callers, 413 for bodies, 408 for callers who stop sending; those who stop reading are dropped."""

    def __init__(self, app: ASGIApp, server: Server):
        self.app, self.server = app, server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # sockets check keys themselves, which come another way there
            return await self.app(scope, receive, send)
        settings, headers = self.server.settings, Headers(scope=scope)
        begun = False

        async def limited_send(message: Message) -> None:
            nonlocal begun
            begun = True
            await within(settings.silence_s, send(message))  # TimeoutError: nobody reads

        body = _LimitedBody(self.server, receive, headers)
        try:
            if scope["path"].startswith(PROTECTED):
                self.server.check_caller(headers)
            body.check_declared()
            self.server.requests += 1
            try:
                await self.app(scope, body, limited_send)
            finally:
                self.server.requests -= 1
                self.server.body_bytes -= body.received
        except ClientDisconnect:  # in the middle of its body
            return
        except Exception as error:
            if begun and isinstance(error, asyncio.TimeoutError):  # nobody reads; uvicorn closes what is not complete
                return
            if begun:  # it is too late for a status
                raise
            if not isinstance(error, (ApiError, OmniError, asyncio.TimeoutError)):
                LOG.error("%s %s failed", scope["method"], scope["path"], exc_info=error)
            await api_error(error).response()(scope, receive, limited_send)


class _LimitedBody:
    """`receive` of one request, which counts the bytes of its body: `received`."""

    def __init__(self, server: Server, receive: Receive, headers: Headers):
        self._server, self._receive = server, receive
        self._declared = headers.get("content-length", "")
        self.received, self._whole = 0, False

    def check_declared(self) -> None:
        """Raises `ApiError` 413 for a body that says itself that it is too large."""
        if self._declared.isascii() and self._declared.isdigit():
            self._check(int(self._declared))

    def _check(self, length):
        limit = self._server.settings.max_body_bytes
        if length > limit:
            raise too_large(limit)

    async def __call__(self) -> Message:
        if self._whole:  # what comes now is that the caller goes away, whenever that is
            return await self._receive()
        settings = self._server.settings
        try:
            message = await within(settings.silence_s, self._receive())
        except asyncio.TimeoutError:
            raise ApiError(408, f"nothing came for {settings.silence_s:g} s, and the body is not whole") from None
        length = len(message.get("body", b""))
        self.received += length
        self._server.body_bytes += length
        self._whole = message["type"] != "http.request" or not message.get("more_body", False)
        self._check(self.received)
        if self._server.body_bytes > MAX_BODIES * settings.max_body_bytes:
            raise busy("the bodies of other requests fill the memory that is for them; try again later")
        return message


# -- access log ------------------------------------------------------------------------------------------------------


class AccessLog:
    """Middleware around all others: counts requests, and prints a line for each with how long it took. Contents stay out of it."""

    def __init__(self, app: ASGIApp, server: Server):
        self.app, self.server = app, server

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        started, status, totals = time.monotonic(), DISCONNECTED, RequestTotals()

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                status = message["status"]
            elif message["type"] == "websocket.accept":
                status = 101
            elif message["type"] == "websocket.close" and status == DISCONNECTED:
                status = 403  # which is what the server's client sees of a socket that was not accepted
            await send(message)

        token = request_totals.set(totals)
        try:
            await self.app(scope, receive, watched)
        finally:
            request_totals.reset(token)
            self._end(scope, status, time.monotonic() - started, totals)

    def _end(self, scope, status, seconds, totals):
        method, metrics = scope.get("method", "WS"), self.server.metrics
        method = method if method in METHODS else OTHER
        handler = _route_path(scope) or ("page" if status < 400 else OTHER)
        metrics.requests.labels(method, str(status), handler).inc()
        if method != "WS":  # which lasts as long as people talk
            metrics.request_s.labels(method, handler).observe(seconds)
        if not self.server.settings.access_log or (scope["path"] in PROBES and status == 200):
            return
        parts = [f"{1000 * seconds:.0f} ms"]
        totals.sum_up(last=True)
        if totals.prompt_tokens:
            parts.append(f"{totals.prompt_tokens} + {totals.tokens} tokens")
        if totals.sound_s:
            parts.append(f"{totals.sound_s:.2f} s of sound")
        moment = time.strftime("%Y-%m-%d %H:%M:%S")
        print(f"{moment} {method} {quote(scope['path'])[:200]} {status} {', '.join(parts)}", file=sys.stderr, flush=True)


def _route_path(scope):
    """The path as the routes have it, so that there are few labels whatever callers ask for. None for what is no route's."""
    endpoint = scope.get("endpoint")
    for route in getattr(scope.get("app"), "routes", ()):
        if endpoint is not None and getattr(route, "endpoint", None) is endpoint:
            return route.path
    return None
