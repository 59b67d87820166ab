"""Media as other programs hand them over (dicts, decoders, pairs), unwrapped to what the decoders read."""

from __future__ import annotations

import mimetypes
from collections.abc import Mapping
from numbers import Real
from pathlib import PurePath
from typing import Any

import numpy as np

from ms_omni.errors import MediaError
from ms_omni.input.sources import decode_base64, to_array

# In the order of trust: decoded samples, encoded bytes, text that stands for bytes, files, addresses, and what wraps one of these.
_ARRAY, _BYTES, _TEXT = ("array",), ("bytes",), ("data", "base64", "file_data", "b64_json")
_PLACES = ("path", "file_path", "url", "uri", "file_url")
_WRAPPERS = ("file", "source", "composite", "image", "audio", "video", "image_url", "audio_url", "video_url", "input_audio")
SOURCE_KEYS = (*_ARRAY, *_BYTES, *_TEXT, *_PLACES, "file", "source")
_RATES = ("sampling_rate", "sample_rate")
DICT_ACCEPTED = "url, path, bytes, base64 or data, or array with sampling_rate"
_MEDIA_TYPES = {  # endings that Python's table leaves to the system
    **dict.fromkeys((".flac", ".ogg", ".oga", ".opus", ".m4a", ".aac", ".wav", ".mp3"), "audio"),
    **dict.fromkeys((".mkv", ".webm", ".flv", ".m4v", ".ts", ".mp4", ".mov", ".avi"), "video"),
    **dict.fromkeys((".webp", ".avif", ".heic", ".heif", ".jpg", ".jpeg", ".png"), "image"),
}


def is_given(value: Any) -> bool:
    """Whether a key of an item counts: tables fill unused ones with None, NaN, an empty text or list, or a dict of those."""
    if isinstance(value, Mapping):
        return any(map(is_given, value.values()))
    if isinstance(value, (float, np.floating)):
        return not np.isnan(value)
    if isinstance(value, (str, list, tuple)):
        return len(value) > 0
    return value is not None and type(value).__name__ not in ("NAType", "NaTType")  # pandas'


def unwrapped(value: Any, name: str) -> Any:
    """A path, address, bytes, array, `(array, rate)` or picture out of a dict or a decoder; anything else as it is.

    Known are dicts of datasets (`{"array", "sampling_rate"}`, `{"bytes", "path"}`), of OpenAI and DashScope (`{"url"}`,
    `{"data", "format"}`, `{"file_data"}`), of Gradio (`{"path", "url", "mime_type"}`), and torchcodec's audio decoders.

    Raises:
        MediaError: a dict that names no medium.
    """
    if hasattr(value, "get_all_samples"):
        samples = value.get_all_samples()
        return to_array(samples.data), int(samples.sample_rate)
    if not isinstance(value, Mapping):
        return value
    given = {key: item for key, item in value.items() if is_given(item)}
    for key in (*_ARRAY, *_BYTES, *_TEXT, *_PLACES, *_WRAPPERS):
        if key not in given:
            continue
        inner = given[key]
        if key in _ARRAY:
            rates = [given[rate] for rate in _RATES if rate in given]
            return (np.asarray(inner), rates[0]) if rates else np.asarray(inner)
        if key in _TEXT and isinstance(inner, str) and "://" not in inner and inner[:5] != "data:":
            return decode_base64(inner, name)
        return unwrapped(inner, name)
    hint = "; files kept by a service (file_id) cannot be reached, give the file itself" if "file_id" in given else ""
    raise MediaError(f"{name} is a dict with {', '.join(map(str, value)) or 'no keys'}; expected {DICT_ACCEPTED}{hint}.")


def kind_of_file(item: Mapping[str, Any]) -> str | None:
    """ "image", "audio" or "video" by a file dict's media type, data: URI or name; None when they do not tell."""
    file = item.get("file")
    inner = file if isinstance(file, Mapping) else item
    texts = [str(inner[key]) for key in ("mime_type", "media_type", "mimeType") if is_given(inner.get(key))]
    for key in ("file_data", "data", "filename", "orig_name", "name", "path", "file_path", "url", "uri", "file_url", "file"):
        value = inner.get(key)
        if isinstance(value, (str, PurePath)) and value:
            texts.append(_media_type(str(value)))
    kinds = [text.split("/")[0] for text in texts if text]
    return kinds[0] if kinds and kinds[0] in ("image", "audio", "video") else None


def _media_type(text: str) -> str:
    if text[:5] == "data:":
        return text[5:].split(";")[0].split(",")[0]
    ending = PurePath(text.split("?")[0]).suffix.lower()
    return _MEDIA_TYPES.get(ending) or mimetypes.guess_type(f"name{ending}")[0] or ""


def sound_pair(value: Any) -> tuple[Any, Any] | None:
    """`(samples, rate)` of a pair in either order (librosa's, or Gradio's with the rate in front), else None."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        return None
    for samples, rate in (value, value[::-1]):
        if _is_number(rate) and is_number_list(samples):
            return np.asarray(samples), rate
        if to_array(samples) is not None and (_is_number(rate) or isinstance(rate, str)):
            return samples, rate
    return None


def is_number_list(value: Any) -> bool:
    """Whether this is a list of samples."""
    return isinstance(value, (list, tuple)) and len(value) > 0 and _is_number(value[0])


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
