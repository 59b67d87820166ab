"""From a conversation to the engine: what it is asked, and how."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..server import Server
from ..worker import Answer
from .items import Item, messages
from .settings import Settings


@dataclass(frozen=True)
class Asked:
    """A prompt's tokens by what they are."""

    tokens: int
    audio: int
    images: int

    def usage(self, text: int, frames: int) -> dict[str, Any]:
        """As clients are told, for an answer of so many tokens of text and frames of sound."""
        return {
            "total_tokens": self.tokens + text + frames,
            "input_tokens": self.tokens,
            "output_tokens": text + frames,
            "input_token_details": {
                "text_tokens": self.tokens - self.audio - self.images,
                "audio_tokens": self.audio,
                "image_tokens": self.images,
                "cached_tokens": 0,
            },
            "output_token_details": {"text_tokens": text, "audio_tokens": frames},
        }


async def inputs_of(server: Server, settings: Settings, items: Sequence[Item]) -> dict[str, Any]:
    """Model inputs of a conversation. Raises `InputError`, `MediaError`."""
    items = list(items)
    tools = [tool.for_template() for tool in settings.tools] if settings.tool_choice != "none" else []
    found = await server.in_pool(lambda _: messages(settings.instructions, items))
    return await server.prepare(found, **({"tools": tools} if tools else {}))


async def ask(server: Server, settings: Settings, items: Sequence[Item]) -> tuple[Asked, Answer]:
    """What the engine is asked, and its answer. Raises `InputError`, `ApiError`."""
    inputs = await inputs_of(server, settings, items)
    processor, ids = server.processor, inputs["input_ids"][0]
    asked = Asked(
        len(ids),
        int((ids == processor.audio_token_id).sum()),
        int((ids == processor.image_token_id).sum()),
    )
    return asked, await server.ask(inputs, **options(server, settings))


def options(server: Server, settings: Settings) -> dict[str, Any]:
    """Of `engine.add`."""
    speaks = settings.output_modalities == ["audio"]
    found: dict[str, Any] = {"return_audio": speaks} if server.speaks else {}
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
    """An answer that is begun before it is certain that somebody wants it, to a conversation as it is at `version`."""

    def __init__(self, server: Server, settings: Settings, items: Sequence[Item], version: int):
        self.settings, self.version = settings, version
        self._task = asyncio.ensure_future(ask(server, settings, items))

    async def take(self) -> tuple[Asked, Answer]:
        """The answer; raises why there is none."""
        return await self._task

    def drop(self) -> None:
        """Nobody wants it."""
        self._task.cancel()
        self._task.add_done_callback(_cancelled)
        if self._task.done():
            _cancelled(self._task)


def _cancelled(task):
    if not task.cancelled() and task.exception() is None:
        task.result()[1].cancel()
