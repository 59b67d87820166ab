"""Sound to log-mel features, and how many tokens they become."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ms_omni.errors import InputError
from ms_omni.media.audio import check_clip, load_audio
from ms_omni.media.sources import to_array

FRAMES_PER_CHUNK = 100  # one second of mel frames
TOKENS_PER_CHUNK = 13


def audio_token_count(frames: Any) -> Any:
    """Tokens of `frames` mel frames (int or integer array): 13 for each whole second, the rest halved three times."""
    rest = frames % FRAMES_PER_CHUNK
    halved = (rest - 1) // 2 + 1
    return ((halved - 1) // 2 + 1 - 1) // 2 + 1 + frames // FRAMES_PER_CHUNK * TOKENS_PER_CHUNK


def as_audio_list(audio: Any, sampling_rate_hz: int) -> list[np.ndarray]:
    """Mono float32 clips at `sampling_rate_hz` from one clip, or a list of clips or of lists of clips.

    A clip is an array or tensor, a list of numbers, (array, sampling rate), or a file in any spelling that `load_audio`
    knows.

    Raises:
        MediaError: a clip that cannot be used; the message says which.
    """
    if _is_clip(audio):
        audio = [audio]
    flat = [clip for item in audio for clip in ([item] if _is_clip(item) else item)]
    return [_as_clip(clip, f"sound {index}") for index, clip in enumerate(flat)]


def _is_clip(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        pair = len(value) == 2 and to_array(value[0]) is not None and np.isscalar(value[1])
        return pair or (len(value) > 0 and isinstance(value[0], (int, float)))
    array = to_array(value)
    return array is None or array.ndim < 2 or 1 in array.shape


def _as_clip(clip: Any, name: str) -> np.ndarray:
    if isinstance(clip, list) and clip and isinstance(clip[0], (int, float)):
        clip = np.asarray(clip, np.float32)
    return load_audio(clip, name=name)


def encode_audio(clips: Sequence[np.ndarray], extractor: Any) -> tuple[np.ndarray, np.ndarray]:
    """Features of clips of any length; nothing is cut.

    Args:
        clips: mono float32 at the extractor's rate.
        extractor: transformers' `WhisperFeatureExtractor`.

    Returns:
        `input_features` float32 `[n, mel, frames]`, padded to the longest clip, and its mask int32 `[n, frames]`.
    """
    for index, clip in enumerate(clips):
        check_clip(clip, f"Sound {index}")
    features = extractor(
        [np.asarray(clip, np.float32) for clip in clips],
        sampling_rate=extractor.sampling_rate,
        padding=True,
        truncation=False,
        return_attention_mask=True,
        return_tensors="np",
    )
    mask = np.asarray(features["attention_mask"], np.int32)
    values = np.asarray(features["input_features"], np.float32)
    if values.shape[-1] != mask.shape[-1]:
        raise InputError(f"The mel features have {values.shape[-1]} frames but their mask {mask.shape[-1]}.")
    return values, mask
