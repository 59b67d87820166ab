"""Events that clients send, read strictly."""

import json
import uuid
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from ..bodies import check_separators, check_values
from ..errors import ApiError, api_error
from .beta import updated
from .settings import Format, MaxTokens, Modalities, Strict, Temperature, Tool, ToolChoice, _voice

KINDS = {
    "system": ("input_text",),
    "user": ("input_text", "input_audio", "input_image"),
    "assistant": ("output_text", "output_audio"),
}
METADATA = {"entries": 16, "key": 64, "value": 512}


def new_id(kind: str) -> str:
    """A name for something that clients see, "item_1f..."."""
    return f"{kind}_{uuid.uuid4().hex[:24]}"


class Part(Strict):
    """Of a message."""

    type: Literal["input_text", "input_audio", "input_image", "output_text", "output_audio"]
    text: str | None = None
    audio: str | None = None
    transcript: str | None = None
    image_url: str | None = None
    detail: Literal["auto", "low", "high"] | None = None

    @model_validator(mode="after")
    def check(self) -> "Part":
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


class GivenItem(Strict):
    """An item as a client makes it."""

    type: Literal["message", "function_call", "function_call_output", "item_reference"]
    id: str | None = Field(None, min_length=1, max_length=128)
    object: Literal["realtime.item"] | None = None
    status: Literal["completed", "incomplete", "in_progress"] | None = None
    role: Literal["system", "user", "assistant"] | None = None
    content: list[Part] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | None = None

    @model_validator(mode="after")
    def check(self) -> "GivenItem":
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
            kinds = KINDS[self.role or "user"]
            if part.type not in kinds:
                raise ValueError(f"a message of role {self.role} has parts of type {', '.join(kinds)}, got {part.type}")
        return self


class GivenSpeaking(Strict):
    """`response.audio.output`"""

    format: Format | None = None
    voice: Annotated[str | None, BeforeValidator(_voice)] = None


class GivenAudio(Strict):
    """`response.audio`"""

    output: GivenSpeaking = GivenSpeaking()


class GivenResponse(Strict):
    """What one response has otherwise than its session; None: as that."""

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
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=0)

    @model_validator(mode="after")
    def check(self) -> "GivenResponse":
        given = self.metadata or {}
        long = [key for key, value in given.items() if len(key) > METADATA["key"] or len(value) > METADATA["value"]]
        if len(given) > METADATA["entries"] or long:
            raise ValueError("metadata may have 16 entries, with keys of 64 and values of 512 characters")
        return self


class Event(Strict):
    """Of a client."""

    type: str
    event_id: str | None = Field(None, max_length=512)


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
        found = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise ApiError(400, "a message must be a JSON object; this is no JSON", code="invalid_json") from None
    if not isinstance(found, dict):
        raise ApiError(400, "a message must be a JSON object with a type", code="invalid_event")
    check_values(found, "the message")
    return found


def parsed(message: dict[str, Any]) -> Event:
    """The event of a message. Raises `ApiError` with the field at fault."""
    kind = message.get("type")
    if not isinstance(kind, str):
        raise ApiError(400, "an event needs a type", "type", "missing_required_parameter")
    if kind not in EVENTS:
        raise ApiError(400, f"there is no event {kind!r:.80}; expected {', '.join(EVENTS)}", "type", "invalid_value")
    try:
        return EVENTS[kind].model_validate(updated(message))
    except ValueError as error:
        raise coded(error) from None


def coded(error: BaseException, prefix: str = "") -> ApiError:
    """As an `ApiError` that always has a code; prefix: of the name of the field at fault."""
    found = api_error(error)
    if found.param is not None:
        found.param = prefix + found.param
    if found.code is None:
        missing = found.message.endswith(("Field required", "field required"))
        found.code = "missing_required_parameter" if missing else "invalid_value"
    return found
