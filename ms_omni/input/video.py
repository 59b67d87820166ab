"""Video files and lists of frames to sampled RGB frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ms_omni.errors import MediaError
from ms_omni.input.container import open_container
from ms_omni.input.image import load_image, to_bytes
from ms_omni.input.integrity import check_whole, describe
from ms_omni.input.media import Media, SamplingOptions, SizeOptions
from ms_omni.input.sampling import FRAME_FACTOR, frame_count, frame_indices, frame_range
from ms_omni.input.sizes import SizeRule, resize_frame, resized
from ms_omni.input.sources import ACCEPTED, Source, is_source, open_source, to_array
from ms_omni.input.spellings import DICT_ACCEPTED, unwrapped

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

    A file is read twice: first its packets are counted, then it is decoded and only the chosen frames are kept, so that
    memory holds no more than those.

    Args:
        value: see `VIDEO_ACCEPTED`. Lists and arrays are taken whole.
        sampling: which frames of a file to take.
        sizes: stored in the clip, and handed to `size_rule`.
        sample_fps: rate of a list or array of frames.
        size_rule: when given, each frame is resized to what it says as soon as it is decoded.
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
    return _from_file(open_source(value, "video"), sampling, sizes, size_rule)


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


def _from_file(source: Source, sampling: SamplingOptions, sizes: SizeOptions, size_rule: SizeRule | None) -> Media:
    import av

    check_whole(source)
    try:
        plan = _plan(source, sampling, None)
        frames, decoded = _decode(source, plan, sizes, size_rule)
        if len(frames) < len(plan.indices):  # some packets hold no picture (VP8's hidden frames)
            plan = _plan(source, sampling, decoded)
            frames, _ = _decode(source, plan, sizes, size_rule)
    except MediaError:
        raise
    except (av.FFmpegError, OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MediaError(f"{source.name} cannot be read as a video: {reason}; {describe(source)}.") from error
    if len(frames) < len(plan.indices):
        raise MediaError(f"{source.name} is damaged: {len(frames)} of {len(plan.indices)} chosen frames can be decoded.")
    total = plan.last - plan.first + 1
    metadata = {"fps": plan.fps, "total_num_frames": total, "frames_indices": plan.indices.tolist(), "video_backend": "pyav"}
    stated = sampling.fps if sampling.every_frame else None
    return Media(
        "video",
        source.name,
        np.stack(frames),
        sizes,
        stated or len(frames) / total * plan.fps,
        plan.has_audio,
        sized=size_rule is not None,
        metadata=metadata,
    )


@dataclass(frozen=True)
class _Plan:
    """The frames to take from a file: numbers in the order of display, and the file's average rate."""

    indices: np.ndarray
    first: int
    last: int
    fps: float
    has_audio: bool


def _video_stream(container: Any, source: Source) -> Any:
    """The first real video track (cover art is not one).

    Raises:
        MediaError: there is none, or the file is a picture.
    """
    import av

    if container.format.name.endswith("_pipe") or container.format.name == "image2":
        raise MediaError(f"{source.name} is a picture, not a video ({describe(source)}); give it as an image item.")
    for stream in container.streams.video:
        if not stream.disposition & av.stream.Disposition.attached_pic:  # pyright: ignore[reportAttributeAccessIssue]
            return stream
    sound = "; it has sound: give it as an audio item" if container.streams.audio else ""
    raise MediaError(f"{source.name} has no video track{sound}.")


def _plan(source: Source, sampling: SamplingOptions, total: int | None) -> _Plan:
    """Count the packets of the video track (unless `total` is known) and choose frames."""
    with open_container(source, "video") as container:
        stream = _video_stream(container, source)
        has_audio = bool(container.streams.audio)
        declared = stream.frames
        packets = [(packet.pts, packet.is_discard) for packet in container.demux(stream) if packet.size]
        if len(packets) < declared:
            raise MediaError(f"{source.name} is damaged: {len(packets)} of {declared} frames are there.")
        times = [pts for pts, discard in packets if not discard]  # an edit list may leave some out
        total = len(times) if total is None else total
        if not total:
            raise MediaError(f"{source.name} has a video track without frames.")
        fps = _average_fps(stream, declared, times, source.name)
    first, last = frame_range(total, fps, sampling, source.name)
    count = frame_count(last - first + 1, fps, sampling, source.name)
    return _Plan(frame_indices(first, last, count), first, last, fps, has_audio)


def _average_fps(stream: Any, declared_frames: int, times: list[int | None], name: str) -> float:
    """The stream's average rate; from the time stamps where the container only guesses it."""
    known = [time for time in times if time is not None]
    span_s = float((max(known) - min(known)) * stream.time_base) if known else 0.0
    measured = (len(known) - 1) / span_s if span_s > 0 else None
    stated = float(stream.average_rate) if stream.average_rate else None
    if stated and not (declared_frames == 0 and measured and not 0.9 < stated / measured < 1.1):
        return stated
    if measured:
        return measured
    raise MediaError(f"{name} does not say how many frames it shows per second; convert it to MP4 first.")


def _decode(source: Source, plan: _Plan, sizes: SizeOptions, size_rule: SizeRule | None) -> tuple[list[np.ndarray], int]:
    """Chosen frames `[C, H, W]`, as many as could be had, and the number of frames that were decoded on the way."""
    wanted = set(plan.indices.tolist())
    frames: list[np.ndarray] = []
    decoded, size = 0, None
    with open_container(source, "video") as container:
        stream = _video_stream(container, source)
        stream.thread_type = "AUTO"
        for frame in container.decode(stream):
            if decoded in wanted:
                picture = _upright(frame, source.name, frames[0].shape if frames and size is None else None)
                if size_rule is not None and size is None:
                    height, width = picture.shape[1:]
                    size = size_rule(len(wanted), height, width, sizes, source.name)
                frames.append(picture if size is None else resize_frame(picture, *size))
            decoded += 1
            if decoded > plan.indices[-1]:
                break
    return frames, decoded


def _upright(frame: Any, name: str, shape: tuple[int, ...] | None) -> np.ndarray:
    """One decoded frame as `[C, H, W]` uint8, turned as the container's display matrix says."""
    if frame.is_corrupt:
        raise MediaError(f"{name} is damaged: the frame at {frame.time or 0.0:.2f} s cannot be decoded whole.")
    quarters = round(frame.rotation / 90)
    if abs(frame.rotation - 90 * quarters) > 1:
        raise MediaError(f"{name} is to be shown rotated by {frame.rotation:g} degrees; only quarter turns are understood.")
    turned = np.rot90(frame.to_ndarray(format="rgb24"), quarters)  # both count counterclockwise
    picture = turned.transpose(2, 0, 1)
    if shape is not None and picture.shape != shape:
        raise MediaError(
            f"{name} changes its picture size from {shape[2]} x {shape[1]} to {picture.shape[2]} x "
            f"{picture.shape[1]} on the way; convert it to one size first."
        )
    return np.ascontiguousarray(picture)
