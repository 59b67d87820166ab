"""From a conversation to the engine: prompts of answers, drafts and reading ahead while somebody speaks, and transcriptions."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ...errors import InputError, OmniError
from ...outputs import StreamEnd, TextDelta
from ..chat_request import engine_error
from ..grammar import MISSING, Constraint, grammar_of
from ..protocol import ApiError, api_error, invalid
from ..schema import ChatBody, Definition
from ..server import Server
from ..settings import language_code
from ..worker import Answer
from .events import Emit
from .items import Content, Item, messages, since
from .settings import Settings, Transcription

LOG = logging.getLogger("ms_omni.serve")
PREFILL_TOKENS = 128
"""Of a chunk, so that the engine's cache holds the beginning of a conversation that goes on."""
TURNS_PER_CUT = 5
"""Of so many turns the oldest is left out where a conversation is too long: all at once, as what follows must be read again."""
MEL_HZ = 100
MARGIN_S = 1.0
TRANSCRIPTION = "conversation.item.input_audio_transcription"


@dataclass(frozen=True)
class Prompt:
    """How many tokens of each kind a prompt has, and whether it has opened the thoughts of the answer."""

    tokens: dict[str, int]
    thinking: bool = False

    def usage(self, text: int, frames: int, cached: int) -> dict[str, Any]:
        """As clients see it, for an answer of so many tokens of text and frames of sound; cached: tokens of the prompt."""
        prompt = sum(self.tokens.values())
        return {
            "total_tokens": prompt + text + frames,
            "input_tokens": prompt,
            "output_tokens": text + frames,
            "input_token_details": {**self.tokens, "cached_tokens": cached},
            "output_token_details": {"text_tokens": text, "audio_tokens": frames},
        }


NO_PROMPT = Prompt({"text_tokens": 0, "audio_tokens": 0, "image_tokens": 0})
"""Of an answer that has ended before the engine got it."""


async def prepare(server: Server, settings: Settings, items: Sequence[Item]) -> dict[str, Any]:
    """Model inputs of a conversation. Raises `InputError`, `MediaError`."""
    items = list(items)
    tools = [tool.for_template() for tool in settings.usable_tools]
    conversation = await server.in_pool(lambda _: messages(settings.instructions, items))
    return await server.prepare(conversation, **({"tools": tools} if tools else {}))


async def submit(
    server: Server,
    settings: Settings,
    items: Sequence[Item],
    begins: Callable[[Item], None],
    draft: bool = False,
) -> tuple[Prompt, Answer]:
    """An answer to a conversation. The oldest turns of one that is too long are left out, unless its client has switched that off.

    begins: called with the first item that stays, so that the next prompt has the same beginning; draft: see `Server.submit`. Raises
    `InputError`, `ApiError`.
    """
    while True:
        inputs = await prepare(server, settings, items)
        ids, tokenizer = inputs["input_ids"], server.processor.tokenizer
        prompt = Prompt(server.prompt_tokens(ids), server.opens_thoughts(ids))
        calls = await server.in_pool(partial(call_options, server, settings, prompt.thinking))
        options = {"tokenizer": tokenizer, **engine_options(server, settings), **calls}
        try:
            return prompt, await server.submit(inputs, draft, **options)
        except (ApiError, InputError) as error:
            refusal = engine_error(error) if isinstance(error, InputError) else error
            refusal.param = None  # which is an argument of a chat
            first = _first_after_cut(items)
            if refusal.code != "context_length_exceeded" or settings.truncation != "auto" or first is None:
                raise refusal from None
            items = since(items, first)
            begins(first)


def _first_after_cut(items):
    """The user's item to begin with when the oldest turns are left out; None where there is one turn only."""
    users = [item for item in items if item.role == "user"]
    return users[-(-len(users) // TURNS_PER_CUT)] if len(users) > 1 else None


def call_options(server: Server, settings: Settings, thinking: bool, _: Any) -> dict[str, Any]:
    """Options of `engine.add` where functions may be called, or one must; thinking: see `Prompt`. Calls are not spoken."""
    tools, token = settings.usable_tools, server.call_token
    options: dict[str, Any] = {"unspoken_from": [token]} if tools and settings.speaks and token is not None else {}
    if settings.tool_choice in ("auto", "none"):
        return options
    if server.grammars is None:
        raise invalid(f"tool_choice {MISSING}", "tool_choice", "unsupported_value")
    body = ChatBody.model_construct(tool_choice="required", parallel_tool_calls=True, response_format=None)
    definitions = [Definition(name=tool.name, description=tool.description, parameters=tool.parameters) for tool in tools]
    grammar = grammar_of(body, definitions, server.grammars.mark, thinking)
    return {**options, "logits_processor": [Constraint(server.grammars.matcher(*grammar))]} if grammar else options


def engine_options(server: Server, settings: Settings) -> dict[str, Any]:
    """Of `engine.add`."""
    options: dict[str, Any] = {"prefill_tokens": PREFILL_TOKENS}
    if server.speaks:
        options["return_audio"] = settings.speaks
    if settings.speaks:
        options["speaker"] = settings.audio.output.voice
    if settings.max_output_tokens != "inf":
        options["max_new_tokens"] = settings.max_output_tokens
    sampling = {name: getattr(settings, name) for name in ("temperature", "top_p", "top_k")}
    sampling = {name: value for name, value in sampling.items() if value is not None}
    if sampling and sampling.get("temperature") != 0:
        options |= {"do_sample": True, **sampling}
    if settings.seed is not None:
        options["seed"] = settings.seed
    return options


class Draft:
    """An answer that is begun before it is certain that somebody wants it; arguments as of `submit`."""

    def __init__(self, server: Server, settings: Settings, items: Sequence[Item], begins: Callable[[Item], None]):
        self._task = asyncio.ensure_future(submit(server, settings, items, begins, draft=True))

    async def claim(self) -> tuple[Prompt, Answer]:
        """The answer; raises why there is none."""
        prompt, answer = await self._task
        answer.claim()
        return prompt, answer

    def drop(self) -> None:
        """Nobody wants it."""
        self._task.cancel()
        self._task.add_done_callback(_cancel_answer)
        if self._task.done():
            _cancel_answer(self._task)


def _cancel_answer(task):
    if not task.cancelled() and task.exception() is None:
        task.result()[1].cancel()


class ReadAhead:
    """Reads a turn while somebody speaks, so that its length is no part of the wait for an answer.

        sound       |<---- 8 s: a window of the encoder ---->|<---- 8 s ---->|<- 1 s ->|
        is read                                                  at 9 s                    at 17 s

    The encoder sees windows of eight seconds, one by one. Once a second of the next one is there, what stands before it can only
    change if a much louder sound comes, and then it is read again: the engine finds what it has read by its content.

    items: returns the conversation with what was said so far.
    """

    def __init__(self, server: Server, settings: Settings, items: Callable[[], Sequence[Item]]):
        self._server, self._settings, self._items = server, settings, items
        self._window_s = server.model.config.thinker_config.audio_config.n_window_infer / MEL_HZ
        self._next_s = self._window_s + MARGIN_S
        self._task: asyncio.Task | None = None

    def update(self, seconds: float) -> None:
        """So much was said."""
        if seconds < self._next_s or (self._task is not None and not self._task.done()):
            return
        self._next_s = (seconds - MARGIN_S) // self._window_s * self._window_s + self._window_s + MARGIN_S
        self._task = asyncio.ensure_future(self._read(list(self._items())))

    async def _read(self, items):
        try:
            inputs = await prepare(self._server, self._settings, items)
            answer = await self._server.read(inputs, prefill_tokens=PREFILL_TOKENS, grows=True)
            try:
                async for _ in answer:
                    pass
            finally:
                answer.cancel()
        except (ApiError, OmniError):  # the answer will fail for the same reason, and report it
            return
        except Exception:
            LOG.exception("reading ahead failed")

    def stop(self) -> None:
        """The turn is over."""
        if self._task is not None:
            self._task.cancel()
            self._task = None


async def transcribe(server: Server, wanted: Transcription, item: Item, emit: Emit) -> None:
    """The text of a user's item with sound, by the model itself and beside the conversation: deltas, and `completed` or `failed`."""
    (content,) = item.content
    position = {"item_id": item.id, "content_index": 0}
    text, counts = "", {}
    try:
        answer, counts = await _submit_transcription(server, wanted, content)
        try:
            async for event in answer:
                if isinstance(event, TextDelta) and event.text and event.text[0]:
                    text += event.text[0]
                    emit({"type": f"{TRANSCRIPTION}.delta", **position, "delta": event.text[0]})
                elif isinstance(event, StreamEnd):
                    counts["output_tokens"] = int(event.text_tokens[0])
        finally:
            answer.cancel()
    except Exception as error:
        emit({"type": f"{TRANSCRIPTION}.failed", **position, "error": api_error(error).fields})
        return
    content.text = text.strip()
    usage = {"type": "tokens", **counts, "total_tokens": counts["input_tokens"] + counts["output_tokens"]}
    emit({"type": f"{TRANSCRIPTION}.completed", **position, "transcript": content.text, "usage": usage})


async def _submit_transcription(server, wanted, content):
    prompt = server.prompts.transcribe(wanted.language and language_code(wanted.language))
    question = Item("", "message", role="user", content=[content, Content("input_text", prompt)])
    inputs = await server.prepare(await server.in_pool(lambda _: messages("", [question])))
    tokens = server.prompt_tokens(inputs["input_ids"])
    counts: dict[str, Any] = {
        "input_tokens": sum(tokens.values()),
        "input_token_details": {name: tokens[name] for name in ("text_tokens", "audio_tokens")},
    }
    speech = {"return_audio": False} if server.speaks else {}
    return await server.submit(inputs, tokenizer=server.processor.tokenizer, **speech), counts
