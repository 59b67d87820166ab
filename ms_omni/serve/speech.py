"""`POST /v1/audio/speech`: a text spoken in one of the model's voices, in any format, streamed.

Long texts are cut where a reader would breathe, into pieces that the talker can say in one go.
"""

import asyncio
import base64
import re
import unicodedata
from collections.abc import AsyncGenerator
from itertools import pairwise
from typing import Annotated, Literal

import numpy as np
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..input.messages import spoken_turn
from ..outputs import AudioChunk, StreamEnd
from .protocol import (
    ApiError,
    Body,
    EventStream,
    error_event,
    event,
    invalid,
    read_body,
    refuse,
    unless_disconnected,
    within,
)
from .schema import Penalty, Probability, Seed, Temperature, Voice
from .server import Server
from .sound import SPEEDS, Encoder, Tempo

PIECE_S = 60.0
"""The longest that a piece may take to say: far below what talkers are limited to, for nobody knows how slowly one speaks."""
LETTER_S, WIDE_S, DIGIT_S = 0.08, 0.3, 0.4
MARKS = (r"\n\s*", r"[.!?…]+[\"'”’)\]]*\s+|[。！？…]+[”’」』）]*\s*", r"[;:]\s+|[；：]", r",\s+|[，、]", r"\s+")  # noqa: RUF001
"""What a piece may end with, the best first."""
MAX_CHARACTERS = 4096
SAMPLING = ("talker_temperature", "talker_top_k", "talker_top_p", "talker_do_sample", "talker_repetition_penalty", "seed")


class SpeechBody(Body):
    """OpenAI's fields; ours are how speech is drawn, and how many frames of 80 ms there may be."""

    input: str
    model: str
    voice: str | Voice
    instructions: str | None = None
    response_format: Literal["wav", "pcm", "pcm16", "flac", "mp3", "aac", "opus"] | None = None
    speed: Annotated[float, Field(ge=SPEEDS[0], le=SPEEDS[1])] | None = None
    stream_format: Literal["audio", "sse"] | None = None
    seed: Seed | None = None
    talker_temperature: Temperature | None = None
    talker_top_k: Annotated[int, Field(ge=0)] | None = None
    talker_top_p: Probability | None = None
    talker_do_sample: bool | None = None
    talker_repetition_penalty: Penalty | None = None
    talker_max_new_tokens: Annotated[int, Field(ge=1)] | None = None

    @property
    def speaker(self) -> str:
        """The voice's name."""
        return self.voice if isinstance(self.voice, str) else self.voice.id


async def speech(request: Request) -> Response:
    """A sound, or events with pieces of it."""
    server: Server = request.app.state.server
    body = await read_body(request, SpeechBody)
    server.check_model(body.model)
    server.check_ready()
    _check(body, server)
    encoder = Encoder(body.response_format or "mp3")
    synthesis = Synthesis(server, body)
    pieces = _encoded(synthesis, encoder, Tempo(body.speed or 1.0))
    first = await unless_disconnected(request, anext(pieces, b""))  # what goes wrong is told by a status then
    pieces = _chained(first, pieces)
    if body.stream_format == "sse":
        return EventStream(_events(synthesis, pieces))
    return EventStream(pieces, encoder.content_type)


def _check(body, server):
    if not server.speaks:
        raise ApiError(400, f"{server.settings.name} does not speak here: it has no talker, or was started without", "model")
    if not body.input.strip():
        raise refuse("input", "there is nothing to say; give a text")
    if len(body.input) > MAX_CHARACTERS:
        count = len(body.input)
        raise invalid(
            f"input has {count} characters, expected at most {MAX_CHARACTERS}; ask several times", "input", "string_too_long"
        )
    if body.speaker.lower() not in (name.lower() for name in server.voices):
        known = ", ".join(server.voices)
        raise refuse("voice", f"there is no {body.speaker!r:.80}; this model has {known}")


class Synthesis:
    """The speech of a text. input_tokens, frames: so far."""

    def __init__(self, server: Server, body: SpeechBody):
        self.server, self.body = server, body
        self.input_tokens = self.frames = 0

    @property
    def usage(self) -> dict[str, int]:
        """As OpenAI counts: tokens of the text, and frames of sound."""
        return {
            "input_tokens": self.input_tokens,
            "output_tokens": self.frames,
            "total_tokens": self.input_tokens + self.frames,
        }

    async def sounds(self) -> AsyncGenerator[np.ndarray, None]:
        """Samples float32 `[n]`, one part of a long text behind the other. Raises `ApiError` 504 where it takes too long."""
        limit, loop = self.server.settings.request_s, asyncio.get_running_loop()
        ends = loop.time() + limit
        with self.server.worker.reserved():
            for text in split_text(self.body.input.strip()):
                answer = await self._submit(text)
                try:
                    while (item := await within(ends - loop.time(), anext(answer, None))) is not None:
                        if isinstance(item, AudioChunk):
                            yield item.pcm[0]
                        elif isinstance(item, StreamEnd):
                            self.frames += int(item.frames[0])
                except asyncio.TimeoutError:
                    raise ApiError(504, f"it took longer than {limit:g} s to say that", code="timeout") from None
                finally:
                    answer.cancel()
                if (
                    self._left is not None and self._left <= 1
                ):  # the last frame that is drawn ends the speech and has no sound
                    return

    @property
    def _left(self):
        """Frames that there may still be; None: any number."""
        limit = self.body.talker_max_new_tokens
        return None if limit is None else limit - self.frames

    async def _submit(self, text):
        body = self.body
        inputs = await self.server.in_pool(lambda processor: spoken_turn(processor, text, body.instructions))
        self.input_tokens += inputs["input_ids"].shape[1]
        options = {name: getattr(body, name) for name in SAMPLING if getattr(body, name) is not None}
        if self._left is not None:
            options["talker_max_new_tokens"] = self._left
        return await self.server.submit(inputs, reserved=True, given=True, speaker=body.speaker, **options)


async def _encoded(synthesis: Synthesis, encoder: Encoder, tempo: Tempo) -> AsyncGenerator[bytes, None]:
    """Pieces of a file, none of them empty."""

    def encode(samples: np.ndarray | None) -> bytes:
        if samples is not None:
            return encoder.write(tempo.write(samples))
        return encoder.write(tempo.finish()) + encoder.finish()

    sounds = synthesis.sounds()
    try:
        async for samples in sounds:
            if data := await asyncio.to_thread(encode, samples):
                yield data
        if data := await asyncio.to_thread(encode, None):
            yield data
    finally:
        await sounds.aclose()


async def _chained(first: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    try:
        if first:
            yield first
        async for data in rest:
            yield data
    finally:
        await rest.aclose()


async def _events(synthesis: Synthesis, pieces: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """OpenAI's events: `speech.audio.delta` for pieces of the file, then `speech.audio.done`."""
    try:
        async for data in pieces:
            yield event({"type": "speech.audio.delta", "audio": base64.b64encode(data).decode()})
        yield event({"type": "speech.audio.done", "usage": synthesis.usage})
    except Exception as error:
        yield error_event(error)
    finally:
        await pieces.aclose()


ROUTES = [Route("/v1/audio/speech", speech, methods=["POST"])]


# -- long texts ------------------------------------------------------------------------------------------------------


def estimated_s(text: str) -> float:
    """About how long it takes to say a text."""
    return sum(_seconds(letter) for letter in text)


def split_text(text: str, limit_s: float = PIECE_S, marks: tuple[str, ...] = MARKS) -> list[str]:
    """A text in parts that take at most `limit_s` to say, as few as can be at the best places; joined they are the text."""
    if estimated_s(text) <= limit_s:
        return [text]
    if not marks:
        return _slices(text, limit_s)
    pieces: list[str] = []
    for part in _parts(text, marks[0]):
        if pieces and estimated_s(pieces[-1]) + estimated_s(part) <= limit_s:
            pieces[-1] += part
        else:
            pieces += split_text(part, limit_s, marks[1:])
    return pieces


def _parts(text, mark):
    bounds = [0, *(match.end() for match in re.finditer(mark, text)), len(text)]
    return [text[start:stop] for start, stop in pairwise(bounds) if start < stop]


def _slices(text, limit_s):
    pieces, left = [""], limit_s
    for letter in text:
        seconds = _seconds(letter)
        if seconds > left:
            pieces.append("")
            left = limit_s
        pieces[-1] += letter
        left -= seconds
    return pieces


def _seconds(letter):
    if letter.isdigit():
        return DIGIT_S
    return WIDE_S if unicodedata.east_asian_width(letter) in "WF" else LETTER_S
