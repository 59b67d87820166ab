"""Video files and lists of frames to sampled RGB frames."""

from __future__ import annotations

from typing import Any

import numpy as np

from ms_omni.errors import MediaError
from ms_omni.input.image import load_image, to_bytes
from ms_omni.input.media import Media, SamplingOptions, SizeOptions
from ms_omni.input.sampling import FRAME_FACTOR
from ms_omni.input.sizes import SizeRule, resized
from ms_omni.input.sources import ACCEPTED, is_source, open_source, to_array
from ms_omni.input.spellings import DICT_ACCEPTED, unwrapped
from ms_omni.input.video_files import load_video_file

DEFAULT_LIST_FPS = 2.0  # of a list of frames that does not say; as qwen_omni_utils assumes
VIDEO_ACCEPTED = (
    f"{ACCEPTED}, a list of frames (pictures), an array [T, H, W, C] or [T, C, H, W], or a dict with {DICT_ACCEPTED}"
)


def load_video(
    value: Any,
    sampling: SamplingOptions = SamplingOptions(),
    sizes: SizeOptions = SizeOptions(),
    *,
    sample_fps: float | None = None,
    size_rule: SizeRule | None = None,
    name: str = "video",
) -> Media:
    """Any accepted video as sampled, upright RGB frames.

    A file is shown as players show it: frames by their times (see `sampling.choose_frames`), turned, mirrored and stretched as
    the file says, of several tracks the default one.

    Args:
        value: see `VIDEO_ACCEPTED`. Lists and arrays are taken whole.
        sampling: which frames of a file to take.
        sizes: stored in the clip, and handed to `size_rule`.
        sample_fps: rate of a list or array of frames.
        size_rule: when given, each frame is resized to what it says as soon as it is decoded. Without it frames keep their size,
            unless they are many and large.
        name: what error messages call it when it has no file name.

    Raises:
        MediaError: not a video, without frames, cut short, damaged, or too short for the sampling options.
    """
    value = unwrapped(value, name)
    array = to_array(value)
    if array is not None:
        clip = _from_array(array, sample_fps, sizes, name)
        return clip if size_rule is None else resized(clip, size_rule)
    if isinstance(value, (list, tuple)):
        clip = _from_frames(value, sample_fps, sizes, name)
        return clip if size_rule is None else resized(clip, size_rule)
    if not is_source(value):
        raise MediaError(f"{name} is a {type(value).__name__}; give {VIDEO_ACCEPTED}.")
    return load_video_file(open_source(value, "video"), sampling, sizes, size_rule)


def _from_frames(frames: Any, sample_fps: float | None, sizes: SizeOptions, name: str) -> Media:
    """A clip from a list of pictures of one size; the last is repeated when their number is odd."""
    if not frames:
        raise MediaError(f"{name} is an empty list; expected at least one frame.")
    pictures = [np.asarray(load_image(frame, f"frame {index} of {name}")) for index, frame in enumerate(frames)]
    shapes = {picture.shape[:2] for picture in pictures}
    if len(shapes) > 1:
        found = ", ".join(f"{width} x {height}" for height, width in sorted(shapes))
        raise MediaError(f"The frames of {name} differ in size ({found}); they must be alike.")
    return _ready_made(np.stack(pictures).transpose(0, 3, 1, 2), sample_fps or DEFAULT_LIST_FPS, sizes, name)


def _from_array(array: np.ndarray, sample_fps: float | None, sizes: SizeOptions, name: str) -> Media:
    frames = frames_from_array(array, name)
    return _ready_made(frames, sample_fps or DEFAULT_LIST_FPS, sizes, name)


def _ready_made(frames: np.ndarray, fps: float, sizes: SizeOptions, name: str) -> Media:
    if len(frames) % FRAME_FACTOR:
        frames = np.concatenate([frames, frames[-1:]])
    count = len(frames)
    metadata = {"fps": fps, "total_num_frames": count, "frames_indices": list(range(count)), "video_backend": "frames"}
    return Media("video", name, frames, sizes, fps, metadata=metadata)


def frames_from_array(array: np.ndarray, name: str, *, rescaled: bool = False) -> np.ndarray:
    """`[T, C, H, W]` RGB from an array of either layout: floats as float32, everything else as uint8.

    Floats stay floats because the reference resizes them without rounding. `rescaled` ones are no steps of 0..255 any more.

    Raises:
        MediaError: wrong shape or type, or values outside 0..255.
    """
    if array.ndim == 4 and array.shape[3] in (1, 3) and array.shape[1] not in (1, 3):
        array = array.transpose(0, 3, 1, 2)
    if array.ndim != 4 or 0 in array.shape or array.shape[1] not in (1, 3):
        raise MediaError(
            f"{name} is an array of shape {list(array.shape)}; expected [T, H, W, C] or [T, C, H, W] with 1 or 3 channels."
        )
    floats = array.dtype.kind == "f"
    frames = array if floats and rescaled else to_bytes(array, name)
    if floats:
        frames = array.astype(np.float32)
    return np.repeat(frames, 3, axis=1) if frames.shape[1] == 1 else frames
