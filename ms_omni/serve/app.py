"""The routes of a server, and what stands before all of them: keys, limits, errors."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .errors import ApiError, api_error
from .limits import Limits
from .page import Page
from .server import FAILED, READY, Server
from .watch import Watch

LOG = logging.getLogger("ms_omni.serve")


def create_app(server: Server) -> Starlette:
    """The ASGI application of a server that is starting, or has started."""

    @asynccontextmanager
    async def lifespan(_) -> AsyncIterator[None]:
        yield
        await server.stop()

    middleware = [Middleware(Watch, server=server), Middleware(Limits, server=server)]
    if server.settings.origins:
        origins = list(server.settings.origins)
        middleware.insert(1, Middleware(CORSMiddleware, allow_origins=origins, allow_methods=["*"], allow_headers=["*"]))
    handlers = {HTTPException: _http_error, Exception: _error}
    app = Starlette(routes=_routes(), middleware=middleware, exception_handlers=handlers, lifespan=lifespan)
    app.router.default = Page()  # as no route, so that methods that a route does not take are told from paths that are none
    app.state.server = server
    for kind in (ApiError, ValueError):
        app.add_exception_handler(kind, _error)
    return app


def _routes():
    from . import chat, metrics, models, speech, transcriptions
    from .realtime import route as realtime

    own = [*models.ROUTES, *metrics.ROUTES, *chat.ROUTES, *speech.ROUTES, *transcriptions.ROUTES, *realtime.ROUTES]
    return [Route("/health", health), Route("/ready", ready), *own]


async def health(request: Request) -> Response:
    """200 as long as the process can do something; 503 when only a new start helps."""
    server = request.app.state.server
    failed = server.state == FAILED or server.worker.stopped.is_set()
    return JSONResponse({"status": FAILED if failed else server.state}, 503 if failed else 200)


async def ready(request: Request) -> Response:
    """200 when questions are answered, else 503; `doing` says what it is at."""
    server = request.app.state.server
    return JSONResponse({"status": server.state, "doing": server.said}, 200 if server.state == READY else 503)


def _http_error(request, error):
    """Of the router: no such path, or method."""
    messages = {
        404: f"there is no {request.url.path} here",
        405: f"{request.url.path} does not take {request.method}",
    }
    return ApiError(error.status_code, messages.get(error.status_code, str(error.detail)), headers=error.headers).response()


def _error(request, error):
    answer = api_error(error)
    if answer.status >= 500 and not isinstance(error, ApiError):
        LOG.error("%s %s failed", getattr(request, "method", "WS"), request.url.path, exc_info=error)
    return answer.response()
