"""Reading regular files only, writing files whole or not at all, and folders of files that appear only when they are complete and in
which nothing is overwritten that is not our own.
"""

import filecmp
import glob
import io
import json
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO

from .errors import CheckpointError, InputError

SPOOLED_BYTES = 16 << 20  # more goes to a file
TEXT_BYTES = 256 << 20  # a checkpoint's settings take at most some MB
_NO_WAITING = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """A regular file for reading. Raises `OSError` for anything else: a pipe or device could block, or never end.

    The opened file is checked, and not its path, where another file could be put in between.
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
    """All pieces joined: bytes, or where they are large a named temporary file, which is removed with its last reference.

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


try:
    import fcntl
except ImportError:  # not on this system: what a killed run left is then removed by hand
    fcntl = None

OWN_FILES = ".ms_omni.json"  # in a folder that was saved into: which of its files we wrote
_LAST = ("model.safetensors", "model.safetensors.index.json", "config.json")  # what makes new weights valid comes last
_COMPARED_BYTES = 64 << 20


@contextmanager
def new_folder(target: str | Path, needed_bytes: int = 0) -> Iterator[Path]:
    """A folder to write into that takes the name `target` only when the block ends well; else it is removed.

    A link to an empty folder stands for that folder. What killed runs left beside it is removed.

    Raises:
        CheckpointError: `target` exists and is not an empty folder, the disk lacks `needed_bytes`, or writing fails.
    """
    path = Path(os.path.realpath(target))
    with explained(target):
        # A mounted folder, or one in a folder that is not ours, can only be filled, not replaced.
        inside = path.is_dir() and (os.path.ismount(path) or not os.access(path.parent, os.W_OK))
        parent, name = (path, "") if inside else (path.parent, path.name)
        _check_space(parent, needed_bytes)
        parent.mkdir(parents=True, exist_ok=True)
        with _partial_folder(parent, name) as partial:
            others = {item.name for item in path.iterdir()} - {partial.name} if path.is_dir() else {}
            if others or (os.path.lexists(path) and not path.is_dir()):
                raise CheckpointError(
                    f"{target} exists and is not an empty folder; nothing is overwritten. Choose another name."
                )
            yield partial
            if inside:
                _move_files(partial, path, _files_in(partial))
                return
            if path.is_dir():
                shutil.copymode(path, partial)
            os.replace(partial, path)


@contextmanager
def saved_files(folder: str | Path, needed_bytes: int = 0, replaces: Iterable[str] = ()) -> Iterator[Path]:
    """A folder to write into whose files go into `folder` (made if needed) when the block ends well; else it is removed.

    Files that we wrote there earlier, which `OWN_FILES` lists, are replaced one by one, those last that make the others
    valid; anybody else's are never touched.

    Args:
        replaces: patterns of names that would contradict what is written: own files that match are removed.

    Raises:
        CheckpointError: `folder` is no folder, holds a foreign file of the same name, the disk lacks `needed_bytes`, or
            writing fails.
    """
    path = Path(os.path.realpath(folder))
    with explained(folder):
        if os.path.lexists(path) and not path.is_dir():
            raise CheckpointError(f"{folder} is no folder; nothing is overwritten. Choose another name.")
        is_new = not path.is_dir()
        parent, name = (path.parent, path.name) if is_new else (path, "")
        _check_space(parent, needed_bytes)
        parent.mkdir(parents=True, exist_ok=True)
        with _partial_folder(parent, name) as partial:
            yield partial
            files = _files_in(partial)
            if is_new:
                _write_own(partial, partial, set(files))
                try:
                    os.replace(partial, path)
                    return
                except OSError:
                    if not path.is_dir():  # another process made it meanwhile: then its files stay
                        raise
                (partial / OWN_FILES).unlink()
            with _locked(path):
                _put_files(partial, files, path, replaces)


def _put_files(partial: Path, files: list[str], path: Path, replaces: Iterable[str]) -> None:
    refuse_foreign(partial, path, replaces)
    own = own_files(path) | set(files)
    _write_own(partial, path, own)  # first, so that after a kill the new files are known as ours
    _move_files(partial, path, files)
    old = _matching(path, replaces) & own - set(files)
    for name in sorted(old, key=lambda name: name not in _LAST):
        (path / name).unlink(missing_ok=True)
    _write_own(partial, path, own - old)


def own_files(folder: str | Path) -> set[str]:
    """Names of the files that we wrote into a folder, relative to it."""
    try:
        names = json.loads(read_text(Path(folder) / OWN_FILES))["files"]
        return {name for name in names if isinstance(name, str)}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return set()


def refuse_foreign(fresh: Path, folder: str | Path, replaces: Iterable[str] = ()) -> None:
    """Raises `CheckpointError` when the files of `fresh` would replace, or contradict, one in `folder` that is not ours."""
    folder, names = Path(folder), set(_files_in(fresh))
    foreign = {
        name
        for name in (names | _matching(folder, replaces)) - own_files(folder)
        if os.path.lexists(folder / name) and not (name in names and _alike(fresh / name, folder / name))
    }
    foreign |= {str(Path(name).parent) for name in names if (folder / name).parent.is_symlink() and "/" in name}
    if foreign:
        raise CheckpointError(
            f"{folder} holds {', '.join(sorted(foreign))}, which ms_omni did not write there; nothing is overwritten. Choose "
            "another folder, or move them away."
        )


def _matching(folder: Path, patterns: Iterable[str]) -> set[str]:
    return {path.relative_to(folder).as_posix() for pattern in patterns for path in folder.glob(pattern)}


def _alike(fresh: Path, there: Path) -> bool:
    """Whether a file is already what is to be written, or the configuration of the same kind of model."""
    if there.is_symlink() or not there.is_file():
        return False
    if fresh.name == "config.json":
        return _model_type(there) == _model_type(fresh) is not None
    return there.stat().st_size == fresh.stat().st_size <= _COMPARED_BYTES and filecmp.cmp(fresh, there, shallow=False)


def _model_type(config: Path) -> object:
    try:
        return json.loads(read_text(config))["model_type"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _files_in(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]


def _move_files(source: Path, target: Path, names: list[str]) -> None:
    for name in sorted(names, key=lambda name: (_LAST.index(name) if name in _LAST else -1, name)):
        (target / name).parent.mkdir(exist_ok=True)
        os.replace(source / name, target / name)


def _write_own(partial: Path, folder: Path, names: set[str]) -> None:
    fresh = partial / f"{OWN_FILES}.new"
    fresh.write_text(json.dumps({"files": sorted(names)}, indent=1) + "\n", encoding="utf-8")
    os.replace(fresh, folder / OWN_FILES)


def _check_space(folder: Path, needed_bytes: int) -> None:
    there = next(path for path in (folder, *folder.parents) if path.is_dir())
    free = shutil.disk_usage(there).free
    if free < needed_bytes:
        raise CheckpointError(f"{there} has {free:,} bytes free, {needed_bytes:,} are needed.")


@contextmanager
def explained(target: str | Path) -> Iterator[None]:
    """Turns an `OSError` of the block into a `CheckpointError` that names `target`."""
    try:
        yield
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise CheckpointError(f"{target} cannot be written: {error.strerror or error}{where}") from None


@contextmanager
def _partial_folder(parent: Path, name: str) -> Iterator[Path]:
    """A fresh folder in `parent`, locked while this process lives and removed at the end; those of killed runs go first."""
    prefix = f".{name}.partial-" if name else ".partial-"
    for left in parent.glob(f"{glob.escape(prefix)}*"):
        lock = _lock(left)
        if lock is not None:
            shutil.rmtree(left, ignore_errors=True)
            os.close(lock)
    while True:
        partial = parent / f"{prefix}{os.getpid()}-{secrets.token_hex(3)}"
        partial.mkdir()
        lock = _lock(partial, wait=True)
        if partial.is_dir():
            break
        if lock is not None:  # another run took it for a killed run's before it was locked, and has now removed it
            os.close(lock)
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if lock is not None:
            os.close(lock)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Waits until no other process puts files into the folder."""
    lock = _lock(folder, wait=True)
    try:
        yield
    finally:
        if lock is not None:
            os.close(lock)


def _lock(folder: Path, wait: bool = False) -> int | None:
    """An open, locked file descriptor of a folder; None where another process holds the lock, or nothing can be locked."""
    if fcntl is None or folder.is_symlink():
        return None
    try:
        file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        return file
    except OSError:
        os.close(file)
        return None
