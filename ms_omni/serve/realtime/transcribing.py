"""What a user said is written down, by the model itself, beside the conversation."""

from __future__ import annotations

import asyncio
from typing import Any

from ...outputs import StreamEnd, TextDelta
from ..errors import api_error
from ..hearing import language_code
from ..server import Server
from .items import Content, Item, messages
from .response import Emit
from .settings import Transcription

KIND = "conversation.item.input_audio_transcription"


async def transcribe(server: Server, wanted: Transcription, item: Item, emit: Emit) -> None:
    """Of the sound of a user's item: deltas, and `completed` or `failed`."""
    (content,) = item.content
    place = {"item_id": item.id, "content_index": 0}
    text, counts = "", {}
    try:
        answer, counts = await _ask(server, wanted, content)
        try:
            async for event in answer:
                if isinstance(event, TextDelta) and event.text and event.text[0]:
                    text += event.text[0]
                    emit({"type": f"{KIND}.delta", **place, "delta": event.text[0]})
                elif isinstance(event, StreamEnd):
                    counts["output_tokens"] = int(event.text_tokens[0])
        finally:
            answer.cancel()
    except asyncio.CancelledError:
        raise
    except Exception as error:
        found = api_error(error)
        told = {"type": found.type, "code": found.code, "message": found.message, "param": found.param}
        emit({"type": f"{KIND}.failed", **place, "error": told})
        return
    content.text = text.strip()
    usage = {"type": "tokens", **counts, "total_tokens": counts["input_tokens"] + counts["output_tokens"]}
    emit({"type": f"{KIND}.completed", **place, "transcript": content.text, "usage": usage})


async def _ask(server, wanted, content):
    question = server.prompts.transcribe(wanted.language and language_code(wanted.language))
    asked = Item("", "message", role="user", content=[content, Content("input_text", question)])
    inputs = await server.prepare(await server.in_pool(lambda _: messages("", [asked])))
    tokens = server.prompt_tokens(inputs["input_ids"])
    counts: dict[str, Any] = {
        "input_tokens": sum(tokens.values()),
        "input_token_details": {name: tokens[name] for name in ("text_tokens", "audio_tokens")},
    }
    speech = {"return_audio": False} if server.speaks else {}
    return await server.ask(inputs, tokenizer=server.processor.tokenizer, **speech), counts
