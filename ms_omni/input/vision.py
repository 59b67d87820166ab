"""Pictures and frames to the patches that the vision encoder reads."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ms_omni.errors import InputError
from ms_omni.input.media import Media, SizeOptions
from ms_omni.input.settings import VisionSettings
from ms_omni.input.sizes import SizeRule, image_size, resized, video_size


def encode(media: Sequence[Media], settings: VisionSettings) -> tuple[np.ndarray, np.ndarray]:
    """Patches of pictures or of videos, one after the other.

    Returns:
        float32 `[N, C*t*p*p]` in blocks of merge x merge patches, the last frame repeated to fill its time patch, and their
        grids (time, height, width in patches) int64 `[n, 3]`.

    Raises:
        InputError: sides that are no multiples of `settings.factor` while `do_resize` is off.
    """
    media = [
        resized(one, size_rule(settings, one.kind == "image" or not one.budgeted)) if settings.do_resize else one
        for one in media
    ]
    grids = [_grid(one.data, settings, one.name) for one in media]
    ends = np.cumsum([math.prod(grid) for grid in grids])
    patches = _empty_patches(int(ends[-1]), media[0].data.shape[1], settings)
    for one, grid, end in zip(media, grids, ends):
        _write_patches(one.data, settings, patches[end - math.prod(grid) : end].reshape(_blocks(grid, settings)))
    return patches, np.array(grids, np.int64)


def size_rule(settings: VisionSettings, alone: bool = False) -> SizeRule:
    """The target size of the frames of a video file under `settings`; alone: of pictures, and of arrays given ready-made, which are
    only held to the per-frame limits, as in the reference.
    """

    def rule(frames: int, height: int, width: int, options: SizeOptions, name: str) -> tuple[int, int]:
        limits = (settings.factor, settings.min_pixels, settings.max_pixels, options, name)
        return image_size(height, width, *limits) if alone else video_size(frames, height, width, *limits)

    return rule


def _grid(frames: np.ndarray, settings: VisionSettings, name: str) -> tuple[int, int, int]:
    count, _, height, width = frames.shape
    if height % settings.factor or width % settings.factor:
        raise InputError(
            f"{name} is {width} x {height} pixels and do_resize is off; both sides must be multiples of {settings.factor}."
        )
    return -(-count // settings.temporal_patch_size), height // settings.patch_size, width // settings.patch_size


def _empty_patches(count: int, channels: int, settings: VisionSettings) -> np.ndarray:
    return np.empty((count, channels * settings.temporal_patch_size * settings.patch_size**2), np.float32)


def _blocks(grid: tuple[int, int, int], settings: VisionSettings) -> tuple[int, ...]:
    """The axes of patches: `[gt, gh/m, gw/m, m, m, C, t, p, p]`."""
    (gt, gh, gw), p, m = grid, settings.patch_size, settings.merge_size
    return gt, gh // m, gw // m, m, m, -1, settings.temporal_patch_size, p, p


def _write_patches(frames: np.ndarray, settings: VisionSettings, blocks: np.ndarray) -> None:
    """Fill `blocks`, frame by frame: a long video is not held in float32 twice."""
    _, rows, columns, m, _, channels, t, p, _ = blocks.shape
    pixels, done = np.empty(0, np.float32), -1
    for index in range(len(blocks) * t):
        step, place = divmod(index, t)
        if min(index, len(frames) - 1) != done:
            done = min(index, len(frames) - 1)
            pixels = normalise(frames[done], settings).reshape(channels, rows, m, p, columns, m, p)
        blocks[step, ..., place, :, :] = pixels.transpose(1, 4, 2, 5, 0, 3, 6)


def normalise(frame: np.ndarray, settings: VisionSettings) -> np.ndarray:
    """Rescale, subtract the mean and divide by the std in one step, in float32: `[C, H, W]`."""
    pixels = frame.astype(np.float32)
    if settings.do_normalize:
        scale = 1.0 / settings.rescale_factor if settings.do_rescale else 1.0
        mean = np.array(settings.image_mean, np.float32) * np.float32(scale)
        std = np.array(settings.image_std, np.float32) * np.float32(scale)
        pixels -= mean[:, None, None]
        pixels /= std[:, None, None]
    elif settings.do_rescale:
        pixels *= np.float32(settings.rescale_factor)
    return pixels
