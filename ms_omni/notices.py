"""Remarks that a process makes once: what a script passes and what has no effect here."""

from __future__ import annotations

import warnings

_said: set[str] = set()


def warn_once(message: str, stacklevel: int = 2) -> None:
    """Warn, unless this process has already said the same."""
    if message not in _said:
        _said.add(message)
        warnings.warn(message, stacklevel=stacklevel + 1)
