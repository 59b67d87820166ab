"""Which chat template renders a conversation, and what it sees beside the messages."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from ms_omni.errors import InputError
from ms_omni.input.arguments import did_you_mean, loose_names
from ms_omni.input.files import of_transformers
from ms_omni.input.messages import plain
from ms_omni.notices import caller_level, warn_once


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
        variables: the caller's own; one that the template does not read is said in a warning, as are `tools` and `documents`.
        tools: functions with annotations and a docstring, or JSON schemas of functions.

    Raises:
        InputError: a tool cannot be described.
    """
    given = {"tools": _schemas(tools) or None, "documents": documents or None, **variables}
    for name, value in given.items():
        if value is not None and not re.search(rf"\b{re.escape(name)}\b", template):
            _say_unread(name)
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
