"""Which frames of a video the model sees."""

from __future__ import annotations

import math

import numpy as np

from ms_omni.errors import MediaError
from ms_omni.input.media import SamplingOptions

DEFAULT_FPS = 2.0
FRAME_FACTOR = 2  # frames come in pairs: one temporal patch
MIN_FRAMES = 4
MAX_FRAMES = 768


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
    if options.every_frame:
        return total
    if options.nframes is not None:
        count = round(options.nframes / FRAME_FACTOR) * FRAME_FACTOR
        if not FRAME_FACTOR <= count <= total:
            raise MediaError(
                f"{name}: nframes is {options.nframes}; expected {FRAME_FACTOR} to {total}, the frames there are."
            )
        return count
    least = math.ceil((options.min_frames or MIN_FRAMES) / FRAME_FACTOR) * FRAME_FACTOR
    most = math.floor((options.max_frames or min(MAX_FRAMES, total)) / FRAME_FACTOR) * FRAME_FACTOR
    wanted = total / fps * (options.fps or DEFAULT_FPS)
    count = math.floor(min(max(wanted, least), most, total) / FRAME_FACTOR) * FRAME_FACTOR
    if count < FRAME_FACTOR:
        raise MediaError(f"{name}: max_frames is {options.max_frames}; expected at least {FRAME_FACTOR}.")
    return count


def frame_indices(first: int, last: int, count: int) -> np.ndarray:
    """`count` frame numbers spread evenly from `first` to `last`, rounded half to even: int64 `[count]`."""
    return np.rint(np.linspace(first, last, count)).astype(np.int64)
