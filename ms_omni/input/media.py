"""Pictures, sounds and videos: the options that an item carries, read strictly; the decoded medium; and limits of their size."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import Any

import numpy as np

from ms_omni.arrays import HostArray
from ms_omni.errors import InputError, caller_level

_SIZE_KEYS = ("min_pixels", "max_pixels", "resized_height", "resized_width")
LARGEST = 1 << 53  # of any number here
OPTION_KEYS = {
    "image": _SIZE_KEYS,
    "audio": ("audio_start", "audio_end"),
    "video": (
        *_SIZE_KEYS,
        *("total_pixels", "fps", "nframes", "min_frames", "max_frames", "sample_fps", "raw_fps"),
        *("video_start", "video_end"),
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

    def over(self, defaults: SamplingOptions) -> SamplingOptions:
        """These options, and the defaults where they do not say how frames are chosen."""
        if self.fps is not None or self.nframes is not None:
            return self
        return replace(
            defaults,
            min_frames=self.min_frames or defaults.min_frames,
            max_frames=self.max_frames or defaults.max_frames,
            video_start_s=self.video_start_s,
            video_end_s=self.video_end_s,
        )


@dataclass(frozen=True)
class ItemOptions:
    """The options of one item; `start_s` and `end_s` are the part of a sound or video that is taken."""

    sizes: SizeOptions = SizeOptions()
    sampling: SamplingOptions = SamplingOptions()
    start_s: float | None = None
    end_s: float | None = None
    list_fps: float | None = None  # of frames that are given one by one


@dataclass(frozen=True)
class Media:
    """One picture, sound or video, decoded.

    Attributes:
        kind: "image", "audio" or "video".
        name: for error messages.
        data: frames `[T, C, H, W]`, uint8 (float32 only if an array of floats was given), one of a picture; of a sound
            float32 `[samples]` at 16 kHz.
        sizes: which size its item asks for.
        sample_fps: frames per second of a video's `data`; None when it is not known.
        has_audio: whether a video's file has a sound track; None for frames that came without a file.
        uses_audio: a video's sound track is taken: the next sound is its own.
        sized: frames already have the size that the model reads.
        budgeted: the whole-video pixel budget applies (it does for what we load; not for arrays given ready-made).
        metadata: of a video: fps, total_num_frames, frames_indices and video_backend, as qwen_omni_utils reports them.
    """

    kind: str
    name: str
    data: np.ndarray
    sizes: SizeOptions = SizeOptions()
    sample_fps: float | None = None
    has_audio: bool | None = None
    uses_audio: bool = False
    sized: bool = False
    budgeted: bool = True
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def frames(self) -> np.ndarray:
        """The `data` of a picture or video."""
        return self.data


class VideoFrames(HostArray):
    """uint8 frames `[T, C, H, W]` that remember their rate, and whether their file has sound.

    `process_mm_info` returns these, so that the processor knows the real seconds per frame.
    """

    def __new__(cls, clip: Media) -> VideoFrames:
        frames = np.asarray(clip.data).view(cls)
        frames.origin = replace(clip, data=np.asarray(clip.data))
        return frames

    def __array_finalize__(self, source: Any) -> None:
        self.origin: Media | None = None  # a slice or a computed array is no longer the clip as loaded

    @property
    def sample_fps(self) -> float | None:
        return None if self.origin is None else self.origin.sample_fps

    @property
    def has_audio(self) -> bool | None:
        return None if self.origin is None else self.origin.has_audio


def item_options(kind: str, item: Mapping[str, Any], where: str) -> ItemOptions:
    """The options of an item of that kind, checked.

    Raises:
        InputError: values that mean nothing, or contradict each other.
    """
    unknown = sorted(str(key) for key in item if key not in OPTION_KEYS[kind])
    if unknown:  # a misspelt option would otherwise change nothing in silence
        warnings.warn(
            f"{where}: {', '.join(unknown)} not known for {kind} items and ignored; known: {', '.join(OPTION_KEYS[kind])}.",
            stacklevel=caller_level(),
        )
    if kind == "image":
        return ItemOptions(size_options(item, where))
    start, end = time_range(item, kind, where)
    if kind == "audio":
        return ItemOptions(start_s=start, end_s=end)
    sampling = sampling_options(item, where)
    rate = number(item, "sample_fps", where) or sampling.fps  # some scripts call it fps
    return ItemOptions(size_options(item, where), sampling, start, end, rate)


def number(item: Mapping[str, Any], key: str, where: str, *, whole: bool = False, above: float = 0.0) -> Any:
    """The option `key` as int or float greater than `above`, or None when it is absent.

    Raises:
        InputError: not a number, not whole where it must be, not finite, too small, or over `LARGEST`.
    """
    value: Any = item.get(key)
    if value is None:
        return None
    fits = issubclass(type(value), Real) and not isinstance(value, bool) and above < value <= LARGEST
    if not fits or (whole and value != int(value)):  # tables with gaps make 3136.0 of 3136
        wanted = "a whole number" if whole else "a number"
        huge = isinstance(value, (int, float)) and value > LARGEST
        shown = "larger than that" if huge else repr(value)  # Python may refuse to write its digits
        most = f" and at most {LARGEST:.0e}" if huge else ""
        raise InputError(f"{where}: {key} is {shown}; expected {wanted} greater than {above:g}{most}.")
    return int(value) if whole else float(value)


def is_count(value: Any, most: int = 10_000) -> bool:
    """Whether this is a whole number from 1 to `most`."""
    return issubclass(type(value), Integral) and not isinstance(value, bool) and 1 <= value <= most


def is_real(value: Any, above: float) -> bool:
    """Whether this is a finite number greater than `above`."""
    return issubclass(type(value), Real) and not isinstance(value, bool) and bool(above < value < math.inf)


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


@dataclass
class MediaLimits:
    """Set these on `ms_omni.media.limits` to take larger media. At the defaults, reading a file stays under 2 GB of memory, but for
    the patches of the longest videos: 768 frames within the published budget of pixels are 2.8 GB of float32.

    Attributes:
        sound_s: longest sound, in seconds, of the part that is taken.
        picture_pixels: largest picture.
        resized_pixels: largest size that a picture or frame is given; the published settings ask for 12.8 million at most.
        frame_pixels: largest frame of a video.
        frames: most frames of a video that are taken; without options of its own a video stays far below.
    """

    sound_s: float = 4200.0
    picture_pixels: int = 1 << 27  # 134 million; telephones make 108
    resized_pixels: int = 1 << 25
    frame_pixels: int = 36_000_000  # 8K film
    frames: int = 2048


limits = MediaLimits()
