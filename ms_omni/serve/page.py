"""The page that a server shows at `/`: static files, with headers that keep it to itself."""

from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

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
    """To be mounted at `/`, after everything else."""

    def __init__(self):
        super().__init__(directory=STATIC, html=True)

    async def get_response(self, path: str, scope: Scope) -> Response:
        """As StaticFiles; raises HTTPException 404 and 405."""
        if scope["method"] not in ("GET", "HEAD") and not self.lookup_path(path)[1]:
            raise HTTPException(404)  # no such path in the API either, whatever the method
        response = await super().get_response(path, scope)
        response.headers.update(HEADERS)
        return response
