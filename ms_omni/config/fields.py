"""Declaring what a key of config.json may hold.

The defaults of transformers' configuration classes differ from the published checkpoints (other codec ids, another
audio window, another rope base), so a field without a default here must stand in the file. Only keys whose value is the
same constant in every published checkpoint have one.
"""

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Spec:
    """What one key may hold: `convert` returns the value to keep or raises ValueError with what was expected."""

    convert: Callable[[Any], Any]
    aliases: tuple[str, ...] = ()


def _declare(convert, default=dataclasses.MISSING, aliases=()):
    return dataclasses.field(default=default, metadata={"spec": Spec(convert, tuple(aliases))})


def _as_integer(value, low):
    whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not whole or (low is not None and value < low):
        raise ValueError("an integer" if low is None else f"an integer of at least {low}")
    return int(value)


def integer(low: int | None = 1, default=dataclasses.MISSING, aliases=()):
    """A whole number of at least `low`. With `default=None` the key may be absent or null."""

    def convert(value):
        return None if value is None and default is None else _as_integer(value, low)

    return _declare(convert, default, aliases)


def number(default=dataclasses.MISSING, positive: bool = True):
    """A finite number, kept as float."""

    def convert(value):
        good = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not good or (positive and value <= 0):
            raise ValueError("a positive number" if positive else "a number")
        return float(value)

    return _declare(convert, default)


def flag(default=dataclasses.MISSING):
    """true or false."""

    def convert(value):
        if not isinstance(value, bool):
            raise ValueError("true or false")
        return value

    return _declare(convert, default)


def choice(*values, default=dataclasses.MISSING):
    """One of the values this implementation supports."""

    def convert(value):
        if value not in values or isinstance(value, bool) != isinstance(values[0], bool):
            raise ValueError(
                f"{json.dumps(values[0])} (the only value supported)"
                if len(values) == 1
                else "one of " + ", ".join(map(json.dumps, values))
            )
        return value

    return _declare(convert, default)


def integers(low: int = 0, at_least: int = 0, default=dataclasses.MISSING):
    """A list of whole numbers, kept as a tuple; null is an empty list where one is allowed."""

    def convert(value):
        value = [] if value is None else value
        if not isinstance(value, (list, tuple)) or len(value) < at_least:
            raise ValueError(f"a list of at least {at_least} integers" if at_least else "a list of integers")
        try:
            return tuple(_as_integer(item, low) for item in value)
        except ValueError as error:
            raise ValueError(f"a list in which each item is {error}") from None

    return _declare(convert, default)


def name_table(default=dataclasses.MISSING):
    """A non-empty table from name to id, such as the talker's speakers."""

    def convert(value):
        if not isinstance(value, Mapping) or not value:
            raise ValueError("a table from name to id with at least one entry")
        try:
            return {str(name): _as_integer(number_, 0) for name, number_ in value.items()}
        except ValueError as error:
            raise ValueError(f"a table in which each id is {error}") from None

    return _declare(convert, default)


def section(kind: type):
    """A nested configuration object of class `kind`."""
    return dataclasses.field(metadata={"section": kind})


def optional_section(kind: type):
    """A nested configuration object that a class may decide to leave out (None)."""
    return dataclasses.field(default=None, metadata={"section": kind})


def shown(value: Any) -> str:
    """A value as it stands in the JSON, short enough for a message."""
    try:
        text = json.dumps(value)
    except TypeError:
        text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
