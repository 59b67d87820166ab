"""Conversations to prompt texts, with the checkpoint's chat template."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ms_omni.errors import InputError
from ms_omni.input.arguments import did_you_mean, loose_names
from ms_omni.input.files import of_transformers
from ms_omni.input.messages import Message
from ms_omni.notices import caller_level, warn_once

_END = "<|continued from here|> "


def choose_template(known: str | dict[str, str] | None, asked: str | None, tools: Any = None) -> str:
    """The template to render: the one asked for (by name or as text), else "tool_use" for tools, else the default.

    Raises:
        InputError: there is none.
    """
    if isinstance(known, dict):
        if asked is not None:
            return known.get(asked, asked)
        if tools and "tool_use" in known:
            return known["tool_use"]
        if "default" in known:
            return known["default"]
        raise InputError(
            f"None of the chat templates ({', '.join(known)}) is named default; pass chat_template= with one name."
        )
    template = asked if asked is not None else known
    if template is None:
        raise InputError(
            "The checkpoint has no chat template (chat_template.json, chat_template.jinja or in "
            "tokenizer_config.json); pass chat_template= with the Jinja text."
        )
    return template


def render(
    tokenizer: Any,
    template: str,
    batch: Sequence[Sequence[Message]],
    variables: Mapping[str, Any],
    *,
    tools: Any = None,
    documents: Any = None,
    add_generation_prompt: bool = False,
    continue_final_message: bool = False,
) -> list[str]:
    """Prompts of all conversations.

    Args:
        template: Jinja text.
        variables: passed to the template; one that it does not read is said in a warning, as are `tools` and `documents`.
        tools: functions with annotations and a docstring, or JSON schemas of functions.
        continue_final_message: end the prompt where the text of the last message ends.

    Raises:
        InputError: the template refuses the conversation or cannot be parsed, or a tool cannot be described.
    """
    given = {"tools": _schemas(tools) or None, "documents": documents or None, **variables}
    for name, value in given.items():
        if value is not None and not re.search(rf"\b{re.escape(name)}\b", template):
            _say_unread(name)
    given = {**tokenizer.special_tokens_map, "add_generation_prompt": add_generation_prompt, **given}
    return [_render_one(template, messages, _plain(given), continue_final_message) for messages in batch]


def _render_one(template: str, messages: Sequence[Message], variables: Mapping[str, Any], open_end: bool) -> str:
    from ms_omni.input.chat_sandbox import render_template  # imports jinja2

    plain = [_plain(message.for_template()) for message in messages]
    size = sum(len(text) for message in messages for text in message.texts)
    if open_end:
        _mark_end(plain[-1])
    try:
        text = render_template(template, size, {"messages": plain, **variables})
    except Exception as error:  # whatever a program can raise: 1/0, an endless recursion, ...
        reason = str(error) or type(error).__name__
        raise InputError(f"The chat template cannot render this conversation: {reason}") from error
    if not open_end:
        return text
    end = text.rfind(_END.strip())
    if end < 0:
        raise InputError("continue_final_message: the chat template leaves out the text of the last message.")
    kept = text[end : end + len(_END)] == _END  # some templates strip the texts
    return text[:end] if kept else text[:end].rstrip()


def _mark_end(message: dict[str, Any]) -> None:
    """Put a mark behind the text of the last message, where the prompt is to end."""
    content = message["content"]
    if isinstance(content, str):
        message["content"] = content + _END
        return
    texts = [item for item in content if item["type"] == "text"]
    if not texts:
        raise InputError("continue_final_message: the last message holds no text that could be continued.")
    texts[-1]["text"] += _END


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


def _plain(value: Any) -> Any:
    """What a template may see: texts, numbers, lists and dicts; no objects, whose methods could do anything."""
    if isinstance(value, Mapping):
        return {_plain(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if value is None or type(value) in (str, int, float, bool):
        return value
    for kind in (str, int, float):
        if isinstance(value, kind):  # of a class of its own, such as an enum's
            return getattr(kind, "__str__" if kind is str else f"__{kind.__name__}__")(value)
    return f"<{type(value).__name__}>"


def _say_unread(name: str) -> None:
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
