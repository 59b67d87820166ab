"""Which frames of a video the model sees, and at which times."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ms_omni.errors import InputError, MediaError, caller_level
from ms_omni.input.media import Media, SamplingOptions, limits, number, sampling_options

DEFAULT_FPS = 2.0
FRAME_FACTOR = 2  # frames come in pairs: one temporal patch
MIN_FRAMES = 4
MAX_FRAMES = 768
UNKNOWN_FPS = 1.0  # what the reference assumes for frames of unknown rate


@dataclass(frozen=True)
class Choice:
    """The frames taken: for the model they are `1 / sample_fps` seconds apart.

    Attributes:
        indices: int64 `[n]`, never falling; a frame that is shown for long may stand there several times.
        total, fps: how many frames lie in the time range, and their average rate.
    """

    indices: np.ndarray
    total: int
    fps: float
    sample_fps: float


def choose_frames(
    times_s: np.ndarray, end_s: float, stated_fps: float | None, options: SamplingOptions, name: str
) -> Choice:
    """Choose frames of a video by the times at which they are shown.

    At a constant rate they are chosen by number, as in the reference. At any other, what a player shows is taken at times that
    are evenly spaced, so that the times that the model gets are the real ones.

    Args:
        times_s: float64 `[total]` seconds since the first frame, never falling.
        end_s: when the last frame vanishes.
        stated_fps: the container's average rate, which counts where the times agree with it.

    Raises:
        MediaError: fewer frames than the options want, or more than `limits.frames`.
    """
    total = len(times_s)
    rate = _constant_rate(times_s, stated_fps) if total >= FRAME_FACTOR else total / end_s
    if rate is None and options.every_frame and not options.fps:
        warnings.warn(
            f"{name}: its frames are not evenly spaced; as all of them are taken, the model is told that they are.",
            stacklevel=caller_level(),
        )
    if rate is None and not options.every_frame:
        choice = _by_time(times_s, end_s, options, name)
    else:
        rate = rate or total / end_s
        first, last = frame_range(total, rate, options, name)
        total = last - first + 1
        count = frame_count(total, rate, options, name)
        stated = options.fps if options.every_frame else None
        choice = Choice(frame_indices(first, last, count), total, rate, stated or count / total * rate)
    if len(choice.indices) > limits.frames:
        raise MediaError(
            f"{name}: {len(choice.indices)} frames would be taken, and the limit is {limits.frames}; set fps, nframes or "
            "max_frames, or raise ms_omni.media.limits.frames."
        )
    return choice


def _constant_rate(times_s: np.ndarray, stated_fps: float | None) -> float | None:
    """Frames per second when every frame is shown within half a frame of its turn, else None."""
    steps_s = np.diff(times_s)
    average_s, usual_s = float(steps_s.mean()), float(np.median(steps_s))
    for rate in (stated_fps, *(1 / step_s for step_s in (average_s, usual_s) if step_s > 0)):
        if rate and np.abs(times_s - times_s[0] - np.arange(len(times_s)) / rate).max() <= 0.5 / rate + 1e-6:
            return rate
    return None


def _by_time(times_s: np.ndarray, end_s: float, options: SamplingOptions, name: str) -> Choice:
    """What is shown at evenly spaced times of the time range."""
    start_s = min(options.video_start_s or 0.0, end_s)
    stop_s = min(options.video_end_s or end_s, end_s)
    if not stop_s > start_s:
        raise MediaError(f"{name} lasts {end_s:.2f} s; nothing lies between video_start and video_end.")
    length_s = stop_s - start_s
    count = _wanted(length_s, max(len(times_s), MAX_FRAMES), options, name)
    shown_s = start_s + np.arange(count) * (length_s / count)
    indices = np.maximum(np.searchsorted(times_s, shown_s + 1e-6, side="right") - 1, 0)
    first, last = np.searchsorted(times_s, (start_s + 1e-6, stop_s), side="right") - 1
    total = int(last) - max(int(first), 0) + 1
    return Choice(indices.astype(np.int64), total, total / length_s, count / length_s)


def frame_range(total: int, fps: float, options: SamplingOptions, name: str) -> tuple[int, int]:
    """First and last frame of the time range, both included.

    Raises:
        MediaError: fewer than two frames lie in it.
    """
    duration_s = total / fps
    first, last = 0, total - 1
    if options.video_start_s is not None:
        first = math.ceil(min(options.video_start_s, duration_s) * fps)
    if options.video_end_s is not None:
        last = min(math.floor(min(options.video_end_s, duration_s) * fps), total - 1)
    if last - first + 1 < FRAME_FACTOR:
        cut = options.video_start_s is not None or options.video_end_s is not None
        where = " between video_start and video_end" if cut else ""
        raise MediaError(
            f"{name} has {max(0, last - first + 1)} frame(s){where}, of {total} in {duration_s:.2f} s; at "
            f"least {FRAME_FACTOR} are needed. A single frame can be given as a picture."
        )
    return first, last


def frame_count(total: int, fps: float, options: SamplingOptions, name: str) -> int:
    """How many of `total` frames at `fps` are taken: an even number from 2 to `total`, or all.

    Raises:
        MediaError: `nframes` asks for more frames than there are.
    """
    return total if options.every_frame else _wanted(total / fps, total, options, name)


def _wanted(length_s: float, most: int, options: SamplingOptions, name: str) -> int:
    """How many frames are taken of `length_s` seconds: an even number from 2 to `most`.

    Raises:
        MediaError: `nframes` or `max_frames` cannot be met.
    """
    if options.nframes is not None:
        count = round(options.nframes / FRAME_FACTOR) * FRAME_FACTOR
        if not FRAME_FACTOR <= count <= most:
            raise MediaError(
                f"{name}: nframes is {options.nframes}; expected {FRAME_FACTOR} to {most}, the frames there are."
            )
        return count
    least = math.ceil((options.min_frames or MIN_FRAMES) / FRAME_FACTOR) * FRAME_FACTOR
    high = math.floor((options.max_frames or min(MAX_FRAMES, most)) / FRAME_FACTOR) * FRAME_FACTOR
    wanted = length_s * (options.fps or DEFAULT_FPS)
    count = math.floor(min(max(wanted, least), high, most) / FRAME_FACTOR) * FRAME_FACTOR
    if count < FRAME_FACTOR:
        raise MediaError(f"{name}: max_frames is {options.max_frames}; expected at least {FRAME_FACTOR}.")
    return count


def frame_indices(first: int, last: int, count: int) -> np.ndarray:
    """`count` frame numbers spread evenly from `first` to `last`, rounded half to even: int64 `[count]`."""
    return np.rint(np.linspace(first, last, count)).astype(np.int64)


def with_frame_options(clip: Media, options: Mapping[str, Any]) -> Media:
    """Ready-made frames with their rate, or a selection of them: see `arguments.load_videos`. The caller's fps wins over the clip's own."""
    total, known, fps = len(clip.data), options.get("video_metadata"), options.get("fps")
    wanted = options.get("nframes") or options.get("num_frames")
    rate = clip.sample_fps if known is None else _metadata_fps(total, known)
    sampled = options.get("do_sample_frames")
    if not (sampled or (sampled is None and wanted)):
        return replace(
            clip, sample_fps=fps or rate, metadata=clip.metadata or frame_metadata(fps or rate, total, range(total))
        )
    if not wanted and not rate:
        raise InputError(
            f"{clip.name}: do_sample_frames is set, but the rate of the frames is not known; pass video_metadata= with fps and "
            "total_num_frames, or num_frames=."
        )
    count = frame_count(total, rate or 1.0, file_sampling(options, clip.name), clip.name)
    indices = (np.arange(count) * (total / count)).astype(np.int64)  # as transformers' sample_frames
    metadata = frame_metadata(rate, total, indices.tolist())
    return replace(clip, data=clip.data[indices], sample_fps=rate and count / total * rate, metadata=metadata)


def frame_metadata(fps: float | None, total: int, indices: Sequence[int], backend: str = "frames") -> dict[str, Any]:
    """As qwen_omni_utils reports it: the frames' own rate, how many there are, and the indices of those taken."""
    return {"fps": fps, "total_num_frames": total, "frames_indices": list(indices), "video_backend": backend}


def _metadata_fps(count: int, metadata: Any) -> float | None:
    """Frames per second of the `count` frames taken, from those of the file: a dict's, or transformers' `VideoMetadata`."""
    known = metadata if isinstance(metadata, Mapping) else vars(metadata)
    total, fps = known.get("total_num_frames"), known.get("fps")
    return float(count / total * fps) if total and fps else None


def file_sampling(video: Mapping[str, Any], where: str) -> SamplingOptions:
    """Which frames of a video file are taken, by fps, nframes (num_frames), min_frames, max_frames and do_sample_frames.

    Raises:
        InputError: not numbers greater than 0, or both a rate and a number of frames.
    """
    frames = number(video, "nframes", where, whole=True) or number(video, "num_frames", where, whole=True)
    every, fps = video.get("do_sample_frames") is False, video.get("fps")
    fps = fps[0] if isinstance(fps, (list, tuple)) and len(set(fps)) == 1 else fps
    own = {**video, "fps": fps, "nframes": None if every else frames}
    return replace(sampling_options(own, where), every_frame=every)


def per_video(values: Any, count: int, name: str) -> list[Any]:
    """A value for each video, from one value or a list of them.

    Raises:
        InputError: a list of another length.
    """
    listed = list(values) if isinstance(values, (list, tuple)) else [values] * count
    if len(listed) != count:
        raise InputError(f"{name} has {len(listed)} values for {count} video(s); give one, or one for each video.")
    return listed


def seconds_per_grid(clips: Sequence[Media], frames: int) -> np.ndarray:
    """Seconds between two time steps, of so many frames each, of each video: float64 `[n]`."""
    if any(clip.sample_fps is None for clip in clips):
        warnings.warn(
            f"The rate of the frames is not known: taken as {UNKNOWN_FPS:g} per second, as the reference "
            "does. Pass fps= (process_mm_info returns it with return_video_kwargs=True).",
            stacklevel=caller_level(),
        )
    return frames / np.array([clip.sample_fps or UNKNOWN_FPS for clip in clips], np.float64)
