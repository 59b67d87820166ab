"""Where a picture, sound or video comes from: path, file://, http(s)://, data: URI, base64, bytes or an open file."""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np

from ms_omni.errors import MediaError
from ms_omni.files import open_regular, spooled
from ms_omni.input.access import SCHEMES, AccessPolicy, policy_in_force
from ms_omni.input.download import download

_READ_BYTES = 1 << 20
_LONGEST_PATH = 1 << 15

ACCEPTED = "a path, a file://, http:// or https:// address, a data: URI, base64, bytes or an open binary file"
_URL_SAFE = str.maketrans("-_", "+/")
_BASE64 = re.compile(r"[A-Za-z0-9+/_\s-]{64,}={0,2}")  # shorter ones could be names of files; none holds a dot


@dataclass(frozen=True)
class Source:
    """Encoded bytes on disk (`path`) or in memory (`data`), with the name that error messages use."""

    name: str
    path: Path | None = None
    data: bytes | None = None
    policy: AccessPolicy | None = None  # under which the path may be opened
    spool: Any = None  # the temporary file at `path`, which goes when nobody holds it any more

    @classmethod
    def of(cls, name: str, content: bytes | IO[bytes]) -> Source:
        """Bytes, or a temporary file."""
        if isinstance(content, bytes):
            return cls(name, data=content)
        return cls(name, path=Path(content.name), spool=content)

    def open(self) -> BinaryIO:
        """A new binary file object at position 0; the caller closes it. Raises `MediaError` for a file that has gone."""
        if self.path is None:
            return io.BytesIO(self.data or b"")
        try:
            return open_regular(self.path) if self.policy is None else self.policy.open_file(self.path)
        except OSError as error:
            raise MediaError(f"{self.name} can be read no more: {error.strerror or error}.") from error

    def size_bytes(self) -> int:
        return len(self.data or b"") if self.path is None else self.path.stat().st_size


def is_source(value: Any) -> bool:
    """Whether `open_source` takes this kind of value (it may still fail to read it)."""
    return isinstance(value, (Source, str, os.PathLike, bytes, bytearray, memoryview)) or hasattr(value, "read")


def open_source(value: Any, what: str, policy: AccessPolicy | None = None) -> Source:
    """Find the encoded bytes that `value` stands for.

    Args:
        value: see `ACCEPTED`. An http(s) address is downloaded as a whole.
        what: "picture", "sound" or "video", for the messages and the limits.
        policy: what may be opened; by default the one in force (see `AccessPolicy`).

    Raises:
        MediaError: nothing readable there (no such file, a folder, an empty file, a failed or cut download, bad base64), or
            what the policy does not allow.
    """
    if isinstance(value, Source):
        return value
    opener = _Opener(what, policy_in_force() if policy is None else policy)
    if isinstance(value, (bytes, bytearray, memoryview)):
        source = Source(f"{what} given as bytes", data=bytes(value))
    elif isinstance(value, str):
        source = opener.from_text(value)
    elif isinstance(value, os.PathLike):
        source = opener.from_path(os.fsdecode(value))
    elif hasattr(value, "read"):
        source = opener.from_file(value)
    else:
        raise MediaError(f"A {what} cannot be a {type(value).__name__}; give {ACCEPTED}.")
    if source.size_bytes() == 0:
        raise MediaError(f"{source.name} is empty (0 bytes).")
    return source


@dataclass(frozen=True)
class _Opener:
    """Opens one kind of media under a policy."""

    what: str
    policy: AccessPolicy

    def from_text(self, text: str) -> Source:
        """The path, address or base64 that a text is."""
        bare = text.strip().strip("\"'<>").strip()
        if self._exists(text):
            return self.from_path(text)
        if _is_address(bare):
            return self._from_address(bare)
        if _BASE64.fullmatch(bare):
            return Source(f"{self.what} given as base64", data=self._decoded(bare, self.what))
        meant = (bare, bare.replace("\\", "/"))  # pasted with quotes, or with the other system's slashes
        return self.from_path(next((name for name in meant if name and self._exists(os.path.expanduser(name))), text))

    def _exists(self, text: str) -> bool:
        return self.policy.files != "none" and len(text) < _LONGEST_PATH and os.path.exists(text)

    def from_path(self, text: str) -> Source:
        what, name = self.what, f"{self.what} {_short(text)}"
        if not text or "\0" in text:
            raise MediaError(f"The path {text!r} given as {what} cannot name a file; give {ACCEPTED}.")
        if self.policy.files == "none":
            raise MediaError(f"The {name} is taken for a path, and files of this machine are not opened here.")
        path = os.path.expanduser(text)
        try:
            with self.policy.open_file(path):
                return Source(f"{what} {path}", path=Path(os.path.realpath(path)), policy=self.policy)
        except FileNotFoundError:
            raise MediaError(f"{name} does not exist{_looked_in(path)}; give {ACCEPTED}.") from None
        except IsADirectoryError:
            raise MediaError(f"{name} is a folder; give the file itself.") from None
        except (OSError, ValueError) as error:  # no permission, name too long, endless symbolic links, a pipe, no text
            raise MediaError(f"The {name} cannot be read: {getattr(error, 'strerror', None) or error}.") from error

    def _from_address(self, address: str) -> Source:
        scheme = address.split(":", 1)[0].lower()
        if scheme in SCHEMES and scheme not in self.policy.schemes:
            raise MediaError(
                f"The address {_short(address)} given as {self.what} starts with {scheme}:, which is not opened here."
            )
        if scheme == "data":
            return Source(f"{self.what} in a data: URI", data=self._from_data_uri(address))
        if scheme == "file":
            return self.from_path(self._path_of(address))
        if scheme in ("http", "https"):
            name = f"{self.what} {_short(address)}"
            return Source.of(name, download(address, self.policy, self.policy.limit_bytes(self.what), name))
        raise MediaError(f"The address {_short(address)} given as {self.what} starts with {scheme}://; give {ACCEPTED}.")

    def _path_of(self, address: str) -> str:
        """The path of a file: address. By the book it is percent-encoded, but many are a plain path with file:// in front."""
        plain = re.sub(r"^//(localhost(?=/))?", "", address[len("file:") :])
        return plain if self._exists(plain) else urllib.parse.unquote(re.split("[?#]", plain, maxsplit=1)[0])

    def _from_data_uri(self, uri: str) -> bytes:
        comma, name = uri.find(","), f"data: URI given as {self.what}"
        if comma < 0:
            raise MediaError(f"The {name} has no comma; expected data:TYPE;base64,CONTENT.")
        body = uri[comma + 1 :]
        content = urllib.parse.unquote_to_bytes(body) if "%" in body else body
        text = content if isinstance(content, str) else content.decode("latin-1")
        if uri[:comma].rstrip().lower().endswith("base64") or _BASE64.fullmatch(text.strip()):
            return self._decoded(text, name)
        return self._within(content if isinstance(content, bytes) else content.encode(), name)

    def _decoded(self, text: str, name: str) -> bytes:
        self._within(text, name, 4 / 3)
        return decode_base64(text, name)

    def _within(self, content: Any, name: str, share: float = 1.0) -> Any:
        limit = min(self.policy.inline_bytes, self.policy.limit_bytes(self.what))
        if len(content) > share * limit + 4:
            raise MediaError(f"The {name} holds over {limit:,} bytes, and no more are taken (see AccessPolicy).")
        return content

    def from_file(self, file: Any) -> Source:
        """What an open file holds from where it stands, or, when it stands at its end, all of it."""
        name = f"{self.what} {getattr(file, 'name', 'given as an open file')}"
        try:
            content = spooled(_pieces(file, self.what), self.policy.limit_bytes(self.what))
            if content == b"" and hasattr(file, "seek"):  # written to, or read, just before
                file.seek(0)
                content = spooled(_pieces(file, self.what), self.policy.limit_bytes(self.what))
        except MediaError:
            raise
        except (OSError, ValueError) as error:  # closed, not readable, too much
            raise MediaError(f"The {name} cannot be read: {error}.") from error
        return Source.of(name, content)


def _looked_in(path: str) -> str:
    try:
        return "" if os.path.isabs(path) else f" (looked in {os.getcwd()})"
    except OSError:  # it was removed
        return ""


def _pieces(file: Any, what: str) -> Iterator[bytes]:
    while piece := file.read(_READ_BYTES):
        if not isinstance(piece, bytes):
            kind = type(piece).__name__
            raise MediaError(f"The open file given as {what} yields {kind}; open it in binary mode ('rb').")
        yield piece


def _is_address(text: str) -> bool:
    return "://" in text or text[:5].lower() in ("data:", "file:")


def decode_base64(text: str, what: str) -> bytes:
    """The bytes of base64, in its usual or its URL-safe alphabet, with or without white space and padding.

    Raises:
        MediaError: not base64.
    """
    if re.search(r"\s", text):
        text = "".join(text.split())
    if "-" in text or "_" in text:
        text = text.translate(_URL_SAFE)
    if len(text) % 4:
        text += "=" * (-len(text) % 4)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MediaError(f"The {what} is not valid base64: {error}; give {ACCEPTED}.") from error


def _short(text: str, limit: int = 120) -> str:
    """A path or address for messages: not too long, and without a password."""
    text = re.sub(r"(?<=//)[^/@\s]*@", "", text[:1000])
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
