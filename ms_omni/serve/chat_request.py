"""From the body of a chat completion to the processor's conversation and the engine's options."""

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import OmniError
from ..input.arguments import is_argument
from ..input.chat import choose_template
from ..input.media import OPTION_KEYS
from ..input.messages import kind_of_file
from ..input.sources import ACCEPTED, decode_base64, from_data_uri
from .completion import Transcripts
from .grammar import MISSING, wants_grammar
from .protocol import ApiError, invalid, missing, refuse
from .schema import STREAMED_FORMAT, ChatBody, Definition, Message, Part, Sound, Source
from .server import Server

LOW_PIXELS = 512 * 512
"""Of a picture with detail "low", as OpenAI has it."""
PCM_HZ = 24_000
MAX_MEDIA = 64
ACCEPTED_HERE = "an https: address, a data: URI or base64"
PLURALS = {"image": "pictures", "audio": "sounds", "video": "videos"}
MEDIA = {"image_url": "image", "audio_url": "audio", "video_url": "video", "input_audio": "audio", "file": "file"}
MEDIA_OPTIONS = (
    *("min_pixels", "max_pixels", "resized_height", "resized_width", "total_pixels", "fps", "nframes", "min_frames"),
    *("max_frames", "video_start", "video_end", "audio_start", "audio_end"),
)
_URI = re.compile(r"(https?|data):", re.IGNORECASE)
_LOCATION = re.compile(r"\bmessage (\d+)(?:, item (\d+))?")
SAMPLES = ("top_p", "top_k", "min_p")
"""Without a temperature each of these means to sample, but for 0 and 1: no limit, or the likeliest alone."""
UNCHANGED = (*SAMPLES, "repetition_penalty", "presence_penalty", "frequency_penalty")
SPEECH_OPTIONS = (
    *("talker_temperature", "talker_top_k", "talker_top_p", "talker_do_sample", "talker_max_new_tokens"),
    *("talker_repetition_penalty", "predictor_temperature", "predictor_top_k", "predictor_top_p", "predictor_do_sample"),
    "chunk_frames",
)
PROCESSOR_OPTIONS = ("fps", "num_frames", "min_pixels", "max_pixels")
RESERVED_VARIABLES = (
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
    "continue_final_message",
    "conversation",
    "chat_template",
)
"""Variables of templates that are not the caller's to set."""
MAX_ID_DIGITS = 10
ENGINE_ERRORS = (
    ("the answer needs", "max_completion_tokens", "context_length_exceeded"),
    ("its speech needs", "messages", "context_length_exceeded"),
    ("the prompt", "messages", None),
    ("min_new_tokens", "min_tokens", None),
    ("max_new_tokens", "max_completion_tokens", None),
    ("token2wav_chunk_frames", "chunk_frames", None),
    ("eos_token_id", "stop_token_ids", None),
    ("sequence_bias", "logit_bias", None),
    ("speaker", "audio.voice", None),
)
"""How errors of the engine begin, and the argument of the body that they are about, with a code."""


def conversation(messages: Sequence[Message], transcripts: Transcripts) -> list[dict[str, Any]]:
    """A conversation for `apply_chat_template`. Raises `ApiError` for media that this server does not open, and unknown audio ids."""
    parts = [part for message in messages if isinstance(message.content, list) for part in message.content]
    media = sum(part.type in MEDIA for part in parts)
    if media > MAX_MEDIA:
        raise ApiError(
            400, f"messages: they have {media} pictures, sounds and videos; {MAX_MEDIA} are taken at most", "messages"
        )
    return [_message(message, f"messages[{number}]", transcripts) for number, message in enumerate(messages)]


def _message(message, param, transcripts):
    content = message.content
    if isinstance(content, list):
        content = [_part(part, f"{param}.content[{number}]") for number, part in enumerate(content)]
    if message.role == "assistant" and not content:
        content = _spoken(message, f"{param}.audio.id", transcripts)
    result = {"role": message.role, "content": content}
    for name in ("name", "tool_call_id", "reasoning_content"):
        if getattr(message, name) is not None:
            result[name] = getattr(message, name)
    if message.tool_calls:
        result["tool_calls"] = [_call(call) for call in message.tool_calls]
    return result


def _spoken(message, param, transcripts):
    """The transcript that `audio` stands for in a message of the assistant without text."""
    if message.audio is None:
        return message.content if message.content is not None else message.refusal or ""
    id = message.audio.get("id") if isinstance(message.audio, dict) else message.audio.id
    if not isinstance(id, str):
        raise missing(param)
    return transcripts.text(id, param)


def _call(call):
    arguments = call.function.arguments
    arguments = call_arguments(arguments) if isinstance(arguments, str) else arguments
    return {"type": "function", "function": {"name": call.function.name, "arguments": arguments}}


def call_arguments(text: str | None) -> Any:
    """Arguments of a tool call as an object where they are one, so that templates write them in their own way."""
    try:
        arguments = json.loads(text or "{}")
    except ValueError:
        return text
    return arguments if isinstance(arguments, dict) else text


def _part(part: Part, param: str) -> dict[str, Any]:
    options: dict[str, Any] = {name: getattr(part, name) for name in MEDIA_OPTIONS if getattr(part, name) is not None}
    if part.type in ("text", "refusal"):
        _check_options(options, "text", param)
        return {"type": "text", "text": part.text if part.type == "text" else part.refusal}
    value, kind = getattr(part, part.type), MEDIA[part.type]
    if part.type == "file":
        file = _file(value, f"{param}.file")
        _check_options(options, file["type"], param)
        return {**options, **file}
    _check_options(options, kind, param)
    if isinstance(value, Sound):
        return {**options, "type": kind, kind: _sound(value, f"{param}.input_audio.data")}
    if isinstance(value, Source):
        if value.detail is not None and kind == "audio":
            at = f"{param}.{part.type}.detail"
            raise ApiError(400, f"{at}: is for pictures and videos; leave it out", at)
        if value.detail == "low" and not {"max_pixels", "resized_height", "resized_width"} & options.keys():
            options["max_pixels"] = LOW_PIXELS
        value, param = value.url, f"{param}.{part.type}.url"
    else:
        param = f"{param}.{part.type}"
    return {**options, "type": kind, kind: _address(value, param)}


def _check_options(options, given, param):
    for name in options:
        if name not in OPTION_KEYS.get(given, ()):
            kinds = " and ".join(PLURALS[kind] for kind, names in OPTION_KEYS.items() if name in names)
            raise ApiError(400, f"{param}.{name}: is for {kinds}, and this part is {given}; leave it out", f"{param}.{name}")


def _address(text, param):
    """An address or data: URI as it is, anything else is base64: nothing is taken for a path."""
    if _URI.match(text):
        return text
    if "://" in text[:32] or text[:5].lower() == "file:":
        scheme = text.partition(":")[0]
        raise ApiError(400, f"{param}: {scheme}: is not opened here; give {ACCEPTED_HERE}", param)
    return _bytes(text, param)


def _sound(sound, param):
    samples, uri = sound.format in ("pcm16", "pcm"), sound.data[:5].lower() == "data:"
    if uri and not samples:
        return sound.data
    data = _bytes(sound.data, param, uri)
    if samples:
        if len(data) % 2:
            raise ApiError(400, f"{param}: {len(data)} bytes are no 16-bit samples", param)
        return np.frombuffer(data, "<i2"), PCM_HZ
    return data


def _file(file, param):
    if file.file_id is not None:
        raise ApiError(400, f"{param}.file_id: no files are kept here; give file_data", f"{param}.file_id")
    param = f"{param}.file_data"
    if file.file_data is None:
        raise missing(param)
    kind = kind_of_file({"file": {"file_data": file.file_data[:256], "filename": file.filename}})
    if kind is None:
        known = "a filename such as cat.png, digits.wav or clip.mp4, or a data: URI that says its type"
        raise ApiError(400, f"{param} is no picture, sound or video as far as its name tells; give {known}", param)
    return {"type": kind, kind: _address(file.file_data, param)}


def _bytes(text, param, uri=False):
    try:
        return from_data_uri(text, param, len(text)) if uri else decode_base64(text, param)
    except OmniError as error:
        raise ApiError(400, f"{str(error).partition('; give')[0]}; give {ACCEPTED_HERE}", param) from None


def processor_error(error: OmniError) -> ApiError:
    """An error of the processor, by the argument of the body that it speaks of."""
    text, location = str(error).replace(ACCEPTED, ACCEPTED_HERE), _LOCATION.search(getattr(error, "where", "") or str(error))
    if location is None:
        return ApiError(400, text, "messages")
    message, item = location.groups()
    param = f"messages[{message}]" + (f".content[{item}]" if item else "")
    return ApiError(400, f"{param}: {text}", param)


def check(body: ChatBody, server: Server) -> None:
    """Raises `ApiError` for arguments that do not fit together, or not this model."""
    server.check_model(body.model)
    if body.stream_options is not None and not body.stream:
        raise refuse("stream_options", "is for streams; add stream=true, or leave it out")
    if body.top_logprobs is not None and not body.logprobs:
        raise refuse("top_logprobs", "needs logprobs=true")
    if None not in (body.max_tokens, body.max_completion_tokens) and body.max_tokens != body.max_completion_tokens:
        raise refuse("max_tokens", "differs from max_completion_tokens, which means the same; give one of them")
    limit = body.max_completion_tokens or body.max_tokens
    if limit is not None and (body.min_tokens or 0) > limit:
        raise refuse("min_tokens", f"is {body.min_tokens}, more than max_completion_tokens, which is {limit}")
    if body.modalities == []:
        raise refuse("modalities", "is empty; expected ['text'], or ['text', 'audio']")
    if body.reasoning_effort not in (None, "none"):
        raise refuse("reasoning_effort", "how long it thinks is the model's choice; leave it out, or give 'none'")
    if server.grammars is None and (param := wants_grammar(body)):
        raise refuse(param, MISSING, "unsupported_value")
    _check_speech(body, server)
    if body.fps is not None and body.num_frames is not None:
        raise refuse("fps", "and num_frames exclude each other; give one of them")
    for key in body.logit_bias or ():
        if not (key.isascii() and key.isdigit() and len(key) <= MAX_ID_DIGITS):
            raise refuse("logit_bias", f"its keys are token ids, got {key!r:.40}")
    ids = [*(body.stop_token_ids or ()), *map(int, body.logit_bias or {})]
    if max(ids, default=0) >= server.vocabulary:
        name = "logit_bias" if body.logit_bias else "stop_token_ids"
        raise refuse(name, f"holds the token {max(ids)}, but the vocabulary has {server.vocabulary}")


def _check_speech(body, server):
    if not body.speaks:
        given = [name for name in ("audio", *SPEECH_OPTIONS) if getattr(body, name) is not None]
        if given:
            raise refuse(given[0], "is for answers with sound; add modalities=['text', 'audio'], or leave it out")
        return
    if not server.speaks:
        raise refuse("modalities", "this model answers in text only; give ['text']", "unsupported_value")
    if body.audio is None:
        raise refuse(
            "audio",
            "is needed for answers with sound, as in {'voice': 'Ethan', 'format': 'wav'}",
            "missing_required_parameter",
        )
    if body.audio.speaker.lower() not in [voice.lower() for voice in server.voices]:
        known = ", ".join(server.voices)
        raise refuse("audio.voice", f"there is no voice {body.audio.speaker!r:.60}; this model has {known}")
    if body.stream and body.audio.format != STREAMED_FORMAT:
        raise refuse(
            "audio.format",
            f"is {body.audio.format!r}, and streams take {STREAMED_FORMAT!r} alone, as OpenAI's do",
            "unsupported_value",
        )


def engine_options(body: ChatBody, server: Server) -> dict[str, Any]:
    """Keyword arguments of `Server.submit` for a choice, but for its seed."""
    options: dict[str, Any] = {name: getattr(body, name) for name in UNCHANGED if getattr(body, name) is not None}
    if body.temperature is not None:
        options |= {"temperature": body.temperature, "do_sample": body.temperature > 0}
    elif any(options.get(name, 0) not in (0, 1) for name in SAMPLES):
        options["do_sample"] = True
    limit = body.max_completion_tokens or body.max_tokens
    if limit is not None:
        options["max_new_tokens"] = limit
    if body.min_tokens is not None:
        options["min_new_tokens"] = body.min_tokens
    if body.logit_bias:
        options["sequence_bias"] = [[[int(id)], bias] for id, bias in body.logit_bias.items()]
    if body.stops:
        options["stop_strings"] = body.stops
    if body.stop_token_ids:
        options["eos_token_id"] = [*server.end_ids, *body.stop_token_ids]
    if body.logprobs:
        options["logprobs"] = body.top_logprobs or 0
    if server.worker.engine.whole:
        options["return_audio"] = body.speaks
    if body.speaks and body.audio is not None:
        options["speaker"] = body.audio.speaker
        options |= {name: getattr(body, name) for name in SPEECH_OPTIONS[:-1] if getattr(body, name) is not None}
        if body.chunk_frames is not None:
            options["token2wav_chunk_frames"] = body.chunk_frames
    return options


def processor_options(body: ChatBody, tools: Sequence[Definition], template: Any) -> dict[str, Any]:
    """Arguments of `apply_chat_template`: for media without options of their own, tools, and the template's variables.

    template: the checkpoint's chat template, or several by name. Raises `ApiError` for what it does not read.
    """
    options = {name: getattr(body, name) for name in PROCESSOR_OPTIONS if getattr(body, name) is not None}
    if body.use_audio_in_video:
        options["use_audio_in_video"] = True
    text = choose_template(template, None, tools)
    if tools:
        if not _reads(text, "tools"):
            raise refuse("tools", "the chat template of this model knows no tools; leave them out", "unsupported_value")
        options["tools"] = [{"type": "function", "function": tool.model_dump(exclude_none=True)} for tool in tools]
    for param, name, value in _variables(body):
        if name in RESERVED_VARIABLES or is_argument(name) or not _reads(text, name):
            raise refuse(
                param, f"the chat template of this model does not read {name!r:.60}; leave it out", "unsupported_value"
            )
        options[name] = value
    return options


def _variables(body):
    """`(argument, variable, value)` of what the caller passes to the template."""
    variables = [(f"chat_template_kwargs.{name}", name, value) for name, value in (body.chat_template_kwargs or {}).items()]
    if body.enable_thinking is not None:
        variables.append(("enable_thinking", "enable_thinking", body.enable_thinking))
    if body.reasoning_effort == "none":
        variables.append(("reasoning_effort", "enable_thinking", False))
    return variables


def _reads(template, name):
    return re.search(rf"(?<![\w.'\"]){re.escape(name)}\b", template) is not None


def engine_error(error: OmniError) -> ApiError:
    """An error of the engine, by the argument of the body that it speaks of."""
    text = str(error)
    for start, param, code in ENGINE_ERRORS:
        if text.startswith(start):
            return invalid(text, param, code)
    return ApiError(400, text, next((name for name in ChatBody.model_fields if text.startswith(f"{name} ")), None))


def seeds(seed: int | None, count: int) -> Sequence[int | None]:
    """Of each choice: the first has the caller's own, the others one that follows from it."""
    if seed is None:
        return [None] * count
    first = seed % 2**63
    states = [np.random.SeedSequence([first, index]).generate_state(1, np.uint64)[0] for index in range(1, count)]
    return [first, *(int(state >> np.uint64(1)) for state in states)]
