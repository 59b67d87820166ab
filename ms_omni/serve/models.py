"""`/v1/models` and `/v1/audio/voices`."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route


def described(server) -> dict:
    """The model of a server, as OpenAI describes one."""
    return {"id": server.settings.name, "object": "model", "created": server.created, "owned_by": "ms_omni"}


async def models(request: Request) -> Response:
    """All models, which is one."""
    return JSONResponse({"object": "list", "data": [described(request.app.state.server)]})


async def model(request: Request) -> Response:
    """One of them. 404 for others."""
    server = request.app.state.server
    server.check_model(request.path_params["name"])
    return JSONResponse(described(server))


async def voices(request: Request) -> Response:
    """Names of the voices; none for a model that does not speak."""
    server = request.app.state.server
    server.check_ready()
    return JSONResponse({"voices": server.voices, "default": next(iter(server.voices), None)})


ROUTES = [Route("/v1/models", models), Route("/v1/models/{name:path}", model), Route("/v1/audio/voices", voices)]
