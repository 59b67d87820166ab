"""What a server streams, as our own server, OpenAI's and its relatives do: when each token and each piece of sound came.

OpenAI, ms_omni, DashScope   delta.content, or delta.audio.transcript and delta.audio.data (PCM, 16 bit, 24 kHz)
SGLang-Omni                  the same, but a piece may be a WAV file of its own
vLLM-Omni                    "modality": "audio" on the chunk, and a WAV file in base64 where text would be (delta.content)
"""

import base64
import binascii
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np

from ..api_client import ServerError
from .listening import Answer

SAMPLE_RATE_HZ, SAMPLE_BYTES = 24_000, 2
WAV_HEADER_BYTES = 44


async def note(
    chunks: AsyncIterator[dict[str, Any]], answer: Answer, clock: Callable[[], float] = time.perf_counter
) -> None:
    """Notes in `answer` what comes until the stream ends. Raises `ServerError` for sound that is none."""
    tokens = 0
    async for chunk in chunks:
        tokens = _text_tokens(chunk) or tokens
        _note(chunk, answer, clock())
    answer.ended = clock()
    if tokens > len(answer.tokens) > 1:  # several came in one piece; of a single one nobody knows when its tokens were there
        moments = np.interp(np.linspace(0, 1, tokens), np.linspace(0, 1, len(answer.tokens)), answer.tokens)
        answer.tokens = moments.tolist()


def _note(chunk, answer, now):
    for choice in chunk.get("choices") or ():
        delta = choice.get("delta") or {}
        audio, text = delta.get("audio") or {}, delta.get("content")
        if chunk.get("modality") == "audio":
            audio, text = {"data": text}, None
        if data := audio.get("data"):
            answer.sounds.append((now, seconds_of(data)))
        if text or audio.get("transcript") or delta.get("reasoning_content"):
            answer.tokens.append(now)


def _text_tokens(chunk):
    usage = chunk.get("usage") or {}
    details = usage.get("completion_tokens_details") or {}
    return details.get("text_tokens") or (usage.get("completion_tokens") or 0) - (details.get("audio_tokens") or 0)


def seconds_of(data: str) -> float:
    """How long a piece of sound lasts: base64 of PCM (16 bit, 24 kHz, one channel), or of a WAV file. Raises `ServerError`."""
    try:
        sound = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise ServerError("a piece of sound is not base64") from None
    if not sound.startswith(b"RIFF"):
        return len(sound) / (SAMPLE_BYTES * SAMPLE_RATE_HZ)
    if len(sound) < WAV_HEADER_BYTES:
        raise ServerError("a piece of sound is a WAV file without a whole header")
    bytes_per_s = int.from_bytes(sound[28:32], "little")
    begin = sound.find(b"data") + 8
    return (len(sound) - begin) / bytes_per_s if bytes_per_s and begin >= 8 else 0.0
