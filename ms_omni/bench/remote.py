"""Many callers on a server that speaks OpenAI's API, ours or another: what `serving.py` measures of an engine, from outside.

What such servers stream:

OpenAI, ms_omni, DashScope   delta.content, or delta.audio.transcript and delta.audio.data (PCM, 16 bit, 24 kHz)
SGLang-Omni                  the same, but a piece may be a WAV file of its own
vLLM-Omni                    "modality": "audio" on the chunk, and a WAV file in base64 where text would be (delta.content)
"""

import asyncio
import base64
import binascii
import io
import time
import wave
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from ..api_client import ServerError, api_base, api_client, chunks, first_model
from ..outputs import SPEECH_RATE_HZ
from .callers import Caller, Load, Timings, callers, summary
from .report import Outcome, combine, publish
from .session import machine, other_load, show_progress

FAILURES_SHOWN = 3
WORDS = """\
the of and to in is that it was for on are as with his they at be this from have or by one had not but what all were when we there can an
your which their said if do will each about how up out them then she many some so these would other into has more
""".split()  # noqa: SIM905
"""Each of them one token for most tokenizers."""
PICTURE_PIXELS, SOUND_S, SOUND_RATE_HZ = 224, 2.0, 16_000
SAMPLE_BYTES = 2
WAV_HEADER_BYTES = 44


@dataclass(frozen=True)
class Settings:
    """url: with or without /v1; model: None for the first that the server names; count: callers of a run; rate: of a Poisson process,
    per second; at_once: so many at a time, each followed by the next when an answer is there; spoken: the share of
    answers in speech; tokens: of every answer at most (None: 16 to 48, by the seed); extra: further fields of every body.
    """

    url: str
    api_key: str | None = None
    model: str | None = None
    voice: str = "Ethan"
    count: int = 16
    rate: float | None = None
    at_once: Sequence[int] = (1,)
    spoken: float = 0.5
    tokens: int | None = None
    seed: int = 0
    repetitions: int = 1
    extra: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        when = "each followed by the next" if self.rate is None else f"{self.rate:g} per second"
        return f"{self.count} callers, {when}, {100 * self.spoken:.0f} % of them to be answered in speech"


def benchmark(settings: Settings, out: Path) -> int:
    """Measures, prints the report and writes it to `out`. Returns the exit code: 1 if a call failed.

    Raises `InputError` when no server answers there.
    """
    busy = other_load()
    model, outcome = asyncio.run(_measure(settings))
    head = {
        "server": api_base(settings.url),
        "model": model,
        "seed": settings.seed,
        "asked": str(settings),
        "axis": "callers at once" if settings.rate is None else "callers",
        "repetitions": settings.repetitions,
        "machine": machine(),
        "when": time.strftime("%Y-%m-%d %H:%M"),
        "busy": busy,
    }
    show_progress("")
    return publish(out, head, outcome, "serve")


async def _measure(settings):
    """The model's name, and the figures of `serve/N` for every N of `at_once`, or `serve/callers` at a rate."""
    base = api_base(settings.url)
    async with api_client(settings.api_key) as client:
        model = settings.model or await first_model(client, base)
        load = Load() if settings.tokens is None else Load(tokens=(settings.tokens, settings.tokens))
        wanted = callers(settings.count, settings.rate, settings.spoken, settings.seed, load)
        bodies = [{**question(caller, model, settings.voice), **settings.extra} for caller in wanted]
        outcome = Outcome()
        for at_once in settings.at_once if settings.rate is None else (settings.count,):
            runs = []
            for number in range(settings.repetitions):
                show_progress(f"{settings.count} callers, {at_once} at a time, run {number + 1} of {settings.repetitions}")
                calls = await _run(client, base, wanted, bodies, at_once)
                runs.append(summary(calls))
                failures = Counter(f"{call.error}" or type(call.error).__name__ for call in calls if call.error is not None)
                outcome.failures += [f"{count} calls: {text:.300}" for text, count in failures.most_common(FAILURES_SHOWN)]
            outcome.results += combine(f"serve/{at_once}", "server", runs)
    return model, outcome


async def _run(client, base, wanted, bodies, at_once):
    """Every caller calls in time, but no more than `at_once` at a time; who has to wait calls when it is their turn."""
    turns, started = asyncio.Semaphore(at_once), time.perf_counter()

    async def call(caller, body):
        await asyncio.sleep(started + caller.at_s - time.perf_counter())
        async with turns:
            timings = Timings(time.perf_counter())
            try:
                async with aclosing(chunks(client, base, body)) as pieces:
                    await record(pieces, timings)
                if "audio" in body and not timings.sounds:
                    raise ServerError("speech was asked for, and none came")
            except (httpx.HTTPError, ServerError) as error:
                timings.error = error
            return timings

    return await asyncio.gather(*map(call, wanted, bodies))


async def record(
    pieces: AsyncIterator[dict[str, Any]], call: Timings, clock: Callable[[], float] = time.perf_counter
) -> None:
    """Notes when each token and each piece of sound came, until the stream ends. Raises `ServerError` for sound that is none."""
    tokens = 0
    async for chunk in pieces:
        now, usage = clock(), chunk.get("usage") or {}
        details = usage.get("completion_tokens_details") or {}
        written = (usage.get("completion_tokens") or 0) - (details.get("audio_tokens") or 0)
        tokens = details.get("text_tokens") or written or tokens
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            audio, text = delta.get("audio") or {}, delta.get("content")
            if chunk.get("modality") == "audio":
                audio, text = {"data": text}, None
            if data := audio.get("data"):
                call.sounds.append((now, seconds_of(data)))
            if text or audio.get("transcript") or delta.get("reasoning_content"):
                call.tokens.append(now)
    call.ended = clock()
    if tokens > len(call.tokens) > 1:  # several came in one piece; of a single one nobody knows when its tokens were there
        call.tokens = np.interp(np.linspace(0, 1, tokens), np.linspace(0, 1, len(call.tokens)), call.tokens).tolist()


def seconds_of(data: str) -> float:
    """How long a piece of sound lasts: base64 of PCM (16 bit, 24 kHz, one channel), or of a WAV file. Raises `ServerError`."""
    try:
        sound = base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise ServerError("a piece of sound is not base64") from None
    if not sound.startswith(b"RIFF"):
        return len(sound) / (SAMPLE_BYTES * SPEECH_RATE_HZ)
    if len(sound) < WAV_HEADER_BYTES:
        raise ServerError("a piece of sound is a WAV file without a whole header")
    bytes_per_s = int.from_bytes(sound[28:32], "little")
    begin = sound.find(b"data") + 8  # a header may say that the length is not known yet, so bytes are counted
    return (len(sound) - begin) / bytes_per_s if bytes_per_s and begin >= 8 else 0.0


def question(caller: Caller, model: str, voice: str) -> dict[str, Any]:
    """The body of a call: as many words as the prompt has tokens, or a picture and a sound that no other has; streamed."""
    rng = np.random.default_rng(caller.seed)
    content: Any = " ".join(rng.choice(WORDS, max(caller.prompt, 1))) if not caller.media else _media(rng)
    body = {
        "model": model,
        "messages": [{"role": "user", "content": content}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_completion_tokens": caller.tokens,
        "temperature": 0,
        "seed": caller.seed[-1],
    }
    if caller.frames:
        return {**body, "modalities": ["text", "audio"], "audio": {"voice": voice, "format": "pcm16"}}
    return {**body, "modalities": ["text"]}


def _media(rng):
    picture, sound = io.BytesIO(), io.BytesIO()
    pixels = rng.integers(0, 256, (PICTURE_PIXELS // 16, PICTURE_PIXELS // 16, 3), np.uint8)
    Image.fromarray(pixels).resize((PICTURE_PIXELS, PICTURE_PIXELS)).save(picture, "PNG")
    moments = np.arange(int(SOUND_S * SOUND_RATE_HZ)) / SOUND_RATE_HZ
    samples = np.sin(2 * np.pi * rng.uniform(200, 800) * moments) * 8000 + rng.normal(0, 300, len(moments))
    with wave.open(sound, "wb") as file:
        file.setparams((1, 2, SOUND_RATE_HZ, 0, "NONE", "not compressed"))
        file.writeframes(samples.astype("<i2").tobytes())
    png, wav = (base64.b64encode(file.getvalue()).decode() for file in (picture, sound))
    return [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{png}"}},
        {"type": "input_audio", "input_audio": {"data": wav, "format": "wav"}},
        {"type": "text", "text": "What do you see and hear?"},
    ]
