"""Around a conversation: which template renders it and what that sees, prompts whose answer is given, conversations in files, and
the tool calls in an answer.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ms_omni.errors import InputError, MediaError
from ms_omni.files import read_text
from ms_omni.input.arguments import did_you_mean, loose_names
from ms_omni.input.files import of_transformers
from ms_omni.input.load import open_source
from ms_omni.input.messages import plain, read_batch
from ms_omni.notices import caller_level, warn_once

REQUEST = "Read this text aloud."
_NOT_BLANK = re.compile(r"\S")
_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_BLOCK = re.compile(rf"{_OPEN}(.*?)({_CLOSE}|(?={_OPEN})|\Z)", re.DOTALL)
_FENCE = re.compile(r"^```\w*\s*|\s*```$")
_MISSING_ENDS = ("}", "}}", "]}", "]}}", "]")


def choose_template(available: str | dict[str, str] | None, requested: str | None, tools: Any = None) -> str:
    """The template to render: the requested one (by name or as text), else "tool_use" for tools, else the default.

    Raises:
        InputError: there is none.
    """
    if isinstance(available, dict):
        if requested is not None:
            return available.get(requested, requested)
        if tools and "tool_use" in available:
            return available["tool_use"]
        if "default" in available:
            return available["default"]
        raise InputError(
            f"None of the chat templates ({', '.join(available)}) is named default; pass chat_template= with one name."
        )
    template = requested if requested is not None else available
    if template is None:
        raise InputError(
            "The checkpoint has no chat template (chat_template.json, chat_template.jinja or in "
            "tokenizer_config.json); pass chat_template= with the Jinja text."
        )
    return template


def template_variables(
    tokenizer: Any,
    template: str,
    variables: Mapping[str, Any],
    *,
    tools: Any = None,
    documents: Any = None,
    add_generation_prompt: bool = False,
) -> dict[str, Any]:
    """What a template sees beside the messages.

    Args:
        template: Jinja text.
        variables: the caller's own; one that the template does not read gives a warning, as do `tools` and `documents`.
        tools: functions with annotations and a docstring, or JSON schemas of functions.

    Raises:
        InputError: a tool cannot be described.
    """
    given = {"tools": _schemas(tools) or None, "documents": documents or None, **variables}
    for name, value in given.items():
        if value is not None and not re.search(rf"\b{re.escape(name)}\b", template):
            _warn_unread(name)
    return plain({**tokenizer.special_tokens_map, "add_generation_prompt": add_generation_prompt, **given})


def _schemas(tools: Any) -> list[Any]:
    """The JSON schemas of tools."""
    if tools is None:
        return []
    schemas = []
    if isinstance(tools, (str, bytes, Mapping)) or not isinstance(tools, Iterable):
        raise InputError(f"tools is {tools!r:.80}, expected a list of functions or of JSON schemas.")
    for tool in tools:
        if isinstance(tool, Mapping):
            schemas.append(tool)
            continue
        if not callable(tool):
            raise InputError(f"tools: a {type(tool).__name__} is no tool; give functions, or JSON schemas of functions.")
        try:
            schemas.append(of_transformers("utils").get_json_schema(tool))
        except Exception as error:  # transformers' own for docstrings and annotations derive from Exception
            raise InputError(f"tools: a function cannot be described: {error}") from error
    return schemas


def _warn_unread(name: str) -> None:
    if name in ("tools", "documents"):
        warn_once(
            f"The chat template does not read {name}: the model will not see them. Pass chat_template= with one that does."
        )
    else:
        warnings.warn(
            f"apply_chat_template has no argument {name!r}, and the chat template does not read it; it is ignored."
            f"{did_you_mean(name, loose_names())}",
            stacklevel=caller_level(),
        )


def spoken_turn(processor: Any, text: str, instructions: str | None = None) -> dict[str, Any]:
    """Ids and mask int64 `[1, T]` of a conversation whose assistant turn is the text, for `model.say` and `engine.add(given=True)`.

    Names of special tokens in the text are spoken as they are written. instructions: how it is to be spoken; they become part of the
    user's turn, which the talker reads.
    """
    request = f"{REQUEST} {instructions.strip()}" if instructions and instructions.strip() else REQUEST
    message = {"role": "user", "content": [{"type": "text", "text": request}]}
    ids = processor.apply_chat_template([[message]], tokenize=True, return_dict=True, add_generation_prompt=True)[
        "input_ids"
    ]
    tokens = processor.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    ids = np.concatenate([ids, np.array(tokens, np.int64)[None]], axis=1)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def read_values(path: str | Path) -> Iterator[tuple[str, Any]]:
    """(where it stands, in words; the value) of each JSON value in a file: on a line each, or over several. Of a list of conversations
    each one is a value. Raises `InputError` for invalid JSON.
    """
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {path}: {error}") from None
    decoder, line, at = json.JSONDecoder(), 1, 0
    while match := _NOT_BLANK.search(text, at):
        begin = match.start()
        line += text.count("\n", at, begin)
        where = f"{path}, line {line}"
        try:
            value, at = decoder.raw_decode(text, begin)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: not JSON ({error})") from None
        line += text.count("\n", begin, at)
        if isinstance(value, list) and not any(isinstance(item, dict) and "role" in item for item in value):
            yield from ((f"{where}, item {number}", item) for number, item in enumerate(value, 1))
        else:
            yield where, value


def checked(messages: Any, where: str) -> list[dict]:
    """The messages of one conversation. Raises `InputError` that begins with `where` for what is none: no roles, no content, media that
    are named and not there (addresses are fetched later).
    """
    try:
        (read,), _ = read_batch([messages])
        for number, message in enumerate(read):
            if message.role == "user" and not any(message.texts) and not message.media:
                raise InputError(f"message {number} has no content; expected a text, or a list of texts and media")
            for item in message.media:
                for value in item.value if isinstance(item.value, list) else [item.value]:
                    if value is None or (isinstance(value, str) and not value.lower().startswith(("http://", "https://"))):
                        open_source(value, item.kind)
    except (InputError, MediaError) as error:
        raise InputError(f"{where}: {error}") from None
    return messages


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
        parsed = _calls(block[1], closed=block[2] == _CLOSE)
        calls.extend(parsed or [])
        return "" if parsed else block[0]

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
