"""What callers are told when something is wrong: OpenAI's error object, with its status."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError
from starlette.responses import JSONResponse, Response

from ..errors import OmniError, ProcessError

TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
MISTAKES = 1000
"""More of them are counted only: each would be made an object to look at."""
BUSY_S = 1
"""After so many seconds a caller who was turned away may ask again."""


class ApiError(Exception):
    """An answer that is an error: HTTP status, a message for people, and OpenAI's `param` (the argument at fault) and `code`."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    @property
    def type(self) -> str:
        """OpenAI's name for errors of this status."""
        return TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")

    def body(self) -> dict[str, Any]:
        """`{"error": {"message", "type", "param", "code"}}`."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """As an HTTP answer."""
        return JSONResponse(self.body(), self.status, self.headers)


def busy(message: str, status: int = 429, code: str = "rate_limit_exceeded", again: bool = True) -> ApiError:
    """A refusal that says when to come again; again: whether OpenAI's clients are to do so by themselves."""
    headers = {"Retry-After": str(BUSY_S), **({} if again else {"x-should-retry": "false"})}
    return ApiError(status, message, code=code, headers=headers)


def api_error(error: BaseException) -> ApiError:
    """What an exception means for the caller: his mistakes are 400, ours 500."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ValidationError):
        return _invalid(error)
    if isinstance(error, ProcessError):
        return busy(str(error), 503, "unavailable")
    if isinstance(error, OmniError):
        return ApiError(400, str(error))
    return ApiError(500, "something went wrong here; the server's log has more", code="internal_error")


def wrong_throughout(error: ValidationError) -> ApiError:
    """Of a body with more than `MISTAKES`."""
    message = f"it is wrong in {error.error_count()} places; send a shorter one to hear what is wrong"
    return ApiError(400, message, code="invalid_value")


def _invalid(error: ValidationError) -> ApiError:
    """The first thing that is wrong with a body, named as in the body."""
    if error.error_count() > MISTAKES:
        return wrong_throughout(error)
    first = error.errors(include_url=False, include_context=False)[0]
    param = ".".join(str(part) for part in first["loc"])
    given = first.get("input")
    shown = (
        "" if first["type"] in ("missing", "extra_forbidden") or isinstance(given, (dict, list)) else f", got {given!r:.80}"
    )
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"unknown argument {param!r}; leave it out", param, "unknown_parameter")
    return ApiError(400, f"{param}: {message}{shown}" if param else message, param or None)
