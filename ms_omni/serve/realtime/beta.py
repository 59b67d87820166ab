"""Older spellings of the Realtime API, which many clients still send, put as today's."""

from collections.abc import Mapping
from typing import Any

from ..errors import ApiError

FORMATS = {"pcm16": "audio/pcm", "g711_ulaw": "audio/pcmu", "g711_alaw": "audio/pcma"}
CONTENT = {"text": "input_text", "audio": "input_audio"}
OF_ASSISTANT = {"text": "output_text", "audio": "output_audio", "input_text": "output_text"}
PLACES = {
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
"""Names at the top of a session or response, and where they stand today."""


def updated(event: Mapping[str, Any]) -> dict[str, Any]:
    """An event in today's spelling. Raises `ApiError` for what is said in both."""
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
    found = {name: value for name, value in given.items() if name not in PLACES}
    for name, (*path, last) in PLACES.items():
        if name not in given:
            continue
        value, place = _value(name, given[name]), found
        for part in path:
            inner = place.get(part)
            place[part] = dict(inner) if isinstance(inner, Mapping) else {}
            place = place[part]
        if last in place:
            raise ApiError(
                400,
                f"{name} is the older name of {'.'.join((*path, last))}; give one of them",
                f"{where}.{name}",
                "invalid_value",
            )
        place[last] = value
    return found


def _value(name, value):
    if name.endswith("_format") and isinstance(value, str):
        if value not in FORMATS:
            raise ApiError(400, f"{name} is {value!r}, expected {', '.join(FORMATS)}", name, "invalid_value")
        return {"type": FORMATS[value]}
    if name == "modalities" and isinstance(value, list) and sorted(map(str, value)) == ["audio", "text"]:
        return ["audio"]  # sound always comes with its text
    return value


def _item(item):
    content = item.get("content")
    if not isinstance(content, list):
        return item
    names = OF_ASSISTANT if item.get("role") == "assistant" else CONTENT
    parts = [
        {**part, "type": names.get(part.get("type"), part.get("type"))} if isinstance(part, Mapping) else part
        for part in content
    ]
    return {**item, "content": parts}
