"""JSON bodies: read, checked, and what is wrong with one said as OpenAI says it."""

import json
from itertools import islice
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request

from .errors import MISTAKES, ApiError, wrong_throughout

DEPTH = 200
"""JSON that is nested deeper is refused."""
SEPARATORS, VALUES = 1_000_000, 100_000
"""What a small body can be made of at most: read, checked and explained, each item costs many times what it costs to send."""


class Body(BaseModel):
    """What callers send: nothing else than is named, and of no other type. None means that it was left out."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


Kind = TypeVar("Kind", bound=Body)


async def read_body(request: Request, kind: type[Kind]) -> Kind:
    """The body of a request. Raises `ApiError` 400 that names what is wrong with it."""
    return parsed(await request.body(), kind)


def parsed(text: bytes | str, kind: type[Kind]) -> Kind:
    """A body from its JSON. Raises `ApiError` 400."""
    check_separators(text)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not JSON: {str(error)[:200]}", code="invalid_json") from None
    return checked(value, kind)


def check_separators(text: bytes | str) -> None:
    """Raises `ApiError` 413 for JSON whose objects would fill the memory. Base64 has none of these letters."""
    found = [text.count(mark.encode() if isinstance(text, bytes) else mark) for mark in ",[{"]  # pyright: ignore
    if sum(found) > SEPARATORS:
        raise ApiError(
            413,
            f"the body holds more than {SEPARATORS} commas and brackets, the most that this server takes",
            code="request_too_large",
        )


def checked(value: Any, kind: type[Kind]) -> Kind:
    """A body from what JSON gave. Raises `ApiError` 400."""
    if not isinstance(value, dict):
        raise ApiError(400, f"the body is {_shown(value)}, expected a JSON object")
    check_values(value, "the body")
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise invalid(error, value) from None


def check_values(value: Any, what: str) -> None:
    """Raises `ApiError` 400 for what JSON can say and nothing behind it can take, or not while others wait."""
    if sum(1 for _ in islice(_values(value), VALUES + 1)) > VALUES:
        message = f"{what} holds more than {VALUES} values, the most that this server takes"
        raise ApiError(400, message, code="invalid_value")
    if _depth(value) > DEPTH:
        raise ApiError(400, f"{what} is nested more than {DEPTH} deep", code="invalid_value")
    if not all(map(_is_text, _strings(value))):
        raise ApiError(400, f"{what} has a text that is no Unicode: half of a pair of surrogates", code="invalid_value")


def invalid(error: ValidationError, value: Any) -> ApiError:
    """The deepest thing that is wrong with a value, by the name that it has there: of a union's branches the one that was meant."""
    if error.error_count() > MISTAKES:
        return wrong_throughout(error)
    found = [(_place(one, value), one) for one in error.errors(include_url=False, include_context=False)]
    place, first = max(found, key=lambda pair: len(pair[0]))
    param = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place).lstrip(".")
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"unknown argument {param!r}; leave it out", param, "unknown_parameter")
    if first["type"] == "missing":
        return ApiError(400, f"{param} is missing", param, "missing_required_parameter")
    said = {one["msg"].removeprefix("Value error, ") for where, one in found if where == place}
    said = " or ".join(sorted(text[:1].lower() + text[1:] for text in said))
    own = first["type"] == "value_error"  # our own messages name the value where that helps
    message = said if own else f"{said}, got {_shown(first.get('input'))}"
    return ApiError(400, f"{param}: {message}" if param else message, param or None, "invalid_value")


def _place(error, value):
    """Where it is, without the names of a union's branches, which nobody has written."""
    place, location = [], error["loc"]
    for number, step in enumerate(location):
        absent = error["type"] == "missing" and number == len(location) - 1
        if isinstance(value, dict) and (step in value or absent):
            value = value.get(step)
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            value = value[step]
        else:
            continue
        place.append(step)
    return tuple(place)


def _depth(value):
    """How deep objects and lists lie in each other."""
    depth, level = 0, [value]
    while level and depth <= DEPTH:
        depth += 1
        inner = [one.values() if isinstance(one, dict) else one for one in level]
        level = [item for one in inner for item in one if isinstance(item, (dict, list))]
    return depth


def _strings(value):
    """Every text in it, names included."""
    return (one for one in _values(value) if isinstance(one, str))


def _values(value):
    """Everything in it, names included."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        yield one
        if isinstance(one, dict):
            waiting += [*one, *one.values()]
        elif isinstance(one, list):
            waiting += one


def _is_text(text):
    """Whether it can be written in UTF-8; JSON can name halves of pairs, which tokenizers and answers cannot."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _shown(value):
    names = {dict: "an object", list: "a list", bool: "true" if value is True else "false", type(None): "null"}
    return names.get(type(value)) or (f"{value!r:.80}" if isinstance(value, (str, int, float)) else "something else")
