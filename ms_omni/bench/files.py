"""The folder that results go to."""

from pathlib import Path

from ..errors import InputError
from ..files import write_text


def output_folder(path):
    """The folder `path`, made if need be. Raises `InputError` when nothing can be written there."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        write_text(path / "writable", "")
        (path / "writable").unlink()
    except OSError as error:
        raise InputError(
            f"cannot write to the folder {path}: {error.strerror or error}; choose another one with --out"
        ) from None
    return path
