"""Files that appear only when they are complete."""

import os
from pathlib import Path

from ..errors import InputError


def write_file(path, write):
    """Calls `write(temporary path)` and then gives the file its name; what was there before is replaced."""
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.partial-{os.getpid()}{path.suffix}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def output_folder(path):
    """The folder `path`, made if need be. Raises `InputError` when nothing can be written there."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_file(path / "writable", lambda file: file.write_text(""))
        (path / "writable").unlink()
    except OSError as error:
        raise InputError(
            f"cannot write to the folder {path}: {error.strerror or error}; choose another one with --out"
        ) from None
    return path
