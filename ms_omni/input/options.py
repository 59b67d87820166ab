"""Options that a conversation item may carry beside its media, read strictly."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from ms_omni.errors import InputError

_SIZE_KEYS = ("min_pixels", "max_pixels", "resized_height", "resized_width")
OPTION_KEYS = {
    "image": _SIZE_KEYS,
    "audio": ("audio_start", "audio_end"),
    "video": (
        *_SIZE_KEYS,
        "total_pixels",
        "fps",
        "nframes",
        "min_frames",
        "max_frames",
        "sample_fps",
        "raw_fps",
        "video_start",
        "video_end",
    ),
}


@dataclass(frozen=True)
class SizeOptions:
    """How large a picture or a video's frames become, in pixels; None leaves it to the preprocessor settings."""

    min_pixels: int | None = None
    max_pixels: int | None = None
    resized_height: int | None = None
    resized_width: int | None = None
    total_pixels: float | None = None  # of a whole video

    def __bool__(self) -> bool:
        return any(value is not None for value in vars(self).values())


@dataclass(frozen=True)
class SamplingOptions:
    """Which frames of a video are taken. `fps` and `nframes` exclude each other; both None means the default rate.

    With `every_frame` all are taken, and `fps` is the rate at which they are to be understood, if it is given.
    """

    fps: float | None = None
    nframes: int | None = None
    min_frames: int | None = None
    max_frames: int | None = None
    video_start_s: float | None = None
    video_end_s: float | None = None
    every_frame: bool = False


def number(item: Mapping[str, Any], key: str, where: str, *, whole: bool = False, above: float = 0.0) -> Any:
    """The option `key` as int or float greater than `above`, or None when it is absent.

    Raises:
        InputError: not a number, not whole where it must be, not finite, or too small.
    """
    value: Any = item.get(key)
    if value is None:
        return None
    kind = Integral if whole else Real
    fits = issubclass(type(value), kind) and not isinstance(value, bool)
    if not fits or not math.isfinite(value) or not value > above:
        wanted = "a whole number" if whole else "a number"
        raise InputError(f"{where}: {key} is {value!r}; expected {wanted} greater than {above:g}.")
    return int(value) if whole else float(value)


def time_range(item: Mapping[str, Any], kind: str, where: str) -> tuple[float | None, float | None]:
    """`<kind>_start` and `<kind>_end` in seconds; None where absent.

    Raises:
        InputError: negative, or the end is not after the start.
    """
    start = number(item, f"{kind}_start", where, above=-1e-9)
    end = number(item, f"{kind}_end", where)
    if end is not None and end <= (start or 0.0):
        raise InputError(f"{where}: {kind}_end ({end:g} s) must be after {kind}_start ({start or 0.0:g} s).")
    return start, end


def size_options(item: Mapping[str, Any], where: str) -> SizeOptions:
    """Read the size options of an image or video item.

    Raises:
        InputError: not positive numbers, only one of resized_height and resized_width, or min_pixels over max_pixels.
    """
    options = SizeOptions(
        **{key: number(item, key, where, whole=True) for key in _SIZE_KEYS}, total_pixels=number(item, "total_pixels", where)
    )
    if (options.resized_height is None) != (options.resized_width is None):
        raise InputError(f"{where}: give resized_height and resized_width together.")
    low, high = options.min_pixels, options.max_pixels
    if low is not None and high is not None and low > high:
        raise InputError(f"{where}: min_pixels {low} is over max_pixels {high}.")
    return options


def sampling_options(item: Mapping[str, Any], where: str) -> SamplingOptions:
    """Read the frame sampling options of a video item.

    Raises:
        InputError: not positive numbers, both fps and nframes, or an empty time range.
    """
    start, end = time_range(item, "video", where)
    fps, nframes = number(item, "fps", where), number(item, "nframes", where, whole=True)
    if fps is not None and nframes is not None:
        raise InputError(f"{where}: give either fps or nframes, not both.")
    return SamplingOptions(
        fps,
        nframes,
        number(item, "min_frames", where, whole=True),
        number(item, "max_frames", where, whole=True),
        start,
        end,
    )


def warn_unknown_options(item: Mapping[str, Any], kind: str, where: str) -> None:
    """A misspelt option would otherwise change nothing in silence."""
    unknown = sorted(str(key) for key in item if key not in OPTION_KEYS[kind])
    if unknown:
        warnings.warn(
            f"{where}: {', '.join(unknown)} not known for {kind} items and ignored; known: {', '.join(OPTION_KEYS[kind])}.",
            stacklevel=2,
        )
