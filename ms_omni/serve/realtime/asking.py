"""From a conversation to the engine: what it is asked, and how."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ...errors import InputError
from ..chat_options import named
from ..errors import ApiError
from ..grammar import MISSING, Constraint, grammar_of
from ..schema import ChatBody, Definition
from ..server import Server
from ..worker import Answer
from .items import Item, messages, since
from .settings import Settings

STRIDE = 128
"""Tokens of a prompt that are read at a time, so that a conversation that goes on is found in the engine's cache."""

LEFT_OUT = 5
"""Of so many turns the oldest is left out where they are too many: all at once, for then all that follows is read again."""


@dataclass(frozen=True)
class Asked:
    """A prompt's tokens by what they are, and whether it has opened the thoughts of the answer."""

    tokens: dict[str, int]
    thinking: bool = False

    def usage(self, text: int, frames: int, cached: int) -> dict[str, Any]:
        """As clients are told, for an answer of so many tokens of text and frames of sound; cached: of the prompt, found read."""
        read = sum(self.tokens.values())
        return {
            "total_tokens": read + text + frames,
            "input_tokens": read,
            "output_tokens": text + frames,
            "input_token_details": {**self.tokens, "cached_tokens": cached},
            "output_token_details": {"text_tokens": text, "audio_tokens": frames},
        }


NOTHING = Asked({"text_tokens": 0, "audio_tokens": 0, "image_tokens": 0})
"""Of an answer that has ended before the engine was asked."""


async def inputs_of(server: Server, settings: Settings, items: Sequence[Item]) -> dict[str, Any]:
    """Model inputs of a conversation. Raises `InputError`, `MediaError`."""
    items = list(items)
    tools = [tool.for_template() for tool in settings.usable_tools]
    found = await server.in_pool(lambda _: messages(settings.instructions, items))
    return await server.prepare(found, **({"tools": tools} if tools else {}))


async def ask(
    server: Server,
    settings: Settings,
    items: Sequence[Item],
    begins: Callable[[Item], None] = lambda first: None,
    draft: bool = False,
) -> tuple[Asked, Answer]:
    """What the engine is asked, and its answer; the oldest turns of a conversation that is too long are left out, unless its client
    wants none of that. begins: told of the first item that is not, so that the next answer has the same beginning; draft: see
    `Server.ask`. Raises `InputError`, `ApiError`.
    """
    while True:
        inputs = await inputs_of(server, settings, items)
        ids, tokenizer = inputs["input_ids"], server.processor.tokenizer
        asked = Asked(server.prompt_tokens(ids), server.opens_thoughts(ids))
        ruled = await server.in_pool(partial(calling, server, settings, asked.thinking))
        try:
            return asked, await server.ask(inputs, draft, tokenizer=tokenizer, **options(server, settings), **ruled)
        except (ApiError, InputError) as error:
            found = named(error) if isinstance(error, InputError) else error
            found.param = None  # which is named as in a chat
            first = _next_first(items)
            if found.code != "context_length_exceeded" or settings.truncation != "auto" or first is None:
                raise found from None
            items = since(items, first)
            begins(first)


def _next_first(items):
    """The user's item to begin with where a fifth of the turns is left out; None where there is one turn only."""
    users = [item for item in items if item.role == "user"]
    return users[-(-len(users) // LEFT_OUT)] if len(users) > 1 else None


def calling(server: Server, settings: Settings, thinking: bool, _: Any) -> dict[str, Any]:
    """Options of `engine.add` where functions may be called, or one must; thinking: see `Asked`. Calls are not said."""
    tools = settings.usable_tools
    mark = server.call_token
    speaks = settings.output_modalities == ["audio"]
    found: dict[str, Any] = {"unspoken_from": [mark]} if tools and speaks and mark is not None else {}
    if settings.tool_choice in ("auto", "none"):
        return found
    if server.grammars is None:
        raise ApiError(400, f"tool_choice {MISSING}", "tool_choice", "unsupported_value")
    body = ChatBody.model_construct(tool_choice="required", parallel_tool_calls=True, response_format=None)
    definitions = [Definition(name=tool.name, description=tool.description, parameters=tool.parameters) for tool in tools]
    grammar = grammar_of(body, definitions, server.grammars.mark, thinking)
    return {**found, "logits_processor": [Constraint(server.grammars.matcher(*grammar))]} if grammar else found


def options(server: Server, settings: Settings) -> dict[str, Any]:
    """Of `engine.add`."""
    speaks = settings.output_modalities == ["audio"]
    found: dict[str, Any] = {"prefill_tokens": STRIDE}
    if server.speaks:
        found["return_audio"] = speaks
    if speaks:
        found["speaker"] = settings.audio.output.voice
    if settings.max_output_tokens != "inf":
        found["max_new_tokens"] = settings.max_output_tokens
    drawn = {
        name: getattr(settings, name) for name in ("temperature", "top_p", "top_k") if getattr(settings, name) is not None
    }
    if drawn and drawn.get("temperature") != 0:
        found |= {"do_sample": True, **drawn}
    if settings.seed is not None:
        found["seed"] = settings.seed
    return found


class Draft:
    """An answer that is begun before it is certain that somebody wants it; arguments as of `ask`."""

    def __init__(self, server: Server, settings: Settings, items: Sequence[Item], begins: Callable[[Item], None]):
        self._task = asyncio.ensure_future(ask(server, settings, items, begins, draft=True))

    async def take(self) -> tuple[Asked, Answer]:
        """The answer; raises why there is none."""
        asked, answer = await self._task
        answer.take()
        return asked, answer

    def drop(self) -> None:
        """Nobody wants it."""
        self._task.cancel()
        self._task.add_done_callback(_cancelled)
        if self._task.done():
            _cancelled(self._task)


def _cancelled(task):
    if not task.cancelled() and task.exception() is None:
        task.result()[1].cancel()
