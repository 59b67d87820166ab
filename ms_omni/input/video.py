"""Video files and lists of frames to sampled RGB frames.

A file is read twice: for the times of all frames, then for the chosen frames alone.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, BinaryIO, cast

import numpy as np
from PIL import Image

from ms_omni.arrays import to_array
from ms_omni.errors import MediaError, caller_level
from ms_omni.input.access import policy_in_force
from ms_omni.input.container import Track, open_track
from ms_omni.input.image import SizeRule, default_video_size, resize_frame, resized, to_bytes, to_rgb
from ms_omni.input.integrity import check_whole, size_bytes
from ms_omni.input.media import ItemOptions, Media, SamplingOptions, SizeOptions, limits
from ms_omni.input.sampling import FRAME_FACTOR, Choice, choose_frames, frame_metadata
from ms_omni.input.sources import ACCEPTED, DICT_ACCEPTED

VIDEO_ACCEPTED = (
    f"{ACCEPTED}, a list of frames (pictures), an array [T, H, W, C] or [T, C, H, W], or a dict with {DICT_ACCEPTED}"
)
DEFAULT_LIST_FPS = 2.0  # of a list of frames without a rate, as qwen_omni_utils assumes
_SAME_S = 1e-3  # timestamps are rounded
_LARGE_BYTES = 1 << 29  # of chosen frames in their own size
_DECODER_BYTES = 1 << 28  # for the frames that the threads of a decoder work on
_STRETCH = 10  # largest ratio of a pixel's sides


@dataclass(frozen=True)
class _Timeline:
    """What is known of a video before its frames are chosen.

    Attributes:
        times_s: float64 `[total]`, seconds since the first frame, in the order of display.
        end_s: when the last frame vanishes.
        stated_fps: the container's average rate.
        decoded: the times are those of decoded frames, not of packets.
        missing: how many frames fewer than the container counts; some count dropped ones.
    """

    times_s: np.ndarray
    end_s: float
    stated_fps: float | None
    has_audio: bool
    decoded: bool = False
    missing: int = 0


def decode_video(value: Any, name: str, options: ItemOptions = ItemOptions(), size_rule: SizeRule | None = None) -> Media:
    """A clip of an open video file, or of frames that came as an array or as a list of RGB pictures; see `load.load_video`.

    Raises:
        MediaError: not a video, without frames, cut short, damaged, too large, or too short for the sampling options.
    """
    if isinstance(value, io.IOBase):
        return _decode_file(cast("BinaryIO", value), name, options.sampling, options.sizes, size_rule)
    array = to_array(value)
    if array is None and not isinstance(value, (list, tuple)):
        raise MediaError(f"{name} is a {type(value).__name__}; give {VIDEO_ACCEPTED}.")
    frames = _stacked(value, name) if array is None else frames_from_array(array, name)
    if len(frames) % FRAME_FACTOR:
        frames = np.concatenate([frames, frames[-1:]])
    fps, count = options.list_fps or DEFAULT_LIST_FPS, len(frames)
    clip = Media("video", name, frames, options.sizes, fps, metadata=frame_metadata(fps, count, range(count)))
    return clip if size_rule is None else resized(clip, size_rule)


def _decode_file(
    file: BinaryIO, name: str, sampling: SamplingOptions, sizes: SizeOptions, size_rule: SizeRule | None
) -> Media:
    if check_whole(file, name)[8:] == b"WEBP":
        return _decode_animation(file, name, sampling, sizes, size_rule)
    for survey in (_survey_packets, _survey_frames):
        timeline = survey(file, name)
        if timeline is None:
            continue
        choice = choose_frames(timeline.times_s, timeline.end_s, timeline.stated_fps, sampling, name)
        frames = _Canvas(len(choice.indices), sizes, size_rule, name)
        if _decode(file, timeline, choice, frames):
            break
    else:
        raise MediaError(f"{name} is damaged: it yields other frames each time it is decoded.")
    return _clip(timeline, choice, frames)


def _decode_animation(
    file: BinaryIO, name: str, sampling: SamplingOptions, sizes: SizeOptions, size_rule: SizeRule | None
) -> Media:
    """An animated WebP, which FFmpeg's libraries do not read."""
    try:
        image = Image.open(file)
        _checked_pixels(image.width, image.height, name)
        lengths_s = []
        for index in range(getattr(image, "n_frames", 1)):
            image.seek(index)
            image.load()
            lengths_s.append(image.info.get("duration", 0) / 1000)
        if len(lengths_s) < FRAME_FACTOR:
            raise MediaError(f"{name} is a picture, not a video; give it as an image item.")
        ends_s = np.cumsum(lengths_s)
        timeline = _Timeline(ends_s - lengths_s, float(ends_s[-1]), None, False)
        choice = choose_frames(timeline.times_s, timeline.end_s, None, sampling, name)
        frames = _Canvas(len(choice.indices), sizes, size_rule, name)
        for position, index in enumerate(choice.indices.tolist()):
            image.seek(index)
            picture = np.asarray(to_rgb(image, name)).transpose(2, 0, 1)
            frames.put(position, position + 1, picture, (image.height, image.width))
    except MediaError:
        raise
    except Exception as error:  # Pillow's plugins raise many kinds on damaged files
        raise MediaError(f"{name} is damaged or cut short: {error}.") from error
    return _clip(timeline, choice, frames)


def _clip(timeline: _Timeline, choice: Choice, frames: _Canvas) -> Media:
    return Media(
        "video",
        frames.name,
        frames.data,
        frames.sizes,
        choice.sample_fps,
        timeline.has_audio,
        sized=frames.size_rule is not None,
        metadata=frame_metadata(choice.fps, choice.total, choice.indices.tolist(), "pyav"),
    )


def _survey_packets(file: BinaryIO, name: str) -> _Timeline | None:
    """The track by its packets; None when they do not tell which frames they hold (fields, missing timestamps)."""
    with open_track(file, name, "video") as track:
        stream, shown, read, count = track.stream, [], 0, 0
        for packet in track.demuxer.demux():
            read += packet.size
            if packet.stream_index != stream.index or not packet.size:  # an empty packet stands for a dropped frame
                continue
            count += 1
            if packet.is_discard:  # left out by an edit list
                continue
            if packet.pts is None:
                return None
            length_s = float((packet.duration or 0) * packet.time_base)
            decoded_s = float((packet.pts if packet.dts is None else packet.dts) * packet.time_base)  # these never fall
            shift_s = track.time_s(decoded_s, length_s) - decoded_s
            shown.append((float(packet.pts * packet.time_base) + shift_s, length_s))
        if "mov" in track.format and count < stream.frames:
            raise MediaError(f"{name} is damaged: {count} of {stream.frames} frames are there.")
        timeline = _timeline(track, [time_s for time_s, _ in shown], max(shown, default=(0, 0.0))[1])
        timeline = replace(timeline, missing=max(0, stream.frames - count))
        _check_read(track, timeline, read, count)
    return timeline


def _survey_frames(file: BinaryIO, name: str) -> _Timeline:
    """The track by its decoded frames."""
    with open_track(file, name, "video") as track:
        step_s = _prepare(track)
        times = [_time_s(frame, track, step_s) for frame in track]
        track.check()
        return replace(_timeline(track, times, step_s), decoded=True)


def _timeline(track: Track, times: list[float], last_s: float) -> _Timeline:
    if not times:
        raise MediaError(f"{track.name} has a video track without frames.")
    times_s = np.sort(times) - min(times)  # frames come in the order of display; old containers give them times of decoding
    stated_fps = float(track.stream.average_rate) if track.stream.average_rate else None
    end_s = float(times_s[-1]) + (last_s or (times_s[-1] / (len(times) - 1) if times_s[-1] else 1 / (stated_fps or 1.0)))
    if len(times) > 1 and not times_s[-1]:
        if stated_fps is None:
            raise MediaError(f"{track.name} does not say when its frames are shown; convert it to MP4 first.")
        times_s, end_s = np.arange(len(times)) / stated_fps, len(times) / stated_fps
    return _Timeline(times_s, end_s, stated_fps, track.has_sound)


def _check_read(track: Track, timeline: _Timeline, read_bytes: int, packets: int) -> None:
    """Warn when the file declares far more than was found; raise when most of its bytes were skipped as well."""
    alone_s = 0.0 if timeline.has_audio else (track.demuxer.duration or 0) / 1e6
    stream = track.stream
    declared_s = float(stream.duration * stream.time_base) if stream.duration else alone_s
    short = timeline.end_s < 0.5 * declared_s
    if not short and packets >= 0.5 * declared_s * (timeline.stated_fps or 0):
        return
    header = (1 << 14 if track.format == "avi" else 1 << 11) + 32 * packets
    size = size_bytes(track.file)
    found = f"{packets} frames in {timeline.end_s:.2f} of {declared_s:.2f} s are found"
    if size - header - read_bytes > size / 2:
        raise MediaError(
            f"{track.name} is damaged: {found}, and {size - read_bytes} of its {size} bytes are neither picture nor sound."
        )
    if short:
        warnings.warn(f"{track.name}: {found}.", stacklevel=caller_level())


def _prepare(track: Track) -> float:
    """Let a video track be decoded with as many threads as memory allows; returns the seconds that a frame is usually shown.

    Raises:
        MediaError: frames of more than `limits.frame_pixels`.
    """
    stream = track.stream
    pixels = _checked_pixels(stream.codec_context.width, stream.codec_context.height, track.name)
    stream.thread_type = "SLICE"  # not by frames: those threads report damage too late
    if 2 * pixels > _DECODER_BYTES / 16:
        stream.codec_context.thread_count = max(1, _DECODER_BYTES // (2 * pixels))
    return float(1 / stream.average_rate) if stream.average_rate else 0.0


def _checked_pixels(width: int, height: int, name: str) -> int:
    if width * height > limits.frame_pixels:
        raise MediaError(
            f"{name} has frames of {width} x {height} pixels, and the limit is {limits.frame_pixels} pixels; convert it to a "
            "smaller size, or raise ms_omni.media.limits.frame_pixels."
        )
    return width * height


def _time_s(frame: Any, track: Track, step_s: float) -> float:
    return track.time_s(None if frame.pts is None else float(frame.pts * frame.time_base), step_s)


class _Canvas:
    """The chosen frames `[T, C, H, W]` uint8, in the size of the first, or in that of the rule."""

    def __init__(self, count: int, sizes: SizeOptions, size_rule: SizeRule | None, name: str) -> None:
        self.count, self.sizes, self.size_rule, self.name = count, sizes, size_rule, name
        self.data = np.zeros((0, 3, 0, 0), np.uint8)
        self._first = (0, 0)  # height and width at which the first frame is shown

    def put(self, start: int, stop: int, picture: np.ndarray, shown: tuple[int, int]) -> None:
        """Put the picture `[C, h, w]`, shown with that height and width, at the positions from `start` to `stop`."""
        if not len(self.data):
            self._first, height, width = shown, *shown
            if self.size_rule is not None:
                height, width = self.size_rule(self.count, *shown, self.sizes, self.name)
            elif 3 * height * width * self.count > _LARGE_BYTES:
                height, width = default_video_size(self.count, *shown, self.sizes, self.name)
            policy_in_force().check_decoded(3 * height * width * self.count, self.name)
            self.data = np.zeros((self.count, 3, height, width), np.uint8)
        *_, height, width = self.data.shape
        relative = [side / first for side, first in zip(shown, self._first)]
        inner_height, inner_width = (round(side * part / max(relative)) for side, part in zip((height, width), relative))
        inner_height, inner_width = max(1, inner_height), max(1, inner_width)
        top, left = (height - inner_height) // 2, (width - inner_width) // 2  # black around what has another shape
        target = self.data[start:stop, :, top : top + inner_height, left : left + inner_width]
        target[:] = picture if picture.shape == target.shape[1:] else resize_frame(picture, inner_height, inner_width)


def _decode(file: BinaryIO, timeline: _Timeline, choice: Choice, canvas: _Canvas) -> bool:
    """Fill the canvas with the chosen frames; False when the decoder shows other frames than the track knows of."""
    with open_track(file, canvas.name, "video") as track:
        start_s, step_s, index = None, _prepare(track), -1
        for index, frame in enumerate(track):
            time_s = _time_s(frame, track, step_s)
            start_s = time_s if start_s is None else start_s
            if index >= len(timeline.times_s):
                return False
            if not timeline.decoded and abs(time_s - start_s - timeline.times_s[index]) > _SAME_S:
                return False
            start, stop = (int(np.searchsorted(choice.indices, index, side)) for side in ("left", "right"))
            if stop > start:
                if not track.intact:
                    raise MediaError(f"{canvas.name} is damaged: the frame at {time_s:.2f} s cannot be decoded whole.")
                canvas.put(start, stop, *_shown(frame, track.stream.sample_aspect_ratio, canvas.name))
            if index >= choice.indices[-1]:
                break
        track.check(timeline.missing)
    return index >= choice.indices[-1]


def _shown(frame: Any, aspect: Fraction | None, name: str) -> tuple[np.ndarray, tuple[int, int]]:
    """A decoded frame `[C, h, w]` uint8 in the orientation in which it is shown, and the height and width it is shown with."""
    _checked_pixels(frame.width, frame.height, name)
    height, width = frame.height, frame.width
    if aspect and 1 / _STRETCH <= aspect <= _STRETCH:  # pixels that are not square: one side is stretched, none is shrunk
        height, width = (height, round(width * aspect)) if aspect > 1 else (round(height / aspect), width)
    picture, swapped = _oriented(frame.to_ndarray(format="rgb24"), frame.side_data.get("DISPLAYMATRIX"), name)
    return picture.transpose(2, 0, 1), (width, height) if swapped else (height, width)


def _oriented(picture: np.ndarray, display_matrix: Any, name: str) -> tuple[np.ndarray, bool]:
    """The picture `[h, w, 3]` mirrored and rotated as the matrix says, and whether height and width are swapped.

    The matrix (a b; c d) puts the pixel in column p and row q into column a p + c q and row b p + d q.
    """
    if display_matrix is None:
        return picture, False
    a, b, _, c, d = np.frombuffer(bytes(display_matrix), np.int32)[:5].astype(np.float64)
    straight, crossed = max(abs(a), abs(d)), max(abs(b), abs(c))
    if min(straight, crossed) > 0.02 * max(straight, crossed):
        angle = np.degrees(np.arctan2(b, a))
        raise MediaError(f"{name} is to be shown rotated by {angle:.0f} degrees; only quarter turns are understood.")
    swapped = bool(crossed > straight)
    if swapped:
        picture, columns, rows = picture.transpose(1, 0, 2), c, b
    else:
        columns, rows = a, d
    return picture[:: -1 if rows < 0 else 1, :: -1 if columns < 0 else 1], swapped


def _stacked(pictures: Sequence[Image.Image], name: str) -> np.ndarray:
    """Frames uint8 `[T, C, H, W]` of RGB pictures of one size.

    Raises:
        MediaError: none, or of several sizes.
    """
    if not pictures:
        raise MediaError(f"{name} is an empty list; expected at least one frame.")
    shapes = {picture.size for picture in pictures}
    if len(shapes) > 1:
        found = ", ".join(f"{width} x {height}" for width, height in sorted(shapes, key=lambda size: size[::-1]))
        raise MediaError(f"The frames of {name} differ in size ({found}); they must be alike.")
    return np.stack([np.asarray(picture) for picture in pictures]).transpose(0, 3, 1, 2)


def frames_from_array(array: np.ndarray, name: str, *, rescaled: bool = False) -> np.ndarray:
    """`[T, C, H, W]` RGB from an array of either layout: floats as float32, everything else as uint8.

    Floats stay floats because the reference resizes them without rounding. `rescaled` ones are not in steps of 0..255.

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
