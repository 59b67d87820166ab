"""What a relay and the servers behind it say to each other."""

from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager

from starlette.types import Scope

from .errors import ApiError, busy

CONNECT_S = 5.0
HOP = {
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
}
"""Headers that are between two neighbours."""
OWN = {"date", "server"}
"""Headers that each server writes for itself."""

Lease = Callable[..., AbstractAsyncContextManager[str]]
"""`async with lease(place, wait_s=...) as url`: the server for a place, which is at work until the end of the block. Raises
`ApiError` where there is none."""


def lost() -> ApiError:
    """What callers are told whose engine has ended under their request."""
    return busy("the engine that worked on this has ended, and another one takes over; ask again", 503, "engine_lost")


def sent_by(scope: Scope) -> list[tuple[str, str]]:
    """Headers of a request, names in small letters."""
    return [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]


def headers_of(scope: Scope) -> list[tuple[str, str]]:
    """Those that are passed on."""
    return [(name, value) for name, value in sent_by(scope) if name not in HOP]


def to_caller(raw: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Headers of an answer that are passed on."""
    return [(name.lower(), value) for name, value in raw if name.decode("latin-1").lower() not in HOP | OWN]


def target_of(url: str, scope: Scope) -> str:
    """The address that a request asks for, at another server."""
    path = scope.get("raw_path") or scope["path"].encode()
    query = scope.get("query_string", b"")
    return url + (path.split(b"?")[0] + (b"?" + query if query else b"")).decode("latin-1")
