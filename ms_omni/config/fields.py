"""What a key of config.json may hold, as pydantic types that say in one phrase what they expect.

The class defaults of transformers differ from the published checkpoints (other codec ids, another audio window, another
rope base), so a field without a default must stand in a checkpoint's file. A default stands only where transformers'
class has the published value too.

Sizes have upper bounds far above any model, so that a damaged file is an error at once and not a long wait for memory.
"""

import json
import operator
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Annotated, Any, Literal, get_origin

from pydantic import Field, ValidationError, WrapValidator
from pydantic_core import PydanticCustomError


def kind(annotation: Any, expected: str, convert: Callable[[Any], Any] = lambda value: value, **constraints: Any) -> Any:
    """`annotation`, converted and then checked strictly; every failure is told as "expected `expected`"."""

    def check(value, validate):
        try:
            return validate(convert(value))
        except (ValidationError, OverflowError, TypeError):
            raise PydanticCustomError("unfit", "{expected}", {"expected": expected}) from None

    if get_origin(annotation) is not Literal:  # which is strict anyway
        annotation = Annotated[annotation, Field(strict=True, **constraints)]
    return Annotated[annotation, WrapValidator(check)]


def whole(value: Any) -> Any:
    """Integers of numpy and whole floats as int; true and false stay what they are, and are refused."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, (bool, int)) or not hasattr(value, "__index__") else operator.index(value)


def _real(value: Any) -> Any:
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else value


def integer(low: int, high: int) -> Any:
    """A whole number in `[low, high]`."""
    return kind(int, f"an integer of at least {low} and at most {high}", whole, ge=low, le=high)


Width = integer(1, 2**17)
Heads = integer(1, 4096)
Layers = integer(1, 1024)
LayerNumber = integer(0, 1024)
Experts = integer(1, 4096)
Groups = integer(2, 256)
Patch = integer(1, 1024)
Frames = integer(1, 2**20)
Positions = integer(1, 2**31 - 1)
TableRows = integer(1, 2**20)
Vocabulary = integer(1, 2**24)
TokenId = integer(0, 2**31 - 1)

Positive = kind(float, "a positive number", _real, gt=0, allow_inf_nan=False)
NotNegative = kind(float, "a number of at least 0", _real, ge=0, allow_inf_nan=False)
Flag = kind(bool, "true or false")
OnlyFalse = kind(Literal[False], "false (the only value supported)")


def _listed(value: Any) -> Any:
    if not isinstance(value, (list, tuple)):
        raise TypeError
    return [whole(item) for item in value]


def _list(item: int, high: int, expected: str, longest: int, shortest: int = 0) -> Any:
    """A list of integers in `[item, high]`."""
    one = Annotated[int, Field(ge=item, le=high)]
    return kind(list[one], f"a list of {expected}", _listed, min_length=shortest, max_length=longest)


LayerNumbers = _list(0, 1024, "layer numbers (integers of at least 0)", 1024)
Sections = _list(0, 2**16, "three integers", 16)
Ratios = _list(1, 1024, "at most 16 integers from 1 to 1024", 16)
Rates = _list(1, 1024, "1 to 16 integers from 1 to 1024", 16, 1)


def _name_table(value: Any) -> Any:
    return {str(name): whole(number) for name, number in value.items()} if isinstance(value, Mapping) else value


NameTable = kind(
    dict[str, Annotated[int, Field(ge=0, le=2**31 - 1)]],
    "a table from name to id (an integer of at least 0) with at least one entry",
    _name_table,
    min_length=1,
)


def choice(*values: str) -> Any:
    """One of the strings that this implementation supports."""
    words = ", ".join(map(json.dumps, values))
    return kind(Literal[values], f"one of {words}" if len(values) > 1 else f"{words} (the only value supported)")


def shown(value: Any) -> str:
    """A value as it stands in the JSON, short enough for a message."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
