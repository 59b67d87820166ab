"""Sound to log-mel features, and how many tokens they become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ms_omni.errors import InputError
from ms_omni.input.audio import check_clip

FRAMES_PER_CHUNK = 100  # one second of mel frames
TOKENS_PER_CHUNK = 13


def audio_token_count(frames: Any) -> Any:
    """Tokens of `frames` mel frames (int or integer array): 13 for each whole second, the rest halved three times."""
    rest = frames % FRAMES_PER_CHUNK
    halved = (rest - 1) // 2 + 1
    return ((halved - 1) // 2 + 1 - 1) // 2 + 1 + frames // FRAMES_PER_CHUNK * TOKENS_PER_CHUNK


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
