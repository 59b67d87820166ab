"""Positions of tokens on the host: (time, height, width) in a multimodal prompt, and their rotary tables.

The positions follow from the tokens themselves, so that any mix of media in a prompt is counted right:

    text          one step per token on all three axes
    audio         one step per token (13 tokens per second of sound)
    image         time stands still, height and width count grid cells
    video         time advances by seconds per grid * positions per second, possibly a fraction
    audio in video  both start together; each token keeps the positions of its own medium

Everything is float32 with the reference's order of operations, so that fractional times agree to the last bit.
Reference: transformers 5.x, `Qwen3OmniMoePreTrainedModelForConditionalGeneration.get_rope_index`.

A rotary table is a pair (cos, sin) of angles for half the head dimension (Su et al. 2021, "RoFormer"); `ops.rotary` rotates the pairs
(i, i + D/2). Positions are float32 because video times may be fractional.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from mindspore import Tensor

from ..errors import InputError
from .packing import finite, valid_tokens


def get_rope_index(
    config: Any,
    spatial_merge_size: int,
    input_ids: np.ndarray,
    attention_mask: Any = None,
    image_grid_thw: Any = None,
    video_grid_thw: Any = None,
    second_per_grids: Any = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Positions float32 `[3, B, T]` and deltas float32 `[B, 1]`.

    The delta of a row is its next position minus its number of tokens: a generated token n (counting unpadded tokens
    from 0) has position n + delta. config needs the token ids and `position_id_per_seconds`; grids are int `[n, 3]`
    in patches; second_per_grids float `[n_videos]` in s, one per row of `video_grid_thw`. Padding gets position 1.
    Raises `InputError` when placeholders and grids disagree.
    """
    valid = valid_tokens(input_ids.shape, attention_mask)
    walker = _Walker(config, spatial_merge_size, image_grid_thw, video_grid_thw, second_per_grids)
    positions = np.ones((3, *input_ids.shape), np.float32)
    deltas = np.zeros((len(input_ids), 1), np.float32)
    for row, (ids, mask) in enumerate(zip(np.asarray(input_ids), valid)):
        ids = ids[mask]
        if not len(ids):
            raise InputError(f"row {row} of the batch holds only padding; give every conversation at least one token")
        own = walker.walk(ids)
        positions[:, row, mask] = own
        deltas[row] = own.max() + np.float32(1) - np.float32(len(ids))
    walker.finish()
    return positions, deltas


def media_runs(ids: np.ndarray, config: Any) -> list[tuple[str, int, int]]:
    """The runs of placeholders in one row of ids `[n]`: a list of (kind, start, stop).

    kind: "audio", "image", "video" or "audio_in_video". Raises `InputError` for media that are not separated by their
    start and end tokens.
    """
    kinds = {
        frozenset([config.audio_token_id]): "audio",
        frozenset([config.image_token_id]): "image",
        frozenset([config.video_token_id]): "video",
        frozenset([config.video_token_id, config.audio_token_id]): "audio_in_video",
    }
    is_media = np.isin(ids, (config.audio_token_id, config.image_token_id, config.video_token_id)).astype(np.int8)
    edges = np.flatnonzero(np.diff(is_media, prepend=0, append=0))
    runs = []
    for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist()):
        kind = kinds.get(frozenset(ids[start:stop].tolist()))
        if kind is None:
            raise InputError(
                "image placeholders stand directly beside audio or video placeholders; wrap each medium in "
                "its start and end tokens"
            )
        runs.append((kind, start, stop))
    return runs


class _Walker:
    """Walks over the rows of a batch and takes images and videos in order."""

    def __init__(self, config, merge, image_grids, video_grids, second_per_grids):
        self.config = config
        self.merge = merge
        self.image_grids = np.zeros((0, 3), np.int64) if image_grids is None else np.asarray(image_grids)
        self.video_grids = np.zeros((0, 3), np.int64) if video_grids is None else np.asarray(video_grids)
        self.seconds = self._seconds(second_per_grids)
        self.images = self.videos = 0

    def _seconds(self, second_per_grids):
        count = len(self.video_grids)
        if second_per_grids is None:
            if count:
                raise InputError(
                    f"got {count} videos but no video_second_per_grid; pass the seconds that one temporal grid step "
                    "covers, one number per video (the processor returns them)"
                )
            return np.zeros(0, np.float32)
        seconds = finite(second_per_grids, "video_second_per_grid").reshape(-1)
        if len(seconds) != count:
            raise InputError(f"got {len(seconds)} values of video_second_per_grid for {count} videos; pass one per video")
        if not (seconds > 0).all():
            raise InputError(f"video_second_per_grid is {seconds.tolist()}, expected seconds above 0")
        return seconds

    def walk(self, ids):
        """Positions `[3, n]` of one row without its padding."""
        parts, text_from, following = [], 0, np.float32(0)
        for kind, start, stop in media_runs(ids, self.config):
            parts.append(_line(start - text_from, following))
            block, last = self._block(kind, ids[start:stop], following + np.float32(start - text_from))
            parts.append(block)
            following, text_from = last + np.float32(1), stop
        parts.append(_line(len(ids) - text_from, following))
        return np.concatenate(parts, axis=1)

    def _block(self, kind, ids, start):
        """Positions `[3, n]` of one run of placeholders, and the largest that the following text counts from."""
        if kind == "audio_in_video":
            return self._audio_in_video(ids, start)
        makers = {"audio": _line, "image": self._image, "video": self._video}
        block = makers[kind](len(ids), start)
        return block, block.max()

    def _image(self, tokens, start):
        if self.images >= len(self.image_grids):
            raise InputError(f"the prompt shows more images than the {len(self.image_grids)} rows of image_grid_thw")
        grid = self.image_grids[self.images]
        self.images += 1
        times = np.arange(grid[0]).astype(np.float32) * np.float32(self.config.position_id_per_seconds)
        return self._grid("image", self.images, grid, times, tokens, start)

    def _video(self, tokens, start):
        if self.videos >= len(self.video_grids):
            raise InputError(f"the prompt shows more videos than the {len(self.video_grids)} rows of video_grid_thw")
        grid, seconds = self.video_grids[self.videos], self.seconds[self.videos]
        self.videos += 1
        times = np.arange(grid[0]).astype(np.float32) * seconds * np.float32(self.config.position_id_per_seconds)
        return self._grid("video", self.videos, grid, times, tokens, start)

    def _grid(self, kind, number, grid, times, tokens, start):
        rows, columns = grid[1] // self.merge, grid[2] // self.merge
        if len(times) * rows * columns != tokens:
            raise InputError(
                f"{kind} {number} has a grid of {grid.tolist()} patches, which makes {len(times) * rows * columns} "
                f"tokens, but the prompt has {tokens} placeholders for it"
            )
        t, h, w = np.meshgrid(times, np.arange(rows), np.arange(columns), indexing="ij")
        return np.stack([t, h, w]).reshape(3, -1).astype(np.float32) + start

    def _audio_in_video(self, ids, start):
        is_video = ids == self.config.video_token_id
        block = np.empty((3, len(ids)), np.float32)
        block[:, is_video] = self._video(int(is_video.sum()), start)
        block[:, ~is_video] = _line(int((~is_video).sum()), start)
        # The text goes on from the medium that outlasts the other, as in the reference.
        changes = np.flatnonzero(is_video != is_video[-1])
        return block, block[:, changes[-1] + 1 :].max()

    def finish(self):
        for kind, used, grids in (("image", self.images, self.image_grids), ("video", self.videos, self.video_grids)):
            if used != len(grids):
                raise InputError(f"{kind}_grid_thw has {len(grids)} rows but the prompt shows {used} {kind}s")


def _line(count, start):
    """`count` equal steps from `start` on all three axes, `[3, count]`."""
    return np.tile(np.arange(count).astype(np.float32) + start, (3, 1))


def inverse_frequencies(theta: float, dim: int) -> np.ndarray:
    """`theta ** (-2 i / dim)` for i in `[0, dim / 2)` -> float32 `[dim / 2]`."""
    exponents = np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim)
    return (np.float32(1.0) / np.power(np.float32(theta), exponents)).astype(np.float32)


def rope_tables(positions: np.ndarray, inv_freq: np.ndarray) -> tuple[Tensor, Tensor]:
    """One position per token: positions `[B, T]` -> cos, sin tensors `[B, T, D/2]`."""
    return tuple(Tensor(table) for table in rope_angles(positions, inv_freq))


def rope_angles(positions: np.ndarray, inv_freq: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same on the host: cos, sin float32 `[..., D/2]` for positions `[...]`."""
    angles = np.asarray(positions, np.float32)[..., None] * inv_freq
    return np.cos(angles), np.sin(angles)


def mrope_tables(positions: np.ndarray, inv_freq: np.ndarray, section: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Time, height and width positions `[3, B, T]` -> cos, sin tensors `[B, T, D/2]`.

    The three axes are interleaved over the frequencies (t, h, w, t, h, w, ...); `section` says how many frequencies
    belong to each, and those left over belong to time (Qwen3-VL report, "interleaved MRoPE").
    """
    angles = np.asarray(positions, np.float32)[..., None] * inv_freq  # [3, B, T, D/2]
    merged = angles[0].copy()
    for axis in (1, 2):
        columns = slice(axis, 3 * section[axis], 3)
        merged[..., columns] = angles[axis][..., columns]
    return _tables(merged)


def axial_tables(rows: np.ndarray, columns: np.ndarray, inv_freq: np.ndarray) -> tuple[Tensor, Tensor]:
    """Two-dimensional positions `[N]` each; the first half of the frequencies is for the row, the second for the
    column -> cos, sin tensors `[N, 2 * len(inv_freq)]`.
    """
    parts = [np.asarray(axis, np.float32)[:, None] * inv_freq for axis in (rows, columns)]
    return _tables(np.concatenate(parts, axis=-1))


def _tables(angles):
    return Tensor.from_numpy(np.cos(angles)), Tensor.from_numpy(np.sin(angles))


def stream_rope_tables(start: int, new: int, batch: int, inv_freq: np.ndarray) -> tuple[Tensor, Tensor]:
    """cos, sin tensors `[B, new, D/2]` of the positions from `start` on.

    The angle is a float64 product: in float32 it would be 0.002 off after an hour of speech (45,000 frames).
    """
    angles = np.arange(start, start + new, dtype=np.float64)[:, None] * inv_freq.astype(np.float64)
    tables = (np.repeat(table.astype(np.float32)[None], batch, 0) for table in (np.cos(angles), np.sin(angles)))
    return tuple(Tensor(table) for table in tables)
