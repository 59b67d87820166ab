"""Events that clients send, read strictly; older spellings of the Realtime API, which many still send, become today's."""

import json
import uuid
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from ..protocol import ApiError, Body, api_error, check_separators, check_values, invalid
from .settings import Format, MaxTokens, Modalities, Temperature, Tool, ToolChoice, voice_name

OLD_FORMATS = {"pcm16": "audio/pcm", "g711_ulaw": "audio/pcmu", "g711_alaw": "audio/pcma"}
OLD_PARTS = {"text": "input_text", "audio": "input_audio"}
OLD_ASSISTANT_PARTS = {"text": "output_text", "audio": "output_audio", "input_text": "output_text"}
OLD_PLACES = {
    "modalities": ("output_modalities",),
    "max_response_output_tokens": ("max_output_tokens",),
    "input_audio_format": ("audio", "input", "format"),
    "input_audio_transcription": ("audio", "input", "transcription"),
    "input_audio_noise_reduction": ("audio", "input", "noise_reduction"),
    "turn_detection": ("audio", "input", "turn_detection"),
    "output_audio_format": ("audio", "output", "format"),
    "voice": ("audio", "output", "voice"),
    "speed": ("audio", "output", "speed"),
}
"""Older names at the top of a session or response, and where they stand today."""
PART_TYPES = {
    "system": ("input_text",),
    "user": ("input_text", "input_audio", "input_image"),
    "assistant": ("output_text", "output_audio"),
}
Emit = Callable[[dict[str, Any]], None]
METADATA_ENTRIES, METADATA_KEY, METADATA_VALUE = 16, 64, 512


def modernised(event: Mapping[str, Any]) -> dict[str, Any]:
    """An event in today's spelling. Raises `ApiError` for what is given in both."""
    event = dict(event)
    for name in ("session", "response"):
        if isinstance(event.get(name), Mapping):
            event[name] = _settings(event[name], name)
    if isinstance(event.get("item"), Mapping):
        event["item"] = _item(event["item"])
    response = event.get("response")
    if isinstance(response, Mapping) and isinstance(response.get("input"), list):
        event["response"] = {
            **response,
            "input": [_item(item) if isinstance(item, Mapping) else item for item in response["input"]],
        }
    return event


def _settings(given, where):
    settings = {name: value for name, value in given.items() if name not in OLD_PLACES}
    for name, (*path, last) in OLD_PLACES.items():
        if name not in given:
            continue
        value, parent = _value(name, given[name]), settings
        for part in path:
            inner = parent.get(part)
            parent[part] = dict(inner) if isinstance(inner, Mapping) else {}
            parent = parent[part]
        if last in parent:
            raise invalid(f"{name} is the older name of {'.'.join((*path, last))}; give one of them", f"{where}.{name}")
        parent[last] = value
    return settings


def _value(name, value):
    if name.endswith("_format") and isinstance(value, str):
        if value not in OLD_FORMATS:
            raise invalid(f"{name} is {value!r}, expected {', '.join(OLD_FORMATS)}", name)
        return {"type": OLD_FORMATS[value]}
    if name == "modalities" and isinstance(value, list) and sorted(map(str, value)) == ["audio", "text"]:
        return ["audio"]  # sound always comes with its text
    return value


def _item(item):
    content = item.get("content")
    if not isinstance(content, list):
        return item
    names = OLD_ASSISTANT_PARTS if item.get("role") == "assistant" else OLD_PARTS
    return {**item, "content": [_part(part, names) if isinstance(part, Mapping) else part for part in content]}


def _part(part, names):
    kind = part.get("type")
    return {**part, "type": names.get(kind, kind)}


def new_id(kind: str) -> str:
    """A name for something that clients see, as "item_1f..."."""
    return f"{kind}_{uuid.uuid4().hex[:24]}"


class Part(Body):
    """Of a message."""

    type: Literal["input_text", "input_audio", "input_image", "output_text", "output_audio"]
    text: str | None = None
    audio: str | None = None
    transcript: str | None = None
    image_url: str | None = None
    detail: Literal["auto", "low", "high"] | None = None

    @model_validator(mode="after")
    def _check(self) -> "Part":
        needed = {"input_text": "text", "input_audio": "audio", "input_image": "image_url", "output_text": "text"}.get(
            self.type
        )
        if needed and getattr(self, needed) is None:
            raise ValueError(f"a part of type {self.type} needs {needed}")
        if self.type == "output_audio" and (self.audio is not None or self.transcript is None):
            raise ValueError(
                "of earlier speech of the assistant's only the transcript is taken: give transcript, and no audio"
            )
        if self.type == "input_image" and not (self.image_url or "").startswith("data:"):
            raise ValueError("image_url must be a data URI, 'data:image/png;base64,...'")
        return self


class GivenItem(Body):
    """An item as a client makes it."""

    type: Literal["message", "function_call", "function_call_output", "item_reference"]
    id: str | None = Field(default=None, min_length=1, max_length=128)
    object: Literal["realtime.item"] | None = None
    status: Literal["completed", "incomplete", "in_progress"] | None = None
    role: Literal["system", "user", "assistant"] | None = None
    content: list[Part] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | None = None

    @model_validator(mode="after")
    def _check(self) -> "GivenItem":
        needed = {"message": ("role", "content"), "function_call": ("name", "arguments"), "item_reference": ("id",)}
        needed |= {"function_call_output": ("call_id", "output")}
        own = (*needed[self.type], *(("call_id",) if self.type == "function_call" else ()))
        for name in needed[self.type]:
            if getattr(self, name) is None:
                raise ValueError(f"an item of type {self.type} needs {name}")
        for name in ("role", "content", "call_id", "name", "arguments", "output"):
            if name not in own and getattr(self, name) is not None:
                raise ValueError(f"an item of type {self.type} has no {name}")
        for part in self.content or ():
            kinds = PART_TYPES[self.role or "user"]
            if part.type not in kinds:
                raise ValueError(f"a message of role {self.role} has parts of type {', '.join(kinds)}, got {part.type}")
        return self


class GivenOutput(Body):
    """`response.audio.output`"""

    format: Format | None = None
    voice: Annotated[str | None, BeforeValidator(voice_name)] = None


class GivenAudio(Body):
    """`response.audio`"""

    output: GivenOutput = GivenOutput()


class GivenResponse(Body):
    """What one response has otherwise than its session; None: as the session."""

    conversation: Literal["auto", "none"] = "auto"
    input: list[GivenItem] | None = None
    metadata: dict[str, str] | None = None
    instructions: str | None = None
    output_modalities: Modalities | None = None
    audio: GivenAudio = GivenAudio()
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: Literal[True] | None = None
    max_output_tokens: MaxTokens | None = None
    temperature: Temperature | None = None
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=1)
    seed: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _check(self) -> "GivenResponse":
        given = self.metadata or {}
        long = [key for key, value in given.items() if len(key) > METADATA_KEY or len(value) > METADATA_VALUE]
        if len(given) > METADATA_ENTRIES or long:
            raise ValueError("metadata may have 16 entries, with keys of 64 and values of 512 characters")
        return self


class Event(Body):
    """Of a client."""

    type: str
    event_id: str | None = Field(default=None, max_length=512)


class SessionUpdate(Event):
    """Some settings change."""

    session: dict[str, Any]


class AudioAppend(Event):
    """More sound in base64."""

    audio: str


class AudioCommit(Event):
    """What was sent is an item."""


class AudioClear(Event):
    """What was sent is forgotten."""


class ItemCreate(Event):
    """An item behind another one."""

    item: GivenItem
    previous_item_id: str | None = None


class ItemRetrieve(Event):
    """An item is wanted whole."""

    item_id: str


class ItemDelete(Event):
    """An item is forgotten."""

    item_id: str


class ItemTruncate(Event):
    """So much of a spoken answer was heard."""

    item_id: str
    content_index: int = Field(ge=0)
    audio_end_ms: int = Field(ge=0)


class ResponseCreate(Event):
    """An answer is wanted."""

    response: GivenResponse | None = None


class ResponseCancel(Event):
    """An answer is not wanted any more."""

    response_id: str | None = None


class OutputClear(Event):
    """For WebRTC."""


EVENTS: dict[str, type[Event]] = {
    "session.update": SessionUpdate,
    "input_audio_buffer.append": AudioAppend,
    "input_audio_buffer.commit": AudioCommit,
    "input_audio_buffer.clear": AudioClear,
    "conversation.item.create": ItemCreate,
    "conversation.item.retrieve": ItemRetrieve,
    "conversation.item.truncate": ItemTruncate,
    "conversation.item.delete": ItemDelete,
    "response.create": ResponseCreate,
    "response.cancel": ResponseCancel,
    "output_audio_buffer.clear": OutputClear,
}


def _no_constant(name):
    raise ValueError(f"{name} is no JSON")


def decoded(text: str) -> dict[str, Any]:
    """A message as a JSON object. Raises `ApiError`."""
    check_separators(text)
    try:
        message = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise invalid("a message must be a JSON object; this is no JSON", code="invalid_json") from None
    if not isinstance(message, dict):
        raise invalid("a message must be a JSON object with a type", code="invalid_event")
    check_values(message, "the message")
    return message


def parsed(message: dict[str, Any]) -> Event:
    """The event of a message. Raises `ApiError` with the field at fault."""
    kind = message.get("type")
    if not isinstance(kind, str):
        raise invalid("an event needs a type", "type", "missing_required_parameter")
    if kind not in EVENTS:
        raise invalid(f"there is no event {kind!r:.80}; expected {', '.join(EVENTS)}", "type")
    try:
        return EVENTS[kind].model_validate(modernised(message))
    except ValueError as error:
        raise coded(error) from None


def coded(error: BaseException, prefix: str = "") -> ApiError:
    """As an `ApiError` that always has a code; prefix: of the name of the field at fault."""
    problem = api_error(error)
    if problem.param is not None:
        problem.param = prefix + problem.param
    if problem.code is None:
        missing = problem.message.endswith(("Field required", "field required"))
        problem.code = "missing_required_parameter" if missing else "invalid_value"
    return problem
