"""Folders of files that appear only when they are complete, and in which nothing is overwritten that is not our own."""

import filecmp
import glob
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import CheckpointError
from .files import read_text

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
    place = Path(os.path.realpath(target))
    with explained(target):
        # A mounted folder, or one in somebody else's, can only be filled, not replaced.
        inside = place.is_dir() and (os.path.ismount(place) or not os.access(place.parent, os.W_OK))
        parent, name = (place, "") if inside else (place.parent, place.name)
        _check_space(parent, needed_bytes)
        parent.mkdir(parents=True, exist_ok=True)
        with _partial_folder(parent, name) as partial:
            others = {item.name for item in place.iterdir()} - {partial.name} if place.is_dir() else {}
            if others or (os.path.lexists(place) and not place.is_dir()):
                raise CheckpointError(
                    f"{target} exists and is not an empty folder; nothing is overwritten. Choose another name."
                )
            yield partial
            if inside:
                _move_files(partial, place, _files_in(partial))
                return
            if place.is_dir():
                shutil.copymode(place, partial)
            os.replace(partial, place)


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
    place = Path(os.path.realpath(folder))
    with explained(folder):
        if os.path.lexists(place) and not place.is_dir():
            raise CheckpointError(f"{folder} is no folder; nothing is overwritten. Choose another name.")
        is_new = not place.is_dir()
        parent, name = (place.parent, place.name) if is_new else (place, "")
        _check_space(parent, needed_bytes)
        parent.mkdir(parents=True, exist_ok=True)
        with _partial_folder(parent, name) as partial:
            yield partial
            files = _files_in(partial)
            if is_new:
                _write_own(partial, partial, set(files))
                try:
                    os.replace(partial, place)
                    return
                except OSError:
                    if not place.is_dir():  # another process made it meanwhile: then its files stay
                        raise
                (partial / OWN_FILES).unlink()
            with _locked(place):
                _put_files(partial, files, place, replaces)


def _put_files(partial: Path, files: list[str], place: Path, replaces: Iterable[str]) -> None:
    refuse_foreign(partial, place, replaces)
    own = own_files(place) | set(files)
    _write_own(partial, place, own)  # first, so that after a kill the new files are known as ours
    _move_files(partial, place, files)
    old = _matching(place, replaces) & own - set(files)
    for name in sorted(old, key=lambda name: name not in _LAST):
        (place / name).unlink(missing_ok=True)
    _write_own(partial, place, own - old)


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
    there = next(place for place in (folder, *folder.parents) if place.is_dir())
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
        if lock is not None:  # somebody took it for a killed run's before it was locked, and has now removed it
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
    """An open, locked file descriptor of a folder; None where somebody else holds the lock, or nothing can be locked."""
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
