"""OpenAI's messages as the processor's conversation."""

import json
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import OmniError
from ..input.media import OPTION_KEYS
from ..input.messages import kind_of_file
from ..input.sources import ACCEPTED, decode_base64, from_data_uri
from .errors import ApiError
from .schema import Message, Part, Sound, Source
from .transcripts import Transcripts

LOW_PIXELS = 512 * 512
"""Of a picture with detail "low", as OpenAI has it."""
PCM_HZ = 24_000
MOST_MEDIA = 64
GIVE = "an https: address, a data: URI or base64"
PLURALS = {"image": "pictures", "audio": "sounds", "video": "videos"}
MEDIA = {"image_url": "image", "audio_url": "audio", "video_url": "video", "input_audio": "audio", "file": "file"}
OPTIONS = (
    *("min_pixels", "max_pixels", "resized_height", "resized_width", "total_pixels", "fps", "nframes", "min_frames"),
    *("max_frames", "video_start", "video_end", "audio_start", "audio_end"),
)
_ALLOWED = re.compile(r"(https?|data):", re.IGNORECASE)
_PLACE = re.compile(r"\bmessage (\d+)(?:, item (\d+))?")


def conversation(messages: Sequence[Message], transcripts: Transcripts) -> list[dict[str, Any]]:
    """A conversation for `apply_chat_template`. Raises `ApiError` for media that this server does not open, and unknown audio ids."""
    parts = [part for message in messages if isinstance(message.content, list) for part in message.content]
    media = sum(part.type in MEDIA for part in parts)
    if media > MOST_MEDIA:
        raise ApiError(
            400, f"messages: they have {media} pictures, sounds and videos; {MOST_MEDIA} are taken at most", "messages"
        )
    return [_message(message, f"messages[{number}]", transcripts) for number, message in enumerate(messages)]


def _message(message, param, transcripts):
    content = message.content
    if isinstance(content, list):
        content = [_part(part, f"{param}.content[{number}]") for number, part in enumerate(content)]
    if message.role == "assistant":
        content = _said(message, content, param, transcripts)
    found = {"role": message.role, "content": content}
    for name in ("name", "tool_call_id", "reasoning_content"):
        if getattr(message, name) is not None:
            found[name] = getattr(message, name)
    if message.tool_calls:
        found["tool_calls"] = [_call(call) for call in message.tool_calls]
    return found


def _said(message, content, param, transcripts):
    """What the assistant said: `audio` stands for its transcript where there is no text."""
    audio = message.audio
    if content or audio is None:
        return content if content is not None else message.refusal or ""
    id = audio.get("id") if isinstance(audio, dict) else audio.id
    if not isinstance(id, str):
        raise ApiError(400, f"{param}.audio.id is missing", f"{param}.audio.id", "missing_required_parameter")
    return transcripts.text(id, f"{param}.audio.id")


def _call(call):
    arguments = call.function.arguments
    arguments = call_arguments(arguments) if isinstance(arguments, str) else arguments
    return {"type": "function", "function": {"name": call.function.name, "arguments": arguments}}


def call_arguments(text: str | None) -> Any:
    """Of a tool call: as an object where they are one, so that templates write them in their own way."""
    try:
        read = json.loads(text or "{}")
    except ValueError:
        return text
    return read if isinstance(read, dict) else text


def _part(part: Part, param: str) -> dict[str, Any]:
    found: dict[str, Any] = {name: getattr(part, name) for name in OPTIONS if getattr(part, name) is not None}
    if part.type in ("text", "refusal"):
        _check_options(found, "text", param)
        return {"type": "text", "text": part.text if part.type == "text" else part.refusal}
    value, kind = getattr(part, part.type), MEDIA[part.type]
    if part.type == "file":
        file = _file(value, f"{param}.file")
        _check_options(found, file["type"], param)
        return {**found, **file}
    _check_options(found, kind, param)
    if isinstance(value, Sound):
        return {**found, "type": kind, kind: _sound(value, f"{param}.input_audio.data")}
    if isinstance(value, Source):
        if value.detail is not None and kind == "audio":
            at = f"{param}.{part.type}.detail"
            raise ApiError(400, f"{at}: is for pictures and videos; leave it out", at)
        if value.detail == "low" and not {"max_pixels", "resized_height", "resized_width"} & found.keys():
            found["max_pixels"] = LOW_PIXELS
        value, param = value.url, f"{param}.{part.type}.url"
    else:
        param = f"{param}.{part.type}"
    return {**found, "type": kind, kind: _address(value, param)}


def _check_options(options, kind, param):
    for name in options:
        if name not in OPTION_KEYS.get(kind, ()):
            kinds = " and ".join(PLURALS[one] for one in OPTION_KEYS if name in OPTION_KEYS[one])
            raise ApiError(400, f"{param}.{name}: is for {kinds}, and this part is {kind}; leave it out", f"{param}.{name}")


def _address(text, param):
    """An address or data: URI as it is, anything else is base64: nothing is taken for a path."""
    if _ALLOWED.match(text):
        return text
    if "://" in text[:32] or text[:5].lower() == "file:":
        scheme = text.partition(":")[0]
        raise ApiError(400, f"{param}: {scheme}: is not opened here; give {GIVE}", param)
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
        raise ApiError(400, f"{param} is missing", param, "missing_required_parameter")
    kind = kind_of_file({"file": {"file_data": file.file_data[:256], "filename": file.filename}})
    if kind is None:
        known = "a filename such as cat.png, digits.wav or clip.mp4, or a data: URI that says its type"
        raise ApiError(400, f"{param} is no picture, sound or video as far as its name tells; give {known}", param)
    return {"type": kind, kind: _address(file.file_data, param)}


def _bytes(text, param, uri=False):
    try:
        return from_data_uri(text, param, len(text)) if uri else decode_base64(text, param)
    except OmniError as error:
        raise ApiError(400, f"{str(error).partition('; give')[0]}; give {GIVE}", param) from None


def located(error: OmniError) -> ApiError:
    """An error of the processor, by the place in the body that it speaks of."""
    text, place = str(error).replace(ACCEPTED, GIVE), _PLACE.search(getattr(error, "where", "") or str(error))
    if place is None:
        return ApiError(400, text, "messages")
    message, item = place.groups()
    param = f"messages[{message}]" + (f".content[{item}]" if item else "")
    return ApiError(400, f"{param}: {text}", param)
