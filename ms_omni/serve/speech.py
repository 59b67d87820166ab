"""`POST /v1/audio/speech`: says a text in one of the model's voices, in any format, as it is made."""

import asyncio
import base64
from collections.abc import AsyncGenerator
from typing import Annotated, Literal

import numpy as np
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from ..input.chat import spoken_turn
from ..outputs import AudioChunk, StreamEnd
from .bodies import Body, read_body
from .errors import ApiError
from .sentences import pieces
from .server import Server
from .sound import FORMATS, SPEEDS, Encoder, Tempo
from .streams import EventStream, error_event, event, unless_gone, within

MOST_LETTERS = 4096


class VoiceId(Body):
    """A voice by its id, which is its name."""

    id: str


class SpeechBody(Body):
    """OpenAI's fields; ours are how speech is drawn, and how many frames of 80 ms there may be."""

    input: str
    model: str
    voice: str | VoiceId
    instructions: str | None = None
    response_format: Literal[tuple(FORMATS)] | None = None
    speed: Annotated[float, Field(ge=SPEEDS[0], le=SPEEDS[1])] | None = None
    stream_format: Literal["audio", "sse"] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    talker_temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    talker_top_k: Annotated[int, Field(ge=0)] | None = None
    talker_top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    talker_do_sample: bool | None = None
    talker_repetition_penalty: Annotated[float, Field(gt=0, le=2)] | None = None
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
    said = Said(server, body)
    sounds = _encoded(said, encoder, Tempo(body.speed or 1.0))
    first = await unless_gone(request, anext(sounds, b""))  # what is wrong is said by a status then
    sounds = _again(first, sounds)
    if body.stream_format == "sse":
        return EventStream(_events(said, sounds))
    return EventStream(sounds, encoder.content_type)


def _check(body, server):
    if not server.speaks:
        raise ApiError(400, f"{server.settings.name} does not speak here: it has no talker, or was started without", "model")
    if not body.input.strip():
        raise ApiError(400, "input: there is nothing to say; give a text", "input", "invalid_value")
    if len(body.input) > MOST_LETTERS:
        count = len(body.input)
        raise ApiError(
            400,
            f"input has {count} characters, expected at most {MOST_LETTERS}; ask several times",
            "input",
            "string_too_long",
        )
    if body.speaker.lower() not in (name.lower() for name in server.voices):
        known = ", ".join(server.voices)
        raise ApiError(400, f"voice: there is no {body.speaker!r:.80}; this model has {known}", "voice", "invalid_value")


class Said:
    """A text on its way to a listener. input_tokens, frames: so far."""

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
        with self.server.worker.held():
            for text in pieces(self.body.input.strip()):
                answer = await self._ask(text)
                try:
                    while (found := await within(ends - loop.time(), anext(answer, None))) is not None:
                        if isinstance(found, AudioChunk):
                            yield found.pcm[0]
                        elif isinstance(found, StreamEnd):
                            self.frames += int(found.frames[0])
                except asyncio.TimeoutError:
                    raise ApiError(504, f"it took longer than {limit:g} s to say that", code="timeout") from None
                finally:
                    answer.cancel()
                if self._left is not None and self._left <= 1:  # the last one that is drawn is not heard
                    return

    @property
    def _left(self):
        """Frames that there may still be, if somebody has said how many."""
        most = self.body.talker_max_new_tokens
        return None if most is None else most - self.frames

    async def _ask(self, text):
        body = self.body
        inputs = await self.server.in_pool(lambda processor: spoken_turn(processor, text, body.instructions))
        self.input_tokens += inputs["input_ids"].shape[1]
        names = (
            "talker_temperature",
            "talker_top_k",
            "talker_top_p",
            "talker_do_sample",
            "talker_repetition_penalty",
            "seed",
        )
        options = {name: getattr(body, name) for name in names if getattr(body, name) is not None}
        if self._left is not None:
            options["talker_max_new_tokens"] = self._left
        return await self.server.ask(inputs, held=True, given=True, speaker=body.speaker, **options)


async def _encoded(said: Said, encoder: Encoder, tempo: Tempo) -> AsyncGenerator[bytes, None]:
    """Pieces of a file, none of them empty."""

    def work(samples: np.ndarray | None) -> bytes:
        if samples is not None:
            return encoder.write(tempo.write(samples))
        return encoder.write(tempo.finish()) + encoder.finish()

    sounds = said.sounds()
    try:
        async for samples in sounds:
            if data := await asyncio.to_thread(work, samples):
                yield data
        if data := await asyncio.to_thread(work, None):
            yield data
    finally:
        await sounds.aclose()


async def _again(first: bytes, rest: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    try:
        if first:
            yield first
        async for data in rest:
            yield data
    finally:
        await rest.aclose()


async def _events(said: Said, sounds: AsyncGenerator[bytes, None]) -> AsyncGenerator[bytes, None]:
    """OpenAI's events: `speech.audio.delta` for pieces of the file, then `speech.audio.done`."""
    try:
        async for data in sounds:
            yield event({"type": "speech.audio.delta", "audio": base64.b64encode(data).decode()})
        yield event({"type": "speech.audio.done", "usage": said.usage})
    except Exception as error:
        yield error_event(error)
    finally:
        await sounds.aclose()


ROUTES = [Route("/v1/audio/speech", speech, methods=["POST"])]
