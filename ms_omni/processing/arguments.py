"""Keyword arguments of the processor, sorted once into typed options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

from ms_omni.errors import InputError

_VISION_KEYS = (
    "min_pixels",
    "max_pixels",
    "size",
    "do_resize",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
)
GROUPS = {
    "text_kwargs": ("padding", "padding_side", "truncation", "max_length", "pad_to_multiple_of", "add_special_tokens"),
    "images_kwargs": _VISION_KEYS,
    "videos_kwargs": (
        *_VISION_KEYS,
        "fps",
        "do_sample_frames",
        "use_audio_in_video",
        "load_audio_from_video",
        "seconds_per_chunk",
        "position_id_per_seconds",
    ),
    "audio_kwargs": ("sampling_rate",),
}
# What scripts pass, and what sound is always treated with.
_FIXED_AUDIO = {"padding": (True, "longest"), "truncation": (False,), "return_attention_mask": (True,)}
_COMMON_KEYS = (
    "return_tensors",
    "use_audio_in_video",
    "load_audio_from_video",
    "audio_from_video_indices",
    "seconds_per_chunk",
    "position_id_per_seconds",
)
POSITION_ID_PER_SECONDS = 13.0


@dataclass(frozen=True)
class CallOptions:
    """One call's options. `vision` maps "image" and "video" to the settings that the call changes."""

    text: Mapping[str, Any]
    vision: Mapping[str, Mapping[str, Any]]
    fps: Any = None
    use_audio_in_video: bool = False
    position_id_per_seconds: float = POSITION_ID_PER_SECONDS
    audio_from_video_indices: list[int | None] | None = None
    return_tensors: str | None = None
    audio: Mapping[str, Any] = field(default_factory=dict)


def call_options(kwargs: Mapping[str, Any]) -> CallOptions:
    """Sort the keyword arguments of `Qwen3OmniMoeProcessor.__call__`.

    An argument may stand by itself (it then goes to every group that knows it) or within text_kwargs, images_kwargs,
    videos_kwargs or audio_kwargs. `seconds_per_chunk` is accepted because scripts pass it; it has no effect in the
    reference either. `load_audio_from_video` is the newer name of `use_audio_in_video`.

    Raises:
        InputError: an argument that no group knows, or a value that would cut sound or sample frames again.
    """
    groups: dict[str, dict[str, Any]] = {name: {} for name in GROUPS}
    common: dict[str, Any] = {}
    for key, value in kwargs.items():
        if key in GROUPS:
            groups[key].update(_group(key, value))
            continue
        takers = [name for name, keys in GROUPS.items() if key in keys and key not in kwargs.get(name, {})]
        if key not in _COMMON_KEYS and not any(key in keys for keys in GROUPS.values()):
            raise InputError(
                f"The processor has no argument {key!r}; it has text, images, videos, audio, {', '.join(argument_names())}."
            )
        if key in _COMMON_KEYS:
            common[key] = value
            continue
        if value is not None:
            for name in takers:
                groups[name][key] = value
    return _checked(groups, common)


def argument_names() -> list[str]:
    """Every keyword argument that the processor takes beside the media."""
    return sorted({*_COMMON_KEYS, *GROUPS, *(key for keys in GROUPS.values() for key in keys)})


def _group(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"{name} is a {type(value).__name__}; expected a dict.")
    if name == "audio_kwargs":
        value = _without_fixed_audio(value)
    allowed = (*GROUPS[name], "return_tensors")
    unknown = [key for key in value if key not in allowed]
    if unknown:
        raise InputError(f"{name} has no {', '.join(map(repr, unknown))}; it has {', '.join(GROUPS[name])}.")
    return {key: item for key, item in value.items() if item is not None}


def _without_fixed_audio(value: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what sound is always treated with.

    Raises:
        InputError: a value that would cut sound or leave out its mask.
    """
    for key, accepted in _FIXED_AUDIO.items():
        if value.get(key) is not None and value[key] not in accepted:
            raise InputError(
                f"audio_kwargs: {key} is {value[key]!r}; sound is never cut, is padded to the longest "
                f"clip, and has a mask: only {accepted[0]!r} is accepted."
            )
    return {key: item for key, item in value.items() if key not in _FIXED_AUDIO}


def _checked(groups: dict[str, dict[str, Any]], common: dict[str, Any]) -> CallOptions:
    videos = groups["videos_kwargs"]
    for key in ("use_audio_in_video", "load_audio_from_video", "seconds_per_chunk", "position_id_per_seconds"):
        if key in videos:
            common.setdefault(key, videos[key])
    if videos.get("do_sample_frames"):
        raise InputError(
            "do_sample_frames is set, but frames given to the processor are taken as they are. Choose "
            "frames in the conversation item (fps or nframes), or with apply_chat_template(..., fps=)."
        )
    for name in GROUPS:
        common.setdefault("return_tensors", groups[name].get("return_tensors"))
    rate = common.get("position_id_per_seconds")
    rate = POSITION_ID_PER_SECONDS if rate is None else rate
    if isinstance(rate, bool) or not isinstance(rate, Real) or rate <= 0:
        raise InputError(f"position_id_per_seconds is {rate!r}; expected a number greater than 0.")
    vision = {
        kind: {key: groups[name][key] for key in _VISION_KEYS if key in groups[name]}
        for kind, name in (("image", "images_kwargs"), ("video", "videos_kwargs"))
    }
    return CallOptions(
        text={key: groups["text_kwargs"][key] for key in GROUPS["text_kwargs"] if key in groups["text_kwargs"]},
        vision=vision,
        fps=videos.get("fps"),
        position_id_per_seconds=float(rate),
        audio=groups["audio_kwargs"],
        use_audio_in_video=bool(common.get("use_audio_in_video") or common.get("load_audio_from_video")),
        audio_from_video_indices=common.get("audio_from_video_indices"),
        return_tensors=common.get("return_tensors"),
    )


def fps_per_video(fps: Any, count: int) -> list[float | None]:
    """The caller's frames per second for each video; None where not given.

    Raises:
        InputError: not a positive number, or a list of another length.
    """
    rates = list(fps) if isinstance(fps, (list, tuple)) else [fps] * count
    if len(rates) != count:
        raise InputError(f"fps has {len(rates)} values for {count} video(s); give one number, or one for each video.")
    for rate in rates:
        if rate is not None and (isinstance(rate, bool) or not isinstance(rate, Real) or not 0 < rate < float("inf")):
            raise InputError(f"fps is {rate!r}; expected a number greater than 0.")
    return [None if rate is None else float(rate) for rate in rates]
