"""The page that a server shows at `/`: static files, with headers that keep it to itself."""

from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocketClose

STATIC = Path(__file__).parent / "static"
# What the page may load stands in its own Content-Security-Policy; a frame's rule counts only as a header.
HEADERS = {
    "Cache-Control": "no-cache",  # asked again with its ETag, so that a new version is seen at once
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Permissions-Policy": "microphone=(self), camera=(self)",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Page(StaticFiles):
    """For all paths that are nothing else's."""

    def __init__(self):
        super().__init__(directory=STATIC, html=True)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # there is none at this path
            return await WebSocketClose()(scope, receive, send)
        await super().__call__(scope, receive, send)

    async def get_response(self, path: str, scope: Scope) -> Response:
        """As StaticFiles; raises HTTPException 404 and 405."""
        if scope["method"] not in ("GET", "HEAD") and not self.lookup_path(path)[1]:
            raise HTTPException(404)  # no such path in the API either, whatever the method
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response
