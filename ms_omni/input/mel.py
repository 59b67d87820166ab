"""Sound to log-mel features, and how many tokens they become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ms_omni.errors import InputError
from ms_omni.input.audio import MOST_CHANNELS, check_clip, load_audio, load_sound_track
from ms_omni.input.sources import Source, to_array
from ms_omni.input.spellings import is_number_list, sound_pair
from ms_omni.input.video import has_sound

FRAMES_PER_CHUNK = 100  # one second of mel frames
TOKENS_PER_CHUNK = 13


def audio_token_count(frames: Any) -> Any:
    """Tokens of `frames` mel frames (int or integer array): 13 for each whole second, the rest halved three times."""
    rest = frames % FRAMES_PER_CHUNK
    halved = (rest - 1) // 2 + 1
    return ((halved - 1) // 2 + 1 - 1) // 2 + 1 + frames // FRAMES_PER_CHUNK * TOKENS_PER_CHUNK


def as_audio_list(audio: Any) -> list[np.ndarray]:
    """Mono float32 clips at 16 kHz from one clip, or a list of clips or of lists of clips.

    A clip is whatever `load_audio` knows: an array or tensor, a list of numbers, (array, sampling rate), a file. An array
    `[n, samples]` that stands alone is a batch of n clips.

    Raises:
        MediaError: a clip that cannot be used; the message says which.
    """
    array = to_array(audio)
    if array is not None:
        batch = array.ndim == 2 and 1 not in array.shape and array.shape[1] > MOST_CHANNELS
        flat = list(array) if batch else [array]
    elif _is_clip(audio):
        flat = [audio]
    else:
        flat = [clip for item in audio for clip in ([item] if _is_clip(item) else item)]
    return [load_audio(clip, name=f"sound {index}") for index, clip in enumerate(flat)]


def _is_clip(value: Any) -> bool:
    return not isinstance(value, (list, tuple)) or is_number_list(value) or sound_pair(value) is not None


def with_sound_tracks(
    sounds: list[np.ndarray], videos: Sequence[Any], owners: Sequence[int | None] | None
) -> list[np.ndarray]:
    """The sounds of a call with the sound tracks of its video files among them, where the caller has not put them there.

    Args:
        videos: files as `Source`; ready-made frames have no sound.
        owners: for each sound the number of the video it belongs to, or None; by default there are only sound tracks.
    """
    if owners is None:
        owners = range(len(videos)) if not sounds else [None] * len(sounds)
    if len(sounds) != sum(owner is None for owner in owners):
        return sounds
    alone = iter(sounds)
    loud = [isinstance(video, Source) and has_sound(video) for video in videos]
    return [
        next(alone) if owner is None else load_sound_track(videos[owner], None, None)
        for owner in owners
        if owner is None or (0 <= owner < len(videos) and loud[owner])
    ]


def encode_audio(
    clips: Sequence[np.ndarray], extractor: Any, options: Mapping[str, Any] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Features of clips of any length; nothing is cut unless `options` ask for it.

    Args:
        clips: mono float32 at the extractor's rate.
        extractor: transformers' `WhisperFeatureExtractor`.
        options: padding (True, "longest", "max_length", or False for clips of one length), truncation, max_length and
            pad_to_multiple_of in samples.

    Returns:
        `input_features` float32 `[n, mel, frames]`, padded to the longest clip, and its mask int32 `[n, frames]`.

    Raises:
        InputError: padding that cannot be; MediaError: a clip that is too short, or not finite.
    """
    options = dict(options or {})
    options.pop("sampling_rate", None)
    padding = options.setdefault("padding", True)
    options.setdefault("truncation", False)
    if padding not in (True, False, "longest", "max_length", "do_not_pad"):
        raise InputError(f"audio_kwargs: padding is {padding!r}; expected True, False, 'longest' or 'max_length'.")
    if padding in (False, "do_not_pad") and len({len(clip) for clip in clips}) > 1:
        raise InputError("audio_kwargs: padding is off and the sounds differ in length; one array cannot hold them.")
    for index, clip in enumerate(clips):
        check_clip(clip[: options.get("max_length")] if options["truncation"] else clip, f"Sound {index}")
    features = extractor(
        [np.asarray(clip, np.float32) for clip in clips],
        sampling_rate=extractor.sampling_rate,
        return_attention_mask=True,
        return_tensors="np",
        **options,
    )
    mask = np.asarray(features["attention_mask"], np.int32)
    values = np.asarray(features["input_features"], np.float32)
    if values.shape[-1] != mask.shape[-1]:
        raise InputError(f"The mel features have {values.shape[-1]} frames but their mask {mask.shape[-1]}.")
    return values, mask
