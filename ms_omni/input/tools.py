"""Tool calls in what the model wrote: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from typing import Any

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_BLOCK = re.compile(rf"{_OPEN}(.*?)({_CLOSE}|(?={_OPEN})|\Z)", re.DOTALL)
_FENCE = re.compile(r"^```\w*\s*|\s*```$")
_MISSING_ENDS = ("}", "}}", "]}", "]}}", "]")


def parse_tool_calls(text: str) -> tuple[str, list[dict[str, Any]]]:
    """Separate the tool calls of an answer from its text.

    Small damage is mended: a code fence, single quotes, something behind the call, a brace that is missing before
    `</tool_call>`, arguments that are JSON within a text. A call that the token limit cut off is not guessed at.

    Args:
        text: the decoded answer; `<tool_call>` is no special token, so `skip_special_tokens=True` keeps it.

    Returns:
        the text without its calls, and the calls in order: `{"name": str, "arguments": dict}`. Blocks that hold no call stay
        in the text as they are.
    """
    calls: list[dict[str, Any]] = []

    def take(block: re.Match[str]) -> str:
        found = _calls(block[1], closed=block[2] == _CLOSE)
        calls.extend(found or [])
        return "" if found else block[0]

    rest = _BLOCK.sub(take, text)
    return (rest.strip() if calls else text), calls


def _calls(body: str, closed: bool) -> list[dict[str, Any]] | None:
    """The calls in one block; None when it does not hold any."""
    body = _FENCE.sub("", _FENCE.sub("", body.replace("<|im_end|>", "").strip()))
    for value in _readings(body, closed):
        calls = [_call(entry) for entry in (value if isinstance(value, list) else [value])]
        known = [call for call in calls if call is not None]
        if known and len(known) == len(calls):
            return known
    return None


def _readings(body: str, closed: bool) -> Iterator[Any]:
    """What the block may mean, the most likely first."""
    decoder = json.JSONDecoder(strict=False)  # line feeds within texts are written as they are
    for ending in ("", *_MISSING_ENDS) if closed else ("",):
        try:
            yield decoder.raw_decode(body + ending)[0]
        except ValueError:
            pass
    try:
        yield ast.literal_eval(body)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        pass


def _call(value: Any) -> dict[str, Any] | None:
    """A call under OpenAI's or Qwen's names, as a name and a dict; None when it is none."""
    if isinstance(value, dict) and isinstance(value.get("function"), dict):
        value = value["function"]
    if not isinstance(value, dict) or not isinstance(value.get("name"), str) or not value["name"]:
        return None
    arguments = next((value[key] for key in ("arguments", "parameters") if value.get(key) is not None), {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments, strict=False) if arguments.strip() else {}
        except ValueError:
            return None
    return {"name": value["name"], "arguments": arguments} if isinstance(arguments, dict) else None
