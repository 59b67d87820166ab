"""`POST /v1/audio/transcriptions` and `/translations`: a file of sound to text, whole or streamed."""

import math
from collections.abc import AsyncGenerator, Iterator
from types import SimpleNamespace
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from ..errors import MediaError
from ..input.access import policy_scope
from ..input.audio import SAMPLING_RATE_HZ
from ..input.load import load_audio
from ..outputs import StreamEnd, TextDelta
from .answer_text import Thoughts
from .metrics import LENGTH, end_reason
from .protocol import (
    ApiError,
    Body,
    EventStream,
    error_event,
    event,
    invalid,
    missing,
    refuse,
    unless_disconnected,
    validate_body,
)
from .schema import Seed
from .server import Server
from .settings import LANGUAGES, language_code

MAX_TOKENS, MAX_TOKENS_PER_S = 256, 8
"""Of a text, and in addition per second of sound: more than anybody says."""
MAX_FIELDS, FIELD_BYTES = 64, 1 << 16
LIST_FIELDS = ("include", "timestamp_granularities")
UNTIMED = "the model does not tell when something was said"

Piece = tuple[str, list[dict[str, Any]]]
"""Text, and log-probabilities of its tokens."""
Pieces = AsyncGenerator[Piece, None]


class TranslationForm(Body):
    """Fields of a form, all of them texts. seed is ours."""

    model_config = ConfigDict(extra="forbid", strict=False, allow_inf_nan=False)

    model: str
    prompt: str | None = None
    response_format: Literal["json", "text", "verbose_json", "srt", "vtt", "diarized_json"] = "json"
    temperature: Annotated[float, Field(ge=0, le=1)] = 0.0
    seed: Seed | None = None


class TranscriptionForm(TranslationForm):
    """The same for sounds that are transcribed in their own language."""

    language: str | None = None
    stream: bool = False
    include: list[Literal["logprobs"]] | None = None
    timestamp_granularities: list[Literal["word", "segment"]] | None = None
    chunking_strategy: str | None = None


async def transcriptions(request: Request) -> Response:
    """What is said in a file."""
    return await _answer(request, TranscriptionForm)


async def translations(request: Request) -> Response:
    """What it means, in English."""
    return await _answer(request, TranslationForm)


async def _answer(request, kind):
    server: Server = request.app.state.server
    server.check_ready()
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise invalid("expected a form (multipart/form-data) with a file", code="invalid_content_type")
    async with request.form(max_files=1, max_fields=MAX_FIELDS, max_part_size=FIELD_BYTES) as sent:
        file, values = _fields(sent, server)
        form = validate_body(values, kind)
        server.check_model(form.model)
        for name, message in _unsupported(form):
            raise refuse(name, message, "unsupported_value")
        transcription = Transcription(server, form)
        await unless_disconnected(request, transcription.submit(file))
    pieces = transcription.pieces()
    if not transcription.streams:
        return await unless_disconnected(request, transcription.whole(pieces))
    first = await unless_disconnected(request, anext(pieces, None))  # what goes wrong is told by a status then
    return EventStream(transcription.events(first, pieces))


def _fields(sent, server):
    """The file, and the other fields by name; clients write lists as `name[]`."""
    values: dict[str, Any] = {}
    file = None
    for key, value in sent.multi_items():
        name = key.removesuffix("[]") if key.removesuffix("[]") in LIST_FIELDS else key
        if name == "file":
            if isinstance(value, str):
                raise invalid("file is a text; send it with a filename, so that it is a file", "file")
            file = value
        elif isinstance(value, UploadFile):
            raise ApiError(400, f"{name}: a file, expected a text" if name == "model" else f"unknown file {name!r}", name)
        elif name in LIST_FIELDS:
            values.setdefault(name, []).append(value)
        elif name in values:
            raise invalid(f"{name} is given twice", name)
        else:
            values[name] = value
    if file is None:
        raise missing("file")
    limit = server.policy.audio_bytes
    if file.size > limit:
        raise ApiError(413, f"the file has {file.size} bytes, expected at most {limit}", "file", "request_too_large")
    if file.size == 0:
        raise invalid("file is empty", "file")
    return file, values


def _unsupported(form) -> Iterator[tuple[str, str]]:
    """Arguments that ask for what the model cannot do, and why."""
    if form.response_format in ("srt", "vtt", "diarized_json"):
        why = "nor who" if form.response_format == "diarized_json" else "so there are no subtitles"
        yield "response_format", f"{UNTIMED}, {why}; take json, text or verbose_json"
    if not isinstance(form, TranscriptionForm):
        return
    if form.timestamp_granularities:
        yield "timestamp_granularities", f"{UNTIMED}; leave it out"
    if form.chunking_strategy is not None:
        yield "chunking_strategy", "sounds are heard as a whole; leave it out"
    if form.stream and form.response_format == "verbose_json":
        yield "response_format", "a stream has no room for verbose_json; take json or text"
    if form.include and form.response_format != "json":
        yield "include", "logprobs come with response_format=json"
    if form.language is not None and language_code(form.language) is None:
        known = ", ".join(LANGUAGES)
        yield "language", f"there is no {form.language!r:.40}; expected an ISO-639-1 code: {known}"


class Transcription:
    """The text of a sound, in its language or in English."""

    def __init__(self, server: Server, form: Any):
        self.server, self.form = server, form
        self.translates = not isinstance(form, TranscriptionForm)
        language = getattr(form, "language", None)
        self.language = None if language is None else language_code(language)
        self.streams = bool(getattr(form, "stream", False))
        self.with_logprobs = bool(getattr(form, "include", None))
        self.seconds, self.tokens = 0.0, 0
        self.prompt_tokens = {"text_tokens": 0, "audio_tokens": 0}
        self.logprobs: list[dict[str, Any]] = []

    async def submit(self, file: UploadFile) -> None:
        """Decodes the file and begins the answer. Raises `ApiError` and `OmniError`."""
        server, form = self.server, self.form
        name = (file.filename or "")[-80:] or "without a name"
        opened = SimpleNamespace(read=file.file.read, seek=file.file.seek, name=name)

        def decode(_):
            with policy_scope(server.policy):
                return load_audio(opened)

        try:
            sound = await server.in_pool(decode)
        except MediaError as error:
            raise invalid(str(error), "file") from None
        self.seconds = len(sound) / SAMPLING_RATE_HZ
        prompt = server.prompts.translation if self.translates else server.prompts.transcribe(self.language)
        content = [{"type": "audio", "audio": sound}, {"type": "text", "text": prompt}]
        messages: list[dict] = [{"role": "user", "content": content}]
        if form.prompt:
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": form.prompt}]})
        inputs = await server.prepare(messages)
        ids = inputs["input_ids"]
        self._thoughts = Thoughts(server.opens_thoughts(ids))
        counts = server.prompt_tokens(ids)
        self.prompt_tokens = {name: counts[name] for name in self.prompt_tokens}
        options: dict[str, Any] = {"do_sample": form.temperature > 0, "return_audio": False}
        if form.temperature > 0:
            options |= {"temperature": form.temperature, "seed": form.seed}
        if self.with_logprobs:
            options["logprobs"] = 0
        limit = MAX_TOKENS + MAX_TOKENS_PER_S * math.ceil(self.seconds)
        if server.settings.max_model_len is not None:
            limit = max(min(limit, server.settings.max_model_len - ids.size), 1)
        self._answer = await server.submit(inputs, tokenizer=server.processor.tokenizer, max_new_tokens=limit, **options)

    async def pieces(self) -> Pieces:
        """Text without the white space around it, and log-probabilities of its tokens. Raises `ApiError` for one without an end."""
        begun, space = False, ""
        try:
            async for item in self._answer:
                if isinstance(item, StreamEnd) and end_reason(item) == LENGTH:
                    raise self._endless(*item.reasons)
                if not isinstance(item, TextDelta):
                    continue
                self.tokens += 1
                token = int(item.token[0])
                logprobs = []
                if item.logprobs is not None and token not in self.server.end_ids and not self._thoughts.thinking:
                    logprobs = [self.server.token_texts.single(token, item.logprobs[0].chosen)]
                _, piece = self._thoughts.push("" if item.text is None else item.text[0])
                text = space + piece if begun else piece.lstrip()
                stripped = text.rstrip()
                begun, space = begun or bool(stripped), text[len(stripped) :]
                if stripped or logprobs:
                    yield stripped, logprobs
            if last := (space + self._thoughts.rest()[1]).rstrip():
                yield last if begun else last.lstrip(), []
        finally:
            self._answer.cancel()

    def _endless(self, reason):
        if reason == "time":
            return ApiError(504, f"it took longer than {self.server.settings.request_s:g} s", code="timeout")
        return ApiError(
            422,
            f"the text had not ended after {self.tokens} tokens, for {self.seconds:.1f} s of sound; is there speech in it?",
            "file",
            "transcript_too_long",
        )

    async def whole(self, pieces: Pieces) -> Response:
        """In the form that was asked for."""
        text = ""
        async for piece, logprobs in pieces:
            text += piece
            self.logprobs += logprobs
        if self.form.response_format == "text":
            return PlainTextResponse(text + "\n")
        if self.form.response_format == "json":
            return JSONResponse({"text": text, **self._logprobs, **({} if self.translates else {"usage": self.usage})})
        language = "english" if self.translates else LANGUAGES.get(self.language or "", "unknown").lower()
        verbose: dict[str, Any] = {"task": "translate" if self.translates else "transcribe", "language": language}
        verbose |= {"duration": round(self.seconds, 3), "text": text}
        if not self.translates:
            verbose["usage"] = {"type": "duration", "seconds": math.ceil(self.seconds)}
        return JSONResponse(verbose)

    async def events(self, first: Piece | None, pieces: Pieces) -> AsyncGenerator[bytes, None]:
        """OpenAI's events: `transcript.text.delta` for each piece, then `transcript.text.done`."""
        text = ""
        try:
            while first is not None:
                piece, logprobs = first
                text += piece
                self.logprobs += logprobs
                more = {"logprobs": logprobs} if self.with_logprobs else {}
                yield event({"type": "transcript.text.delta", "delta": piece, **more})
                first = await anext(pieces, None)
            yield event({"type": "transcript.text.done", "text": text, **self._logprobs, "usage": self.usage})
        except Exception as error:
            yield error_event(error)
        finally:
            await pieces.aclose()

    @property
    def _logprobs(self):
        return {"logprobs": self.logprobs} if self.with_logprobs else {}

    @property
    def usage(self) -> dict[str, Any]:
        """Tokens of the sound and the prompt, and of the text."""
        prompt = sum(self.prompt_tokens.values())
        return {
            "type": "tokens",
            "input_tokens": prompt,
            "input_token_details": self.prompt_tokens,
            "output_tokens": self.tokens,
            "total_tokens": prompt + self.tokens,
        }


ROUTES = [
    Route("/v1/audio/transcriptions", transcriptions, methods=["POST"]),
    Route("/v1/audio/translations", translations, methods=["POST"]),
]
