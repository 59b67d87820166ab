"""Errors that a user can cause, with what was got, what was expected and what to do; and warnings that a process gives once."""

import sys
import warnings
from pathlib import Path


class OmniError(ValueError):
    """Base of every error that ms_omni raises for a mistake in the caller's input."""


class InputError(OmniError):
    """Arguments or model inputs that contradict each other or the model."""


class CacheFull(InputError):
    """An answer without a named limit that has filled the whole cache."""


class MediaError(OmniError):
    """A picture, sound or video that cannot be read, or that holds nothing to look at or listen to. where: its address or path, if known."""

    where = ""


class CheckpointError(OmniError):
    """A checkpoint folder that is missing, damaged or not of this model."""


class ConfigError(CheckpointError):
    """A config.json that lacks a needed key or holds a value that this model does not support."""


class DeviceError(OmniError):
    """What this device, or the software that drives it, cannot compute."""


class ProcessError(OmniError):
    """A process that did a part of the work, and is gone."""


PACKAGE = str(Path(__file__).parent)
_warned: set[str] = set()


def warn_once(message: str, stacklevel: int = 2) -> None:
    """Warn, unless this process has already given the same warning."""
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, stacklevel=stacklevel + 1)


def caller_level() -> int:
    """What `warnings.warn` in the calling function takes as `stacklevel` to name the script's line that called this package."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(PACKAGE):
        frame, level = frame.f_back, level + 1
    return level
