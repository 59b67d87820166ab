"""Pictures and frames to the patches that the vision encoder reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from ms_omni.errors import InputError
from ms_omni.media.image import load_image
from ms_omni.media.options import SizeOptions
from ms_omni.media.sizes import image_size, resize_frame, video_size
from ms_omni.media.sources import to_array
from ms_omni.media.video import VideoClip, VideoFrames, frames_from_array, load_video, resize_clip
from ms_omni.processing.settings import VisionSettings


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
        pixels = _picture_pixels(image, name)
        if settings.do_resize:
            size = image_size(*pixels.shape[1:], settings.factor, settings.min_pixels, settings.max_pixels, options, name)
            pixels = pixels if pixels.shape[1:] == size else resize_frame(pixels, *size)
        _check_multiple(pixels.shape[1:], settings, name)
        picture_patches, grid = patchify(pixels[None], settings)
        patches.append(picture_patches)
        grids.append(grid)
    return np.concatenate(patches), np.array(grids, np.int64)


def _has_options(image: Any) -> bool:
    return isinstance(image, tuple) and len(image) == 2 and isinstance(image[1], SizeOptions)


def _picture_pixels(image: Any, name: str) -> np.ndarray:
    """`[3, H, W]`: uint8, or float32 if an array of floats was given."""
    array = to_array(image)
    if array is not None and array.dtype.kind == "f" and array.ndim == 3 and (3 in (array.shape[0], array.shape[2])):
        return frames_from_array(array[None], name)[0]
    return np.ascontiguousarray(np.asarray(load_image(image, name)).transpose(2, 0, 1))


def _check_multiple(size: tuple[int, ...], settings: VisionSettings, name: str) -> None:
    if size[0] % settings.factor or size[1] % settings.factor:
        raise InputError(
            f"{name} is {size[1]} x {size[0]} pixels and do_resize is off; both sides must be multiples "
            f"of {settings.factor}."
        )


def as_clips(videos: Sequence[Any], fps: Sequence[float | None]) -> list[VideoClip]:
    """Clips from what a caller may pass as videos, with the frames per second that hold.

    Args:
        videos: `VideoClip`, `VideoFrames`, arrays or tensors `[T, C, H, W]` or `[T, H, W, C]`, lists of frames, files,
            or pairs of one of these and qwen_omni_utils' metadata.
        fps: for each video what the caller said; it wins over what the clip remembers.
    """
    return [_as_clip(video, rate, f"video {index}") for index, (video, rate) in enumerate(zip(videos, fps))]


def _as_clip(video: Any, fps: float | None, name: str) -> VideoClip:
    if isinstance(video, tuple) and len(video) == 2 and isinstance(video[1], dict):
        video, metadata = video
        fps = _metadata_fps(video, metadata) if fps is None else fps
    if isinstance(video, VideoFrames) and video.clip is not None:
        video = video.clip
    if isinstance(video, VideoClip):
        return video if fps is None else replace(video, sample_fps=fps)
    array = to_array(video)
    if array is not None:
        return VideoClip(frames_from_array(array, name), fps, None, name, budgeted=False)
    clip = load_video(video, sample_fps=fps, name=name)
    if isinstance(video, (list, tuple)):
        return replace(clip, sample_fps=fps, budgeted=False)
    return clip if fps is None else replace(clip, sample_fps=fps)


def _metadata_fps(video: Any, metadata: dict[str, Any]) -> float | None:
    """Frames per second of the frames taken, from those of the file."""
    if isinstance(video, VideoFrames) and video.sample_fps is not None:
        return video.sample_fps
    array = to_array(video)
    count, total, fps = len(video if array is None else array), metadata.get("total_num_frames"), metadata.get("fps")
    return float(count / total * fps) if total and fps else None


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
    """One picture, a list of them, or a list of such lists, as a flat list."""
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
    if isinstance(videos, tuple) and len(videos) == 2 and isinstance(videos[1], dict):
        return [videos]
    if all(_is_frame(item) for item in videos):
        return [list(videos)]
    flat: list[Any] = []
    for item in videos:
        whole = isinstance(item, list) and item and all(_is_frame(frame) for frame in item)
        nested = isinstance(item, (list, tuple)) and not whole and not (len(item) == 2 and isinstance(item[1], dict))
        flat += as_video_list(item) if nested else [item]
    return flat


def _is_frame(value: Any) -> bool:
    array = to_array(value)
    return isinstance(value, Image.Image) or (array is not None and array.ndim in (2, 3))
