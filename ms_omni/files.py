"""Reading regular files only, and writing files whole or not at all."""

import io
import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, BinaryIO

from .errors import InputError

SPOOLED_BYTES = 16 << 20  # more is not kept in memory
TEXT_BYTES = 256 << 20  # a checkpoint's settings take at most some MB
_NO_WAITING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """A regular file for reading. Raises `OSError` for anything else: a pipe or device could block, or never end.

    What is looked at is what was opened, so that nobody can put another file there in between.
    """
    file = os.open(path, os.O_RDONLY | _NO_WAITING)
    try:
        kind = os.fstat(file).st_mode
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(21, "is a folder", str(path))
        if not stat.S_ISREG(kind):
            raise OSError(22, "is not a regular file", str(path))
        return os.fdopen(file, "rb")
    except BaseException:
        os.close(file)
        raise


def read_text(path: str | os.PathLike) -> str:
    """The text of a regular file in UTF-8. Raises `OSError`, and `ValueError` for what is no such text or too long for settings."""
    with open_regular(path) as file:
        content = file.read(TEXT_BYTES + 1)
    if len(content) > TEXT_BYTES:
        raise ValueError(f"it has over {TEXT_BYTES >> 20} MB, which no such file needs")
    return content.decode("utf-8")


def spooled(pieces: Iterable[bytes], limit_bytes: int) -> bytes | IO[bytes]:
    """All pieces joined: bytes, or where they are large a named temporary file, which goes when nobody holds it any more.

    Raises:
        ValueError: they have more than `limit_bytes`.
    """
    joined: IO[bytes] = io.BytesIO()
    for piece in pieces:
        if joined.tell() + len(piece) > limit_bytes:
            raise ValueError(f"it has over {limit_bytes:,} bytes, and no more are taken (see AccessPolicy)")
        if isinstance(joined, io.BytesIO) and joined.tell() > SPOOLED_BYTES:
            first, joined = joined, tempfile.NamedTemporaryFile(prefix="ms-omni-")
            joined.write(first.getbuffer())
        joined.write(piece)
    if isinstance(joined, io.BytesIO):
        return joined.getvalue()
    joined.flush()
    return joined


def write_file(path: str | os.PathLike, write: Callable[[Path], object]) -> None:
    """Calls `write(temporary path)`, whose ending is that of `path`, and then gives the file its name.

    Whoever reads meanwhile, or after a kill, finds the old file or the new one. A link is replaced, not followed.
    """
    path = Path(path)
    fresh = path.with_name(f".{path.stem}.partial-{secrets.token_hex(4)}{path.suffix}")
    try:
        write(fresh)
        os.replace(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)


def output_folder(path: Path) -> Path:
    """The folder `path`, created if need be. Raises `InputError` when nothing can be written there."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise InputError(
            f"cannot write to the folder {path}: {error.strerror or error}; choose another one with --out"
        ) from None
    return path


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file whole or not at all, in UTF-8."""
    write_file(path, lambda fresh: fresh.write_text(text, encoding="utf-8"))
