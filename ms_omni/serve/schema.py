"""The body of a chat completion: OpenAI's fields, and ours by `extra_body`.

What changes answers and cannot be had is refused with a message; fields that change none are taken.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from .protocol import Body

PARTS = ("text", "refusal", "image_url", "input_audio", "audio_url", "video_url", "file")
STREAMED_FORMAT = "pcm16"
MAX_CHOICES, MAX_STOPS, MAX_LOGPROBS, MAX_TOOLS = 16, 4, 20, 128
MAX_BIASES, MAX_STOP_IDS = 1024, 256
LARGEST = 2**31 - 1

Name = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
Text = Annotated[str, StringConstraints(min_length=1)]
Count = Annotated[int, Field(ge=1, le=LARGEST)]
NonNegative = Annotated[int, Field(ge=0, le=LARGEST)]
Rate = Annotated[float, Field(gt=0, le=1e6)]
Seconds = Annotated[float, Field(ge=0, le=1e6)]
Probability = Annotated[float, Field(gt=0, le=1)]
Temperature = Annotated[float, Field(ge=0, le=2)]
Penalty = Annotated[float, Field(gt=0, le=2)]
AdditivePenalty = Annotated[float, Field(ge=-2, le=2)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
Bias = Annotated[float, Field(ge=-100, le=100)]


# -- messages --------------------------------------------------------------------------------------------------------


class Source(Body):
    """Where a picture, sound or video is: an address, a data: URI or base64; detail: of pictures."""

    url: Text
    detail: Literal["auto", "low", "high", "original"] | None = None


class Sound(Body):
    """A sound in base64, or a data: URI; format: what it is, which its content tells as well, but for samples alone (pcm16)."""

    data: Text
    format: str | None = None


class File(Body):
    """A picture, sound or video in base64, with a name that tells which it is."""

    file_data: Text | None = None
    file_id: str | None = None
    filename: str | None = None


class Part(Body):
    """A part of a message; of pictures and videos sizes, of videos also which frames, and of sounds which seconds."""

    type: Literal["text", "refusal", "image_url", "input_audio", "audio_url", "video_url", "file"]
    text: str | None = None
    refusal: str | None = None
    image_url: Source | str | None = None
    audio_url: Source | str | None = None
    video_url: Source | str | None = None
    input_audio: Sound | None = None
    file: File | None = None
    min_pixels: Count | None = None
    max_pixels: Count | None = None
    resized_height: Count | None = None
    resized_width: Count | None = None
    total_pixels: Count | None = None
    fps: Rate | None = None
    nframes: Count | None = None
    min_frames: Count | None = None
    max_frames: Count | None = None
    video_start: Seconds | None = None
    video_end: Seconds | None = None
    audio_start: Seconds | None = None
    audio_end: Seconds | None = None
    prompt_cache_breakpoint: dict[str, Any] | None = None
    cache_control: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _check(self):
        if getattr(self, self.type) is None:
            raise ValueError(f"a part of type {self.type} needs {self.type!r}")
        others = [kind for kind in PARTS if kind != self.type and getattr(self, kind) is not None]
        if others:
            raise ValueError(f"a part of type {self.type} has {others[0]!r} too; make two parts of them")
        return self


class Function(Body):
    """A call: the function's name, and its arguments as JSON in a text, or as an object."""

    name: str
    arguments: str | dict[str, Any] = "{}"


class ToolCall(Body):
    """A call that the assistant made earlier."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: Function
    index: int | None = None


class AudioId(Body):
    """An earlier spoken answer, by its id."""

    id: str


class Message(Body):
    """One message of any role."""

    role: Literal["developer", "system", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    audio: AudioId | dict[str, Any] | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    annotations: list[Any] | None = None
    function_call: None = None

    @model_validator(mode="after")
    def _check(self):
        alone = [name for name in ("tool_calls", "audio", "refusal", "reasoning_content") if getattr(self, name)]
        if alone and self.role != "assistant":
            raise ValueError(f"{alone[0]} is for the role 'assistant', not {self.role!r}")
        if self.content is None and not alone:
            raise ValueError(f"a message of the role {self.role!r} needs 'content'")
        if self.content == [] and not alone:
            raise ValueError("content is an empty list; give at least one part, or a text")
        parts = self.content if isinstance(self.content, list) else []
        media = [part.type for part in parts if part.type not in ("text", "refusal")]
        if media and self.role not in ("user", "tool"):
            raise ValueError(f"a message of the role {self.role!r} takes text alone, got {media[0]}")
        return self


# -- tools, formats, sound -------------------------------------------------------------------------------------------


class Definition(Body):
    """A function that the model may call; parameters: a JSON schema."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    """A tool, which is a function."""

    type: Literal["function"]
    function: Definition


class FunctionName(Body):
    """A function's name."""

    name: str


class AllowedTools(Body):
    """Those of the tools that may be used."""

    mode: Literal["auto", "required"]
    tools: list[dict[str, Any]]


class ToolChoice(Body):
    """One function that must be called, or a choice of tools."""

    type: Literal["function", "allowed_tools"]
    function: FunctionName | None = None
    allowed_tools: AllowedTools | None = None

    @model_validator(mode="after")
    def _check(self):
        if getattr(self, self.type) is None:
            raise ValueError(f"a tool_choice of type {self.type} needs {self.type!r}")
        return self


class Schema(Body):
    """A JSON schema that the answer must follow."""

    name: Name
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """How an answer is to be written."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: Schema | None = None

    @model_validator(mode="after")
    def _check(self):
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("json_schema belongs to type 'json_schema', and that needs it")
        return self


class Voice(Body):
    """A voice by its name."""

    id: str


class Audio(Body):
    """How an answer is spoken."""

    voice: str | Voice
    format: Literal["wav", "mp3", "flac", "opus", "aac", "pcm16"]

    @property
    def speaker(self) -> str:
        """The voice's name."""
        return self.voice if isinstance(self.voice, str) else self.voice.id


class StreamOptions(Body):
    """include_usage: a last chunk with how many tokens there were."""

    include_usage: bool | None = None
    continuous_usage_stats: Literal[False] | None = None
    include_obfuscation: Literal[False] | None = None


# -- the whole -------------------------------------------------------------------------------------------------------

CONSTANT = {
    "store": (False, "answers are not stored here"),
    "service_tier": (("auto", "default"), "there is one tier"),
    "verbosity": ("medium", "answers are as long as the model makes them; ask for another length in a message"),
    "prediction": ((), "the answer is written without predictions"),
    "web_search_options": ((), "the model does not search the web"),
    "moderation": ((), "nothing is moderated here"),
    "functions": ((), "give the functions as tools"),
    "function_call": ((), "say it by tool_choice"),
}
"""Fields that can have one value only, and why."""


class ChatBody(Body):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1)]
    model: str | None = None
    modalities: list[Literal["text", "audio"]] | None = None
    audio: Audio | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    temperature: Temperature | None = None
    top_p: Probability | None = None
    seed: Seed | None = None
    stop: Text | Annotated[list[Text], Field(max_length=MAX_STOPS)] | None = None
    presence_penalty: AdditivePenalty | None = None
    frequency_penalty: AdditivePenalty | None = None
    logit_bias: Annotated[dict[str, Bias], Field(max_length=MAX_BIASES)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: str | None = None
    # which change nothing
    metadata: dict[str, str] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None
    # which have one value
    store: Any = None
    service_tier: Any = None
    verbosity: Any = None
    prediction: Any = None
    web_search_options: Any = None
    moderation: Any = None
    functions: Any = None
    function_call: Any = None
    # ours
    top_k: NonNegative | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Penalty | None = None
    min_tokens: NonNegative | None = None
    stop_token_ids: Annotated[list[NonNegative], Field(max_length=MAX_STOP_IDS)] | None = None
    talker_temperature: Temperature | None = None
    talker_top_k: NonNegative | None = None
    talker_top_p: Probability | None = None
    talker_do_sample: bool | None = None
    talker_max_new_tokens: Count | None = None
    talker_repetition_penalty: Penalty | None = None
    predictor_temperature: Temperature | None = None
    predictor_top_k: NonNegative | None = None
    predictor_top_p: Probability | None = None
    predictor_do_sample: bool | None = None
    chunk_frames: (
        Annotated[int, Field(ge=1, le=1000)]
        | Annotated[list[Annotated[int, Field(ge=1, le=1000)]], Field(min_length=1)]
        | None
    ) = None
    use_audio_in_video: bool | None = None
    fps: Rate | None = None
    num_frames: Count | None = None
    min_pixels: Count | None = None
    max_pixels: Count | None = None
    enable_thinking: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @field_validator(*CONSTANT)
    @classmethod
    def _check_constant(cls, value, info):
        only, why = CONSTANT[info.field_name]
        allowed = only if isinstance(only, tuple) else (only,)
        if value is not None and not any(value is other or value == other for other in allowed):
            known = f"; leave it out, or give {' or '.join(map(repr, allowed))}" if allowed else "; leave it out"
            raise ValueError(f"{why}{known}")
        return value

    @property
    def speaks(self) -> bool:
        """Whether sound is asked for."""
        return "audio" in (self.modalities or ())

    @property
    def stops(self) -> list[str]:
        """The texts that end an answer."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with its usage."""
        return bool(self.stream_options and self.stream_options.include_usage)
