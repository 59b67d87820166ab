"""Media that stand in a text themselves: base64, and data: URIs."""

from __future__ import annotations

import base64
import binascii
import re
import urllib.parse

from ms_omni.errors import MediaError

ACCEPTED = "a path, a file://, http:// or https:// address, a data: URI, base64, bytes or an open binary file"
DICT_ACCEPTED = "url, path, bytes, base64 or data, or array with sampling_rate"
_URL_SAFE = str.maketrans("-_", "+/")
_BASE64 = re.compile(r"[A-Za-z0-9+/_\s-]*")
_SHORTEST = 64  # shorter ones could be names of files; none holds a dot
_PIECE = 1 << 20
"""Letters that are read at a time: no other thread of Python runs while one call does."""
_TAIL = 64  # letters among which padding may be


def is_base64(text: str) -> bool:
    """Whether a text that is no address is taken for base64 rather than for a path."""
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
    found, start = bytearray(), 0
    while start < len(text):
        end = start + _PIECE
        cut = text.rfind("%", max(start + 1, end - 2), end)  # which two letters belong to
        end = end if cut < 0 else cut
        found += urllib.parse.unquote_to_bytes(text[start:end])
        start = end
    return bytes(found)


def _check_size(content: str | bytes, name: str, limit_bytes: int, share: float = 1.0) -> None:
    if len(content) > share * limit_bytes + 4:
        raise MediaError(f"The {name} holds over {limit_bytes:,} bytes, and no more are taken (see AccessPolicy).")


def decode_base64(text: str, what: str) -> bytes:
    """The bytes of base64, in its usual or its URL-safe alphabet, with or without white space and padding.

    Raises:
        MediaError: not base64.
    """
    found, waiting = bytearray(), ""
    try:
        for start in range(0, len(text), _PIECE):
            waiting += "".join(text[start : start + _PIECE].split())
            whole = max(0, len(waiting) - _TAIL) // 4 * 4
            if "=" in waiting[:whole]:
                raise ValueError("something follows its padding")
            found += _decoded(waiting[:whole])
            waiting = waiting[whole:]
        found += _decoded(waiting + "=" * (-len(waiting) % 4))
    except (binascii.Error, ValueError) as error:
        raise MediaError(f"The {what} is not valid base64: {error}; give {ACCEPTED}.") from error
    return bytes(found)


def _decoded(text: str) -> bytes:
    return base64.b64decode(text.translate(_URL_SAFE) if "-" in text or "_" in text else text, validate=True)
