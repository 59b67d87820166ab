"""Talking to a server of OpenAI's API, ours or another: addresses, errors, and the chunks of an answer that is streamed."""

import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING, Any

from .errors import InputError

if TYPE_CHECKING:  # only commands that talk to a server need it
    import httpx

JSON = {"Content-Type": "application/json"}
SILENCE_S, CONNECT_S = 300.0, 10.0
LOOPBACK = ("all://127.0.0.1", "all://localhost", "all://[::1]")
"""Which are not asked by way of a proxy."""


class ServerError(Exception):
    """An error that a server reports, or an answer of it that cannot be used."""


def api_base(url: str) -> str:
    """Where the API begins: an address with or without /v1. Raises `InputError` for no address."""
    import httpx

    try:
        known = url.startswith(("http://", "https://")) and httpx.URL(url).host
    except httpx.InvalidURL:
        known = False
    if not known:
        raise InputError(f"--url is {url!r}, expected http://... or https://...")
    url = url.rstrip("/")
    return url if url.endswith("/v1") else f"{url}/v1"


def api_client(key: str | None = None) -> "httpx.AsyncClient":
    """For as many calls at a time as one likes; an answer may be silent for `SILENCE_S`."""
    import httpx

    return httpx.AsyncClient(
        headers={"Authorization": f"Bearer {key}"} if key else {},
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
        timeout=httpx.Timeout(SILENCE_S, connect=CONNECT_S),
        mounts=dict.fromkeys(LOOPBACK),
    )


async def first_model(client: "httpx.AsyncClient", base: str) -> str:
    """The first name that a server gives. Raises `InputError` where none answers."""
    import httpx

    try:
        response = await client.get(f"{base}/models")
        response.raise_for_status()
        return response.json()["data"][0]["id"]
    except httpx.HTTPStatusError as error:
        raise InputError(f"{base}/models answers {refusal(error.response)}") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise InputError(f"nobody answers at {base}: {error or type(error).__name__}") from None
    except (ValueError, LookupError, TypeError):
        raise InputError(f"{base}/models does not name a model; give it with --model") from None


async def chunks(client: "httpx.AsyncClient", base: str, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
    """The chunks of a chat completion, as they come.

    Raises `ServerError` when the server refuses, reports an error or ends in the middle, and `httpx.HTTPError`.
    """
    content = json.dumps(body).encode()  # httpx's own refuses what a terminal may give, bytes that are no text
    async with client.stream("POST", f"{base}/chat/completions", content=content, headers=JSON) as response:
        if response.status_code != 200:
            await response.aread()
            raise ServerError(refusal(response))
        async for chunk in events(response.aiter_lines()):
            yield chunk


async def events(lines: AsyncIterator[str]) -> AsyncIterator[dict[str, Any]]:
    """The objects of server-sent events until [DONE]. Raises `ServerError` for an error among them, and when [DONE] is missing."""
    done = False
    async for line in lines:
        kind, _, data = line.partition(":")
        if (
            kind != "data" or done
        ):  # comments, names, empty lines; the end is waited for, so that the connection can be used again
            continue
        if data.strip() == "[DONE]":
            done = True
            continue
        yield _object(data)
    if not done:
        raise ServerError("the stream ended without [DONE]")


def _object(data):
    try:
        found = json.loads(data)
    except ValueError:
        raise ServerError(f"the stream has a line that is not JSON: {data.strip()!r:.80}") from None
    if not isinstance(found, dict):
        raise ServerError(f"the stream has a line that is no object: {data.strip()!r:.80}")
    if error := found.get("error"):
        raise ServerError(message_of(found) or str(error))
    return found


def refusal(response: "httpx.Response") -> str:
    """The message of an answer that was read, and is an error."""
    try:
        message = message_of(response.json())
    except ValueError:
        message = None
    return f"{response.status_code}: {message or response.reason_phrase}"


def message_of(body: Any) -> str | None:
    """The message of an error object of OpenAI's, or of a similar one."""
    error = body.get("error", body) if isinstance(body, dict) else body
    message = (error.get("message") or error.get("detail")) if isinstance(error, dict) else error
    return message if isinstance(message, str) else None
