"""The model inputs among the arguments of a call: what one call of the processor returns."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import InputError
from ..modeling.packing import check_ids, host_array, valid_tokens
from .checks import check

MODEL_INPUTS = (
    "input_ids",
    "attention_mask",
    "input_features",
    "feature_attention_mask",
    "audio_feature_lengths",
    "pixel_values",
    "image_grid_thw",
    "pixel_values_videos",
    "video_grid_thw",
    "video_second_per_grid",
    "use_audio_in_video",
    "inputs_embeds",
    "position_ids",
)
BELONGS = {
    "image_grid_thw": "pixel_values",
    "video_grid_thw": "pixel_values_videos",
    "video_second_per_grid": "video_grid_thw",
    "feature_attention_mask": "input_features",
    "audio_feature_lengths": "input_features",
}
"""Inputs that mean nothing without another one."""


def take_inputs(kwargs: dict, thinker_config: Any) -> dict:
    """Removes the model inputs from kwargs and returns them, ids and mask as arrays `[B, T]`.

    Raises `InputError` without ids or embeddings, and for ids and masks that fit neither the model nor each other.
    """
    ids = same("input_ids", "inputs", kwargs)
    inputs = {name: kwargs.pop(name, None) for name in MODEL_INPUTS}
    inputs = {name: value for name, value in {**inputs, "input_ids": ids}.items() if value is not None}
    if "input_ids" not in inputs and "inputs_embeds" not in inputs:
        raise InputError("generate needs input_ids; pass the processor's outputs: generate(**inputs)")
    for name in {"input_ids", "attention_mask"} & inputs.keys():
        try:
            inputs[name] = host_array(inputs[name])
        except ValueError:
            raise InputError(f"{name} must be one array [batch, tokens]; its rows differ in length, so pad them") from None
    if "use_audio_in_video" in inputs:
        check("use_audio_in_video", inputs["use_audio_in_video"])
    for name, owner in BELONGS.items():
        if name in inputs and owner not in inputs and "inputs_embeds" not in inputs:
            raise InputError(f"{name} came without {owner}; pass all that one call of the processor returned")
    media = [name for name in ("pixel_values", "pixel_values_videos", "input_features") if name in inputs]
    if media and "inputs_embeds" in inputs:
        raise InputError(f"inputs_embeds holds pictures and sounds already; leave {media[0]} out")
    shape = tuple(getattr(inputs.get("inputs_embeds"), "shape", ()))[:2]
    if "input_ids" in inputs:
        check_ids(inputs["input_ids"], thinker_config.text_config.vocab_size)
        if shape and shape != inputs["input_ids"].shape:
            raise InputError(f"inputs_embeds {list(shape)} and input_ids {list(inputs['input_ids'].shape)} differ in [B, T]")
        shape = inputs["input_ids"].shape
    elif len(getattr(inputs["inputs_embeds"], "shape", ())) != 3:
        raise InputError("inputs_embeds must be of shape [batch, tokens, features]")
    prompt_of(inputs)
    return inputs


def same(name: str, other: str, kwargs: dict) -> Any:
    """The value of an argument that has two names."""
    values = [value for value in (kwargs.pop(name, None), kwargs.pop(other, None)) if value is not None]
    if len(values) == 2:
        raise InputError(f"got both {name} and {other}, which mean the same; pass one of them")
    return values[0] if values else None


def prompt_of(inputs: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Ids int `[B, T]` of the model inputs and which of them are no padding, bool `[B, T]`.

    Of embeddings without ids `[B, 0]` and bool `[B, T]`. Raises `InputError` for a mask that fits neither.
    """
    shape = inputs["input_ids" if "input_ids" in inputs else "inputs_embeds"].shape[:2]
    ids = host_array(inputs.get("input_ids", np.empty((shape[0], 0), np.int64)))
    valid = valid_tokens(shape, inputs.get("attention_mask"))
    if valid.shape != shape:
        raise InputError(f"input_ids {list(shape)} and attention_mask {list(valid.shape)} must be [batch, tokens] both")
    if not valid.any(axis=1).all():
        raise InputError("attention_mask leaves a row without any token")
    return ids, valid
