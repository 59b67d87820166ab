"""Where a picture, sound or video comes from: path, file://, http(s)://, data: URI, base64, bytes or an open file."""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ms_omni.errors import MediaError

DOWNLOAD_WAIT_S = 30.0  # longest silence of a server
DOWNLOAD_TOTAL_S = 600.0  # longest download
DOWNLOAD_LIMIT_BYTES = 4 << 30
_READ_BYTES = 1 << 20

ACCEPTED = "a path, a file://, http:// or https:// address, a data: URI, base64, bytes or an open binary file"
_BASE64 = re.compile(r"[A-Za-z0-9+/_\s-]{64,}={0,2}\s*")  # shorter ones could be names of files; none holds a dot


@dataclass(frozen=True)
class Source:
    """Encoded bytes on disk (`path`) or in memory (`data`), with the name that error messages use."""

    name: str
    path: Path | None = None
    data: bytes | None = None

    def open(self) -> BinaryIO:
        """A new binary file object at position 0; the caller closes it."""
        return io.BytesIO(self.data or b"") if self.path is None else open(self.path, "rb")

    def size_bytes(self) -> int:
        return len(self.data or b"") if self.path is None else self.path.stat().st_size


def is_source(value: Any) -> bool:
    """Whether `open_source` takes this kind of value (it may still fail to read it)."""
    return isinstance(value, (Source, str, os.PathLike, bytes, bytearray, memoryview)) or hasattr(value, "read")


def open_source(value: Any, what: str) -> Source:
    """Find the encoded bytes that `value` stands for.

    Args:
        value: see `ACCEPTED`. An http(s) address is downloaded as a whole.
        what: "picture", "sound" or "video", for the messages.

    Raises:
        MediaError: nothing readable there: no such file, a folder, an empty file, a failed or cut download, bad base64.
    """
    if isinstance(value, Source):
        return value
    if isinstance(value, (bytes, bytearray, memoryview)):
        source = Source(f"{what} given as bytes", data=bytes(value))
    elif isinstance(value, str) and _BASE64.fullmatch(value) and not os.path.exists(value):
        source = Source(f"{what} given as base64", data=decode_base64(value, what))
    elif isinstance(value, os.PathLike):
        source = _from_path(os.fspath(value), what)
    elif isinstance(value, str):
        text = _as_meant(value)
        source = _from_address(text, what) if _is_address(text) else _from_path(text, what)
    elif hasattr(value, "read"):
        name = f"{what} {getattr(value, 'name', 'given as an open file')}"
        source = Source(name, data=_read_open_file(value, what))
    else:
        raise MediaError(f"A {what} cannot be a {type(value).__name__}; give {ACCEPTED}.")
    if source.size_bytes() == 0:
        raise MediaError(f"{source.name} is empty (0 bytes).")
    return source


def _is_address(text: str) -> bool:
    return "://" in text or text[:5].lower() in ("data:", "file:")


def _as_meant(text: str) -> str:
    """A path or address without what came along when it was pasted: white space, quotes, the other system's slashes."""
    bare = text.strip().strip("\"'<>").strip()
    if os.path.exists(text) or _is_address(bare):
        return text if os.path.exists(text) else bare
    return next(
        (name for name in (bare, bare.replace("\\", "/")) if name and os.path.exists(os.path.expanduser(name))), text
    )


def _read_open_file(file: Any, what: str) -> bytes:
    content = file.read()
    if content == b"" and hasattr(file, "seek"):  # written to, or read, just before
        file.seek(0)
        content = file.read()
    if not isinstance(content, bytes):
        raise MediaError(f"The open file given as {what} yields {type(content).__name__}; open it in binary mode ('rb').")
    return content


def _from_path(text: str | bytes, what: str) -> Source:
    if not text or "\0" in os.fsdecode(text):
        raise MediaError(f"The path {text!r} given as {what} cannot name a file; give {ACCEPTED}.")
    path = Path(os.fsdecode(text)).expanduser()
    name = f"{what} {path}"
    try:
        if path.is_dir():
            raise MediaError(f"{name} is a folder; give the file itself.")
        if not path.exists():
            raise MediaError(f"{name} does not exist (looked in {Path.cwd()}); give {ACCEPTED}.")
        if not path.is_file():  # a pipe or device could block or never end
            raise MediaError(f"{name} is not a regular file.")
        with open(path, "rb"):
            return Source(name, path=path.resolve())
    except MediaError:
        raise
    except (OSError, RuntimeError) as error:  # no permission, name too long, endless symbolic links
        reason = getattr(error, "strerror", None) or error
        raise MediaError(f"The {what} {_short(str(path))} cannot be read: {reason}.") from error


def _from_address(address: str, what: str) -> Source:
    scheme = address.split(":", 1)[0].lower()
    if scheme == "data":
        return Source(f"{what} in a data: URI", data=_decode_data_uri(address, what))
    if scheme == "file":
        parts = urllib.parse.urlsplit(address)
        if parts.netloc not in ("", "localhost"):  # file://picture.jpg, as some write a relative path
            return _from_path(urllib.parse.unquote(address[len("file://") :]), what)
        return _from_path(_unquoted_unless_there(parts.path or address[len("file://") :]), what)
    if scheme in ("http", "https"):
        return Source(f"{what} {_short(address)}", data=_download(address, what))
    if Path(address).exists():
        return _from_path(address, what)
    raise MediaError(f"The address {_short(address)} given as {what} starts with {scheme}://; give {ACCEPTED}.")


def _unquoted_unless_there(text: str) -> str:
    """file:// addresses are percent-encoded by the book, but many are a plain path with file:// in front."""
    return text if Path(text).exists() else urllib.parse.unquote(text)


def _decode_data_uri(uri: str, what: str) -> bytes:
    header, comma, body = uri.partition(",")
    if not comma:
        raise MediaError(f"The data: URI given as {what} has no comma; expected data:TYPE;base64,CONTENT.")
    if not header.rstrip().endswith(";base64"):
        return urllib.parse.unquote_to_bytes(body)
    return decode_base64(urllib.parse.unquote(body), f"data: URI given as {what}")


def decode_base64(text: str, what: str) -> bytes:
    """The bytes of base64, in its usual or its URL-safe alphabet, with or without white space and padding.

    Raises:
        MediaError: not base64.
    """
    plain = "".join(text.split()).translate(str.maketrans("-_", "+/"))
    try:
        return base64.b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise MediaError(f"The {what} is not valid base64: {error}; give {ACCEPTED}.") from error


def _download(address: str, what: str) -> bytes:
    try:
        request = urllib.request.Request(_quoted(address), headers={"User-Agent": "ms-omni"})
        with urllib.request.urlopen(request, timeout=DOWNLOAD_WAIT_S) as response:
            declared = response.headers.get("Content-Length")
            content = _read_within_limits(response, address)
    except MediaError:
        raise
    except urllib.error.HTTPError as error:
        reason = f"HTTP {error.code} {error.reason}"
        raise MediaError(f"The {what} {_short(address)} cannot be downloaded: {reason}.") from error
    except (OSError, ValueError, urllib.error.URLError) as error:
        reason = getattr(error, "reason", None) or error
        raise MediaError(f"The {what} {_short(address)} cannot be downloaded: {reason}.") from error
    except Exception as error:  # http.client's own errors share no base class with the above
        raise MediaError(f"The {what} {_short(address)} cannot be downloaded: {error}.") from error
    if declared is not None and declared.isdigit() and len(content) != int(declared):
        raise MediaError(f"The download of {_short(address)} was cut: {len(content)} of {declared} bytes came.")
    return content


def _quoted(address: str) -> str:
    """The address in ASCII: spaces and letters of other scripts as browsers send them."""
    parts = urllib.parse.urlsplit(address)
    host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode()
    path, query = (urllib.parse.quote(text, safe="/%:@!$&'()*+,;=~?-._[]") for text in (parts.path, parts.query))
    return urllib.parse.urlunsplit((parts.scheme, host, path, query, ""))


def _read_within_limits(response: Any, address: str) -> bytes:
    chunks, size, deadline = [], 0, time.monotonic() + DOWNLOAD_TOTAL_S
    while chunk := response.read(_READ_BYTES):
        chunks.append(chunk)
        size += len(chunk)
        if size > DOWNLOAD_LIMIT_BYTES:
            raise MediaError(
                f"{_short(address)} is over {DOWNLOAD_LIMIT_BYTES >> 30} GiB; download it yourself and give the path."
            )
        if time.monotonic() > deadline:
            raise MediaError(
                f"The download of {_short(address)} took over {DOWNLOAD_TOTAL_S:.0f} s; download it "
                "yourself and give the path."
            )
    return b"".join(chunks)


def _short(text: str, limit: int = 120) -> str:
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def to_array(value: Any) -> np.ndarray | None:
    """Numpy view of an array or of a tensor (PyTorch's and MindSpore's, told by their methods), else None."""
    if isinstance(value, np.ndarray):
        return np.asarray(value)  # subclasses may give methods another meaning
    if hasattr(value, "detach") and hasattr(value, "numpy"):  # PyTorch: off the graph and the device first
        return value.detach().cpu().numpy()
    if hasattr(value, "asnumpy"):  # MindSpore
        return value.asnumpy()
    return None
