"""Remarks that a process makes once: what a script passes and what has no effect here."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

PACKAGE = str(Path(__file__).parent)
_said: set[str] = set()


def warn_once(message: str, stacklevel: int = 2) -> None:
    """Warn, unless this process has already said the same."""
    if message not in _said:
        _said.add(message)
        warnings.warn(message, stacklevel=stacklevel + 1)


def caller_level() -> int:
    """What `warnings.warn` in the calling function takes as `stacklevel` to name the script's line that called this package."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith(PACKAGE):
        frame, level = frame.f_back, level + 1
    return level
