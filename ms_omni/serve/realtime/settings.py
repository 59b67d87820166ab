"""A session's settings as clients see and change them."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from ...outputs import SPEECH_RATE_HZ
from ..protocol import Body, invalid
from ..settings import language_code

TRANSPORT_RATE_HZ = {"audio/pcm": SPEECH_RATE_HZ, "audio/pcmu": 8_000, "audio/pcma": 8_000}


def _check_detection(value: Any) -> Any:
    if isinstance(value, Mapping) and value.get("type") == "semantic_vad":
        raise ValueError("semantic_vad is not supported here; use server_vad, or null for push to talk")
    return value


def _unsupported(what: str) -> BeforeValidator:
    """For what can only be left out."""

    def check(value: Any) -> None:
        if value is not None and value != []:
            raise ValueError(f"{what} is not supported here; leave it out or send null")

    return BeforeValidator(check)


def voice_name(value: Any) -> Any:
    """Of a voice as a name, or as an object with an id."""
    return value["id"] if isinstance(value, Mapping) and list(value) == ["id"] else value


class Format(Body):
    """Of sound between client and server: 16-bit samples of 24 kHz, or G.711 of 8 kHz; one channel."""

    type: Literal["audio/pcm", "audio/pcmu", "audio/pcma"] = "audio/pcm"
    rate: int | None = None

    def model_post_init(self, context: Any) -> None:
        expected = TRANSPORT_RATE_HZ[self.type]
        if self.rate not in (None, expected):
            raise ValueError(f"the rate of {self.type} is {expected}, got {self.rate}")

    @property
    def rate_hz(self) -> int:
        """Samples per second."""
        return TRANSPORT_RATE_HZ[self.type]

    def shown(self) -> dict[str, Any]:
        """As clients see it."""
        return {"type": self.type, "rate": self.rate_hz} if self.type == "audio/pcm" else {"type": self.type}


class TurnDetection(Body):
    """When somebody begins and ends to speak, see `audio.Turns`."""

    type: Literal["server_vad"]
    threshold: float = Field(default=0.5, ge=0, le=1)
    prefix_padding_ms: int = Field(default=300, ge=0, le=5_000)
    silence_duration_ms: int = Field(default=500, ge=50, le=10_000)
    create_response: bool = True
    interrupt_response: bool = True
    idle_timeout_ms: int | None = Field(default=None, ge=5_000, le=30_000)


class Transcription(Body):
    """What a user says is transcribed too, by the same model whatever name is given."""

    model: str | None = None
    language: str | None = None
    prompt: Annotated[None, _unsupported("a prompt for transcriptions")] = None

    @field_validator("language")
    @classmethod
    def _check_language(cls, value: str | None) -> str | None:
        if value is not None and language_code(value) is None:
            raise ValueError(f"{value!r:.40} is no language that is known here; give its ISO-639-1 code, or leave it out")
        return value


class AudioInput(Body):
    """`audio.input`"""

    format: Format = Format()
    noise_reduction: Annotated[None, _unsupported("noise reduction")] = None
    transcription: Transcription | None = None
    turn_detection: Annotated[TurnDetection | None, BeforeValidator(_check_detection)] = TurnDetection(type="server_vad")


class AudioOutput(Body):
    """`audio.output`"""

    format: Format = Format()
    voice: Annotated[str | None, BeforeValidator(voice_name)] = None
    speed: Literal[1, 1.0] = 1.0  # pyright: ignore


class Audio(Body):
    """`audio`"""

    input: AudioInput = AudioInput()
    output: AudioOutput = AudioOutput()


class Tool(Body):
    """A function that the model may call."""

    type: Literal["function"]
    name: str = Field(min_length=1)
    description: str | None = None
    parameters: dict[str, Any] | None = None

    def for_template(self) -> dict[str, Any]:
        """As chat templates expect it."""
        function = {"name": self.name, "description": self.description or "", "parameters": self.parameters or {}}
        return {"type": "function", "function": function}


class ToolByName(Body):
    """The one function that must be called."""

    type: Literal["function"]
    name: str


MaxTokens = Literal["inf"] | Annotated[int, Field(ge=1)]
Modalities = Annotated[list[Literal["text", "audio"]], Field(min_length=1, max_length=1)]
ToolChoice = Literal["auto", "none", "required"] | ToolByName
Temperature = Annotated[float, Field(ge=0, le=2)]


class Settings(Body):
    """All of a session's. temperature, top_p, top_k and seed are ours: without them the most likely text is written.

    max_output_tokens counts tokens of text; sound ends with its text.
    """

    type: Literal["realtime"] = "realtime"
    model: str | None = None
    output_modalities: Modalities = Field(default_factory=lambda: ["audio"])
    instructions: str = ""
    audio: Audio = Audio()
    tools: list[Tool] = Field(default_factory=list)
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: Literal[True] | None = None
    max_output_tokens: MaxTokens = "inf"
    temperature: Temperature | None = None
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=1)
    seed: int | None = Field(default=None, ge=0)
    truncation: Literal["auto", "disabled"] = "auto"
    include: Annotated[None, _unsupported("include")] = None
    prompt: Annotated[None, _unsupported("a stored prompt")] = None
    reasoning: Annotated[None, _unsupported("reasoning")] = None
    tracing: Any = None

    @property
    def speaks(self) -> bool:
        """Whether answers are spoken."""
        return self.output_modalities == ["audio"]

    @property
    def usable_tools(self) -> list[Tool]:
        """Those that may be called."""
        if self.tool_choice == "none":
            return []
        choice = self.tool_choice
        return [tool for tool in self.tools if not isinstance(choice, ToolByName) or tool.name == choice.name]

    def updated(self, given: Mapping[str, Any]) -> "Settings":
        """With what a client gives; raises pydantic's `ValidationError`, and `ApiError` for what cannot change."""
        if given.get("type") == "transcription":
            raise invalid("sessions that only transcribe are not supported here; use type 'realtime'", "session.type")
        new = Settings.model_validate(merged(self.model_dump(), given))
        if new.model != self.model:
            raise invalid(f"the model of a session cannot change; it is {self.model!r}", "session.model")
        return new.model_copy(update={"tracing": None})  # nothing is traced here, and clients shall see that

    def shown(self) -> dict[str, Any]:
        """As clients see it."""
        shown = self.model_dump()
        shown["audio"]["input"]["format"] = self.audio.input.format.shown()
        shown["audio"]["output"]["format"] = self.audio.output.format.shown()
        if self.audio.input.transcription is not None:
            shown["audio"]["input"]["transcription"]["model"] = self.model
        return shown


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """New values over old ones, objects field by field; an object of another type, or a JSON schema, replaces the old one."""
    result = dict(old)
    for name, value in new.items():
        before = old.get(name)
        if not isinstance(value, Mapping) or not isinstance(before, Mapping) or name == "parameters":
            result[name] = value
        else:
            same = value.get("type", before.get("type")) == before.get("type")
            result[name] = merged(before, value) if same else value
    return result
