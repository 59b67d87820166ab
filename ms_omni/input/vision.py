"""Pictures and frames to the patches that the vision encoder reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from ms_omni.errors import InputError
from ms_omni.input.arguments import fps_per_video, per_video, sampling_options
from ms_omni.input.image import load_image
from ms_omni.input.options import SizeOptions
from ms_omni.input.sampling import frame_count
from ms_omni.input.settings import VisionSettings
from ms_omni.input.sizes import image_size, resize_frame, video_size
from ms_omni.input.sources import is_source, open_source, to_array
from ms_omni.input.spellings import unwrapped
from ms_omni.input.video import VideoClip, VideoFrames, frames_from_array, load_video, resize_clip


def patchify(frames: np.ndarray, settings: VisionSettings) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Normalise and cut frames into patches.

    Args:
        frames: `[T, C, H, W]`, H and W multiples of `settings.factor`; the last frame is repeated to fill its time
            patch.

    Returns:
        float32 `[gt * gh * gw, C * t * p * p]`, in blocks of merge x merge patches, and the grid `(gt, gh, gw)`.
    """
    t, p, m = settings.temporal_patch_size, settings.patch_size, settings.merge_size
    missing = -len(frames) % t
    pixels = normalise(frames, settings)
    if missing:
        pixels = np.concatenate([pixels, np.repeat(pixels[-1:], missing, axis=0)])
    count, channels, height, width = pixels.shape
    gt, gh, gw = count // t, height // p, width // p
    blocks = pixels.reshape(gt, t, channels, gh // m, m, p, gw // m, m, p)
    ordered = blocks.transpose(0, 3, 6, 4, 7, 2, 1, 5, 8)  # [gt, gh/m, gw/m, m, m, C, t, p, p]
    return ordered.reshape(gt * gh * gw, channels * t * p * p), (gt, gh, gw)


def normalise(frames: np.ndarray, settings: VisionSettings) -> np.ndarray:
    """Rescale, subtract the mean and divide by the std in one step, in float32: `[T, C, H, W]`."""
    pixels = frames.astype(np.float32)
    if settings.do_normalize:
        scale = 1.0 / settings.rescale_factor if settings.do_rescale else 1.0
        mean = np.array(settings.image_mean, np.float32) * np.float32(scale)
        std = np.array(settings.image_std, np.float32) * np.float32(scale)
        pixels -= mean[:, None, None]
        pixels /= std[:, None, None]
    elif settings.do_rescale:
        pixels *= np.float32(settings.rescale_factor)
    return pixels


def encode_images(images: Sequence[Any], settings: VisionSettings) -> tuple[np.ndarray, np.ndarray]:
    """Patches `[N, C*t*p*p]` of all pictures one after the other, and their grids `[n, 3]` int64.

    Args:
        images: whatever `load_image` takes, or pairs of a picture and its `SizeOptions`.
    """
    patches, grids = [], []
    for index, image in enumerate(images):
        name = f"picture {index}"
        image, options = image if _has_options(image) else (image, SizeOptions())
        pixels = _picture_pixels(image, name, rescaled=not settings.do_rescale)
        if settings.do_resize:
            height, width = pixels.shape[1:]
            size = image_size(height, width, settings.factor, settings.min_pixels, settings.max_pixels, options, name)
            pixels = pixels if pixels.shape[1:] == size else resize_frame(pixels, *size)
        _check_multiple(pixels.shape[1:], settings, name)
        picture_patches, grid = patchify(pixels[None], settings)
        patches.append(picture_patches)
        grids.append(grid)
    return np.concatenate(patches), np.array(grids, np.int64)


def _has_options(image: Any) -> bool:
    return isinstance(image, tuple) and len(image) == 2 and isinstance(image[1], SizeOptions)


def _picture_pixels(image: Any, name: str, rescaled: bool) -> np.ndarray:
    """`[3, H, W]`: uint8, or float32 if an array of floats was given."""
    array = to_array(image)
    if array is not None and array.dtype.kind == "f" and array.ndim == 3 and (3 in (array.shape[0], array.shape[2])):
        return frames_from_array(array[None], name, rescaled=rescaled)[0]
    return np.ascontiguousarray(np.asarray(load_image(image, name)).transpose(2, 0, 1))


def _check_multiple(size: tuple[int, ...], settings: VisionSettings, name: str) -> None:
    if size[0] % settings.factor or size[1] % settings.factor:
        raise InputError(
            f"{name} is {size[1]} x {size[0]} pixels and do_resize is off; both sides must be multiples "
            f"of {settings.factor}."
        )


def as_clips(videos: Sequence[Any], options: Mapping[str, Any]) -> list[VideoClip]:
    """Clips from what a caller may pass as videos, with the frames per second that hold.

    Args:
        videos: `VideoClip`, `VideoFrames`, arrays or tensors `[T, C, H, W]` or `[T, H, W, C]`, lists of frames, files,
            or pairs of one of these and its metadata (fps, total_num_frames).
        options: of a file, fps or num_frames says which frames are taken; do_sample_frames=False takes all, understood at
            fps if that is given. Of ready-made frames all are taken and fps is their rate, unless do_sample_frames or
            num_frames is given: then some of them are taken. video_metadata tells the rate that they had in their file.
            fps and video_metadata may be lists, one entry for each video.

    Raises:
        InputError: options that do not fit together, or fewer frames than asked for; MediaError: unreadable videos.
    """
    rates = fps_per_video(options.get("fps"), len(videos))
    stated = options.get("video_metadata")
    if isinstance(stated, (list, tuple)):
        stated = [one for entry in stated for one in (entry if isinstance(entry, (list, tuple)) else [entry])]
    metadata = per_video(stated, len(videos), "video_metadata")
    return [
        _as_clip(video, {**options, "fps": rate, "video_metadata": known}, f"video {index}")
        for index, (video, rate, known) in enumerate(zip(videos, rates, metadata))
    ]


def _as_clip(video: Any, options: Mapping[str, Any], name: str) -> VideoClip:
    if _is_described(video):
        video, known = video
        options = {**options, "video_metadata": options["video_metadata"] or known}
    if isinstance(video, VideoFrames) and video.origin is not None:
        video = video.origin
    video = unwrapped(video, name)
    if is_source(video):
        return load_video(video, sampling_options(options, name), name=name)
    if not isinstance(video, VideoClip):
        array = to_array(video)
        if array is not None:
            frames = frames_from_array(array, name, rescaled=options.get("do_rescale") is False)
            video = VideoClip(frames, None, None, name, budgeted=False)
        else:
            video = replace(load_video(video, name=name), sample_fps=None, budgeted=False)
    return described_clip(video, options)


def described_clip(clip: VideoClip, options: Mapping[str, Any]) -> VideoClip:
    """Ready-made frames with their rate, or some of them: see `as_clips`. The caller's fps wins over what the clip remembers."""
    total, known, fps = len(clip.frames), options.get("video_metadata"), options.get("fps")
    wanted = options.get("nframes") or options.get("num_frames")
    rate = clip.sample_fps if known is None else _metadata_fps(total, known)
    sampled = options.get("do_sample_frames")
    if not (sampled or (sampled is None and wanted)):
        return replace(clip, sample_fps=fps or rate, metadata=clip.metadata or _metadata(fps or rate, total, range(total)))
    if not wanted and not rate:
        raise InputError(
            f"{clip.name}: do_sample_frames is set, but the rate of the frames is not known; pass video_metadata= with fps and "
            "total_num_frames, or num_frames=."
        )
    count = frame_count(total, rate or 1.0, sampling_options(options, clip.name), clip.name)
    indices = (np.arange(count) * (total / count)).astype(np.int64)  # as transformers' sample_frames
    metadata = _metadata(rate, total, indices.tolist())
    return replace(clip, frames=clip.frames[indices], sample_fps=rate and count / total * rate, metadata=metadata)


def _metadata(fps: float | None, total: int, indices: Sequence[int]) -> dict[str, Any]:
    return {"fps": fps, "total_num_frames": total, "frames_indices": list(indices), "video_backend": "frames"}


def _metadata_fps(count: int, metadata: Any) -> float | None:
    """Frames per second of the `count` frames taken, from those of the file: a dict's, or transformers' `VideoMetadata`."""
    known = metadata if isinstance(metadata, Mapping) else vars(metadata)
    total, fps = known.get("total_num_frames"), known.get("fps")
    return float(count / total * fps) if total and fps else None


def opened(videos: Sequence[Any]) -> list[Any]:
    """The videos with files as `Source`, so that an address is not downloaded again for its sound."""
    plain = [unwrapped(video, f"video {index}") for index, video in enumerate(videos)]
    return [open_source(video, "video") if is_source(video) else video for video in plain]


def _is_described(video: Any) -> bool:
    """Whether this is a pair of a video and its metadata."""
    return (
        isinstance(video, tuple)
        and len(video) == 2
        and (isinstance(video[1], dict) or hasattr(video[1], "total_num_frames"))
    )


def encode_clips(clips: Sequence[VideoClip], settings: VisionSettings) -> tuple[np.ndarray, np.ndarray]:
    """Patches `[N, C*t*p*p]` of all videos one after the other, and their grids `[n, 3]` int64."""
    patches, grids = [], []
    for clip in clips:
        if settings.do_resize:
            clip = resize_clip(clip, size_rule(settings) if clip.budgeted else _size_without_budget(settings))
        _check_multiple(clip.frames.shape[2:], settings, clip.name)
        clip_patches, grid = patchify(clip.frames, settings)
        patches.append(clip_patches)
        grids.append(grid)
    return np.concatenate(patches), np.array(grids, np.int64)


def size_rule(settings: VisionSettings) -> Any:
    """The target size of a video's frames under `settings`, as `load_video` wants it."""

    def rule(frames: int, height: int, width: int, options: SizeOptions, name: str) -> tuple[int, int]:
        return video_size(frames, height, width, settings.factor, settings.min_pixels, settings.max_pixels, options, name)

    return rule


def _size_without_budget(settings: VisionSettings) -> Any:
    """Arrays given ready-made are only held to the per-frame limits, as in the reference."""

    def rule(frames: int, height: int, width: int, options: SizeOptions, name: str) -> tuple[int, int]:
        return image_size(height, width, settings.factor, settings.min_pixels, settings.max_pixels, options, name)

    return rule


def as_image_list(images: Any) -> list[Any]:
    """One picture, a list of them, an array of them, or a list of such lists, as a flat list."""
    array = to_array(images)
    if array is not None and array.ndim == 4:
        return list(array)
    if not isinstance(images, (list, tuple)) or _has_options(images):
        return [images]
    return [flat for image in images for flat in as_image_list(image)]


def as_video_list(videos: Any) -> list[Any]:
    """One video, a list of them, or a list (per conversation) of lists of them, as a flat list.

    A list of pictures is one video made of frames; a list of arrays with four axes, of clips or of files is several.
    """
    if not isinstance(videos, (list, tuple)):
        return [videos]
    if not videos:
        return []
    if _is_described(videos):
        return [videos]
    if all(_is_frame(item) for item in videos):
        return [list(videos)]
    flat: list[Any] = []
    for item in videos:
        whole = isinstance(item, list) and item and all(_is_frame(frame) for frame in item)
        nested = isinstance(item, (list, tuple)) and not whole and not _is_described(item)
        flat += as_video_list(item) if nested else [item]
    return flat


def _is_frame(value: Any) -> bool:
    array = to_array(value)
    return isinstance(value, Image.Image) or (array is not None and array.ndim in (2, 3))
