"""Files that this process may load and run: in a folder of the user's that no other user can write to, checked before each use.

The folder, `ms_omni` in `XDG_CACHE_HOME` (default ~/.cache), is created with mode 0700 whatever the umask. It and every file in it
must belong to the user, be no link, and be writable by the user alone; a file must end in the digest of its content. What fails
this is created again. The checks of the folders above are those of pip, weaker than those of ssh: they may belong to another user
or be open to a group, because a folder put there instead of ours does not belong to the user; one that all users may write to is
trusted only with the sticky bit, as /tmp. Where the cache cannot be used, a temporary folder is, until the process ends.
"""

import atexit
import contextlib
import fcntl
import functools
import hashlib
import os
import shutil
import stat
import tempfile
import warnings
from collections.abc import Callable, Iterator

DIGEST_BYTES = hashlib.sha256().digest_size


def cached_file(name: str, make: Callable[[str], object]) -> str:
    """Path of the file `name` of the cache, after `make(path)` has written it if it is missing or damaged.

    Raises what `make` raises.
    """
    folder = _folder() or _temporary()
    path = os.path.join(folder, name)
    if not _is_sound(path):
        _write(path, make)
    return path


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """A lock of this name among the processes of this user."""
    path = os.path.join(_folder() or _temporary(), f"{name}.lock")
    with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _folder():
    """The cache, created if need be; None, after a warning, where it cannot be trusted or written to."""
    folder = os.path.abspath(os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "ms_omni"))
    try:
        _make(folder)
        status = os.lstat(folder)
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            raise PermissionError("it is a link, a file, or another user's")
        if not _are_safe(os.path.dirname(folder)):
            raise PermissionError("everybody may write to a folder above it")
        if _is_shared(status):  # its files may be another user's
            os.chmod(folder, 0o700)
            for entry in os.scandir(folder):
                _remove(entry.path)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError("it cannot be written to")
    except OSError as error:
        _warn(f"compiled kernels are not kept in {folder}: {error.strerror or error}")
        return None
    return folder


@functools.cache
def _warn(text):
    warnings.warn(f"{text}; this process compiles its own", stacklevel=2)


@functools.cache
def _temporary():
    folder = tempfile.mkdtemp(prefix="ms_omni-")  # mode 0700
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _make(folder):
    if not os.path.lexists(folder):
        _make(os.path.dirname(folder))
        with contextlib.suppress(FileExistsError):  # another process was quicker
            os.mkdir(folder, 0o700)


def _are_safe(folder):
    """Whether a folder and those above it are not writable by all users, or have the sticky bit."""
    while True:
        mode = os.stat(folder).st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            return False
        if folder == os.path.dirname(folder):
            return True
        folder = os.path.dirname(folder)


def _is_shared(status):
    return bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def _is_sound(path):
    """Whether a file is the user's own and as it was written: loading a truncated one would end this process."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or _is_shared(status):
                return False
            content = file.read()
    except OSError:
        return False
    return hashlib.sha256(content[:-DIGEST_BYTES]).digest() == content[-DIGEST_BYTES:]


def _write(path, make):
    # Under another name first: another process must never load an incomplete file.
    handle, temporary = tempfile.mkstemp(suffix=".part", dir=os.path.dirname(path))
    os.close(handle)
    try:
        make(temporary)
        with open(temporary, "r+b") as file:
            file.write(hashlib.sha256(file.read()).digest())  # behind the part that a loader reads
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o700)
        if os.path.isdir(path) and not os.path.islink(path):
            _remove(path)
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def _remove(path):
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.remove(path)
