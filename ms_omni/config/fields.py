"""What a key of config.json may hold, as pydantic types that say in one phrase what they expect.

The class defaults of transformers differ from the published checkpoints (other codec ids, another audio window, another
rope base), so a field without a default must be in a checkpoint's file. There is a default only where transformers'
class has the published value too.

Sizes have upper bounds far above any model, so that a damaged file is an error at once and not a long wait for memory.
"""

import json
import operator
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Annotated, Any

from pydantic import Field, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, PydanticCustomError, core_schema


class Expected:
    """Metadata of a field: its value is converted and then checked strictly; every failure says what was expected."""

    def __init__(self, phrase: str, convert: Callable[[Any], Any] = lambda value: value, **constraints: Any):
        self.phrase, self.convert, self.constraints = phrase, convert, constraints
        self.strict = None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        if self.strict is None:  # the same for all fields of this kind
            self.strict = handler(Annotated[source, Field(strict=True, **self.constraints)])
        return core_schema.no_info_wrap_validator_function(self._check, self.strict)

    def _check(self, value: Any, validate: Callable[[Any], Any]) -> Any:
        try:
            return validate(self.convert(value))
        except (ValidationError, OverflowError, TypeError):
            raise PydanticCustomError("unfit", "{expected}", {"expected": self.phrase}) from None


def whole(value: Any) -> Any:
    """Integers of numpy and whole floats as int; true and false stay what they are, and are refused."""
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    return operator.index(value) if hasattr(value, "__index__") and not isinstance(value, bool) else value


def _real(value: Any) -> Any:
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else value


def _whole_items(value: Any) -> list:
    if not isinstance(value, (list, tuple)):
        raise TypeError
    return [whole(item) for item in value]


def _whole_values(value: Any) -> Any:
    return {str(name): whole(number) for name, number in value.items()} if isinstance(value, Mapping) else value


def integer(low: int, high: int) -> Expected:
    """A whole number in `[low, high]`."""
    return Expected(f"an integer of at least {low} and at most {high}", whole, ge=low, le=high)


def choice(first: Any, *others: Any) -> Expected:
    """One of the values that this implementation supports."""
    values = (first, *others)
    words = ", ".join(map(json.dumps, values))
    known = f"one of {words}" if others else f"{words} (the only value supported)"

    def convert(value: Any) -> Any:
        if type(value) is not type(first) or value not in values:
            raise TypeError
        return value

    return Expected(known, convert)


Width = Annotated[int, integer(1, 2**17)]
Heads = Annotated[int, integer(1, 4096)]
Layers = Annotated[int, integer(1, 1024)]
LayerNumber = Annotated[int, integer(0, 1024)]
Experts = Annotated[int, integer(1, 4096)]
Groups = Annotated[int, integer(2, 256)]
Patch = Annotated[int, integer(1, 1024)]
Frames = Annotated[int, integer(1, 2**20)]
Positions = Annotated[int, integer(1, 2**31 - 1)]
TableRows = Annotated[int, integer(1, 2**16)]
Vocabulary = Annotated[int, integer(1, 2**24)]
TokenId = Annotated[int, integer(0, 2**31 - 1)]

Positive = Annotated[float, Expected("a positive number", _real, gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Expected("a number of at least 0", _real, ge=0, allow_inf_nan=False)]
Flag = Annotated[bool, Expected("true or false")]
OnlyFalse = Annotated[bool, choice(False)]

LayerNumbers = Annotated[list[LayerNumber], Expected("a list of layer numbers", _whole_items, max_length=1024)]
Sections = Annotated[list[LayerNumber], Expected("a list of three integers", _whole_items, max_length=16)]
Ratios = Annotated[list[Patch], Expected("a list of at most 16 integers from 1 to 1024", _whole_items, max_length=16)]
Rates = Annotated[
    list[Patch], Expected("a list of 1 to 16 integers from 1 to 1024", _whole_items, min_length=1, max_length=16)
]
NameTable = Annotated[
    dict[str, TokenId],
    Expected("a table from name to id (an integer of at least 0) with at least one entry", _whole_values, min_length=1),
]


def shown(value: Any) -> str:
    """A value as in the JSON, short enough for a message."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
