"""Bytes of media that are no files: behind an http(s) address, where each host is looked up once, checked, and asked at the very
address that was checked; and in a text itself, as base64 or in a data: URI.
"""

from __future__ import annotations

import base64
import binascii
import http.client
import io
import math
import re
import socket
import ssl
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import IO, Any

from ms_omni.errors import MediaError
from ms_omni.files import spooled
from ms_omni.input.access import AccessPolicy, is_public

ACCEPTED = "a path, a file://, http:// or https:// address, a data: URI, base64, bytes or an open binary file"
DICT_ACCEPTED = "url, path, bytes, base64 or data, or array with sampling_rate"
_URL_SAFE = str.maketrans("-_", "+/")
_BASE64 = re.compile(r"[A-Za-z0-9+/_\s-]*")
_SHORTEST = 64  # shorter ones could be names of files; none holds a dot
_PIECE = 1 << 20
"""Characters decoded at a time: a single call holds the interpreter's lock."""
_TAIL = 64  # characters at the end, among which padding may be
_READ_BYTES = 1 << 20
_POLL_S = 0.5  # how often a wait checks whether it was cancelled
_PORTS = {"http": 80, "https": 443}
_REDIRECTS = (301, 302, 303, 307, 308)


def download(address: str, policy: AccessPolicy, limit_bytes: int, name: str) -> bytes | IO[bytes]:
    """The body at an http(s) address: bytes, or a temporary file for a large one.

    Args:
        name: for the error message.

    Raises:
        MediaError: it cannot be fetched, is too large, takes too long, or the policy does not allow where it leads.
    """
    try:
        return _follow(address, policy, limit_bytes)
    except (OSError, ValueError, http.client.HTTPException) as error:  # UnicodeError and ssl's errors among them
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        plain = "".join(
            letter if letter.isprintable() else "?" for letter in reason[:300]
        )  # a message of the server may hold control characters
        raise MediaError(f"The {name} cannot be downloaded: {plain.rstrip('.')}.") from error


def lookup(host: str, port: int) -> list[tuple[Any, ...]]:
    """The addresses of a host, as `socket.getaddrinfo` gives them; the only function that looks names up."""
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)


@dataclass(frozen=True)
class _Target:
    """One parsed address in ASCII."""

    address: str
    scheme: str
    host: str
    port: int
    path: str
    headers: dict[str, str]

    @classmethod
    def parse(cls, address: str) -> _Target:
        parts = urllib.parse.urlsplit(address)
        if parts.scheme not in _PORTS:
            raise ValueError(f"it leads to {parts.scheme}://, and only http:// and https:// are followed")
        host = parts.hostname or ""
        host = host if host.isascii() else host.encode("idna").decode()
        if not re.fullmatch(r"[A-Za-z0-9._:%-]+", host):
            raise ValueError("the address names no host" if not host else f"{host!r} is no name of a host")
        default = _PORTS[parts.scheme]
        port = default if parts.port is None else parts.port
        named = f"[{host}]" if ":" in host else host
        headers = {"Host": named if port == default else f"{named}:{port}"}
        if parts.username is not None:
            headers["Authorization"] = _basic(parts.username, parts.password)
        path, query = (urllib.parse.quote(text, safe="/%:@!$&'()*+,;=~?-._[]") for text in (parts.path, parts.query))
        return cls(address, parts.scheme, host, port, (path or "/") + (f"?{query}" if query else ""), headers)


def _basic(user: str, password: str | None) -> str:
    pair = f"{urllib.parse.unquote(user)}:{urllib.parse.unquote(password or '')}"
    return "Basic " + base64.b64encode(pair.encode()).decode()


class DownloadDeadline:
    """How long all downloads of a block may take together, from now on; `cancel` ends them earlier."""

    def __init__(self, total_s: float):
        self.total_s, self.end, self._cancelled = total_s, time.monotonic() + total_s, threading.Event()

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """Holds for what this thread downloads in the block."""
        token = _deadline.set(self)
        try:
            yield
        finally:
            _deadline.reset(token)

    def cancel(self) -> None:
        """Ends the downloads within a second or, while a server is looked up or connected to, within that wait; from any thread."""
        self._cancelled.set()

    def left_s(self) -> float:
        """Seconds that are left. Raises `TimeoutError` when there are none."""
        if self._cancelled.is_set():
            raise TimeoutError("nobody waits for it any more")
        left = self.end - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"the downloads took over {self.total_s:g} s together")
        return left


_deadline: ContextVar[DownloadDeadline | None] = ContextVar("download deadline", default=None)


class _Clock:
    """How long a download may still take."""

    def __init__(self, policy: AccessPolicy):
        self.policy, self.end, self.deadline = policy, time.monotonic() + policy.total_s, _deadline.get()

    def left_s(self) -> float:
        """Seconds that the next wait may take. Raises `TimeoutError` when none are left."""
        together = math.inf if self.deadline is None else self.deadline.left_s()
        left = self.end - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"it took over {self.policy.total_s:g} s; download it yourself and give the path")
        return min(left, together, self.policy.silence_s)


class _Timed(io.RawIOBase):
    """What a server sends, within the limits for silence and for the whole download."""

    def __init__(self, connection: socket.socket, clock: _Clock):
        self.connection, self.clock = connection, clock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        silent = time.monotonic() + self.clock.policy.silence_s
        while True:
            self.connection.settimeout(min(self.clock.left_s(), max(silent - time.monotonic(), 0.001), _POLL_S))
            try:
                return self.connection.recv_into(buffer)
            except TimeoutError:
                self.clock.left_s()
                if time.monotonic() >= silent:
                    raise TimeoutError(f"nothing came for {self.clock.policy.silence_s:g} s") from None

    def makefile(self, *_: Any) -> io.BufferedReader:
        """As `http.client` asks a socket for it."""
        return io.BufferedReader(self)


def _follow(address: str, policy: AccessPolicy, limit_bytes: int) -> bytes | IO[bytes]:
    clock, referrer = _Clock(policy), None
    for _ in range(policy.redirects + 1):
        target = _Target.parse(address)
        if target.scheme not in policy.schemes:
            raise ValueError(f"{target.scheme}:// may not be asked")
        connection, peer, proxy = _connect(target, policy, referrer, clock)
        with connection:
            response = _request(connection, target, proxy, clock)
            location = response.getheader("Location")
            if response.status not in _REDIRECTS or not location:
                return _body(response, limit_bytes)
        referrer = (target.host, peer)
        address = urllib.parse.urljoin(address, location.encode("iso-8859-1").decode("utf-8", "replace"))
    raise ValueError(f"it is redirected over {policy.redirects} times")


def _connect(
    target: _Target, policy: AccessPolicy, referrer: tuple[str, str | None] | None, clock: _Clock
) -> tuple[socket.socket, str | None, _Target | None]:
    """A connection to the target, encrypted if it asks for that; the IP address; the proxy that is to be sent the whole address."""
    if not policy.may_look_up(target.host):
        raise ValueError(f"{target.host} is not among the hosts that may be asked")
    proxy = _proxy(target, policy)
    try:
        endpoints = lookup(target.host, target.port)
    except OSError as error:
        if proxy is None:
            raise ValueError(f"the host {target.host} cannot be looked up: {error.strerror or error}") from error
        endpoints = []  # the proxy may be able to
    refusals = {
        peer: policy.refusal(target.host, peer, referrer) for peer in [endpoint[4][0] for endpoint in endpoints] or [None]
    }
    allowed = [peer for peer, refusal in refusals.items() if refusal is None]
    if not allowed:
        raise ValueError(next(filter(None, refusals.values())))
    if proxy is not None and (allowed[0] is None or is_public(allowed[0])):
        connection, peer = _first_connection(lookup(proxy.host, proxy.port), clock), allowed[0]
    else:
        connection, proxy = _first_connection([endpoint for endpoint in endpoints if endpoint[4][0] in allowed], clock), None
        peer = connection.getpeername()[0]
    if target.scheme == "http":
        return connection, peer, proxy
    try:
        if proxy is not None:
            _tunnel(connection, proxy, target, clock)
        connection.settimeout(clock.left_s())
        return ssl.create_default_context().wrap_socket(connection, server_hostname=target.host), peer, None
    except BaseException:
        connection.close()
        raise


def _first_connection(endpoints: list[tuple[Any, ...]], clock: _Clock) -> socket.socket:
    """A connection to the first of the endpoints that accepts one."""
    failed: OSError | None = None
    for family, kind, protocol, _, endpoint in endpoints:
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(clock.left_s())
            connection.connect(endpoint)
            return connection
        except OSError as error:
            connection.close()
            failed = error
    raise failed or ValueError("the host has no address")


def _proxy(target: _Target, policy: AccessPolicy) -> _Target | None:
    """The proxy that the environment names for an address."""
    named = urllib.request.getproxies().get(target.scheme) if policy.proxies else None
    if not named or urllib.request.proxy_bypass(target.host):
        return None
    proxy = _Target.parse(named if "://" in named else f"http://{named}")
    if proxy.scheme != "http":
        raise ValueError(f"the environment names a proxy of the kind {proxy.scheme}://, and only http:// ones are known")
    return proxy


def _tunnel(connection: socket.socket, proxy: _Target, target: _Target, clock: _Clock) -> None:
    named = f"[{target.host}]" if ":" in target.host else target.host
    response = _send(connection, "CONNECT", f"{named}:{target.port}", {**target.headers, **_for_proxy(proxy)}, clock)
    if response.status != 200:
        raise ValueError(f"the proxy {proxy.host} answers HTTP {response.status} {response.reason}")


def _for_proxy(proxy: _Target) -> dict[str, str]:
    return {f"Proxy-{name}": value for name, value in proxy.headers.items() if name == "Authorization"}


def _request(connection: socket.socket, target: _Target, proxy: _Target | None, clock: _Clock) -> http.client.HTTPResponse:
    if proxy is None:
        return _send(connection, "GET", target.path, target.headers, clock)
    return _send(
        connection, "GET", f"http://{target.headers['Host']}{target.path}", {**target.headers, **_for_proxy(proxy)}, clock
    )


def _send(
    connection: socket.socket, method: str, path: str, headers: dict[str, str], clock: _Clock
) -> http.client.HTTPResponse:
    headers = {**headers, "User-Agent": "ms-omni", "Accept": "*/*", "Accept-Encoding": "identity", "Connection": "close"}
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    connection.settimeout(clock.left_s())
    connection.sendall("\r\n".join(lines).encode("ascii"))
    response = http.client.HTTPResponse(_Timed(connection, clock), method=method)  # pyright: ignore[reportArgumentType]
    response.begin()
    return response


def _body(response: http.client.HTTPResponse, limit_bytes: int) -> bytes | IO[bytes]:
    if response.status not in (200, 203):
        raise ValueError(f"HTTP {response.status} {response.reason}")
    packed = response.getheader("Content-Encoding", "identity")
    if packed.lower() != "identity":
        raise ValueError(f"the server packed it ({packed}), which it was asked not to do")
    declared = response.length
    if declared is not None and declared > limit_bytes:
        raise ValueError(f"it has {declared:,} bytes, and {limit_bytes:,} are taken at most (see AccessPolicy)")
    received = 0

    def pieces() -> Iterator[bytes]:
        nonlocal received
        while piece := response.read(_READ_BYTES):
            received += len(piece)
            yield piece

    content = spooled(pieces(), limit_bytes)
    if declared is not None and received != declared:
        raise ValueError(f"it was cut: {received:,} of {declared:,} bytes came")
    return content


def is_base64(text: str) -> bool:
    """Whether a text that is no address is understood as base64 rather than as a path."""
    end = len(text)
    for _ in range(2):
        end -= text[end - 1 : end] == "="
    pieces = range(0, end, _PIECE)
    return end >= _SHORTEST and all(_BASE64.fullmatch(text, at, min(at + _PIECE, end)) for at in pieces)


def from_base64(text: str, name: str, limit_bytes: int) -> bytes:
    """`decode_base64` of what holds no more than `limit_bytes`."""
    _check_size(text, name, limit_bytes, 4 / 3)
    return decode_base64(text, name)


def from_data_uri(uri: str, name: str, limit_bytes: int) -> bytes:
    """The bytes of `data:TYPE;base64,CONTENT`, or of percent-encoded content.

    Raises:
        MediaError: no content, not base64, or over `limit_bytes`.
    """
    comma = uri.find(",")
    if comma < 0:
        raise MediaError(f"The {name} has no comma; expected data:TYPE;base64,CONTENT.")
    body = uri[comma + 1 :]
    content = _unquoted(body) if "%" in body else body
    text = content if isinstance(content, str) else content.decode("latin-1")
    if uri[:comma].rstrip().lower().endswith("base64") or is_base64(text.strip()):
        return from_base64(text, name, limit_bytes)
    content = content if isinstance(content, bytes) else content.encode()
    _check_size(content, name, limit_bytes)
    return content


def _unquoted(text: str) -> bytes:
    """What is percent-encoded."""
    content, start = bytearray(), 0
    while start < len(text):
        end = start + _PIECE
        cut = text.rfind("%", max(start + 1, end - 2), end)  # two more characters belong to it
        end = end if cut < 0 else cut
        content += urllib.parse.unquote_to_bytes(text[start:end])
        start = end
    return bytes(content)


def _check_size(content: str | bytes, name: str, limit_bytes: int, share: float = 1.0) -> None:
    if len(content) > share * limit_bytes + 4:
        raise MediaError(f"The {name} holds over {limit_bytes:,} bytes, and no more are taken (see AccessPolicy).")


def decode_base64(text: str, what: str) -> bytes:
    """The bytes of base64, in its usual or its URL-safe alphabet, with or without white space and padding.

    Raises:
        MediaError: not base64.
    """
    content, waiting = bytearray(), ""
    try:
        for start in range(0, len(text), _PIECE):
            waiting += "".join(text[start : start + _PIECE].split())
            whole = max(0, len(waiting) - _TAIL) // 4 * 4
            if "=" in waiting[:whole]:
                raise ValueError("something follows its padding")
            content += _decoded(waiting[:whole])
            waiting = waiting[whole:]
        content += _decoded(waiting + "=" * (-len(waiting) % 4))
    except (binascii.Error, ValueError) as error:
        raise MediaError(f"The {what} is not valid base64: {error}; give {ACCEPTED}.") from error
    return bytes(content)


def _decoded(text: str) -> bytes:
    return base64.b64decode(text.translate(_URL_SAFE) if "-" in text or "_" in text else text, validate=True)
