"""Conversations to prompt texts, with the checkpoint's chat template."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from ms_omni.errors import InputError
from ms_omni.input.arguments import did_you_mean, loose_names
from ms_omni.input.messages import Message
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


def render(
    tokenizer: Any,
    template: str,
    batch: Sequence[Sequence[Message]],
    variables: Mapping[str, Any],
    *,
    tools: Any = None,
    documents: Any = None,
    **arguments: Any,
) -> list[str]:
    """Prompts of all conversations.

    Args:
        template: Jinja text.
        variables: passed to the template; one that it does not read is said in a warning, as are `tools` and `documents`.
        tools: functions with annotations and a docstring, or JSON schemas of functions.
        **arguments: add_generation_prompt, continue_final_message.

    Raises:
        InputError: the template refuses the conversation or cannot be parsed, or a tool cannot be described.
    """
    import jinja2

    given = {"tools": tools or None, "documents": documents or None, **variables}
    for name, value in given.items():
        if value is not None and not re.search(rf"\b{re.escape(name)}\b", template):
            _say_unread(name)
    plain = [[message.for_template() for message in messages] for messages in batch]
    try:
        return tokenizer.apply_chat_template(
            plain, chat_template=template, tokenize=False, tools=tools or None, documents=documents, **arguments, **variables
        )
    except (jinja2.TemplateError, ValueError, TypeError) as error:
        raise InputError(f"The chat template cannot render this conversation: {error}") from error
    except Exception as error:  # transformers' own for docstrings and annotations derive from Exception
        if tools and type(error).__name__ in ("DocstringParsingException", "TypeHintParsingException"):
            raise InputError(f"tools: a function cannot be described: {error}") from error
        raise


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
