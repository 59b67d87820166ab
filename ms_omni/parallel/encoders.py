"""Sharing the work of the encoders: each rank encodes some of the frames or windows, and all get all features.

The weights are on every rank. Pictures and video frames do not look at one another, nor do the windows of a sound, so
each rank takes neighbouring ones, about equally much; one gather per call puts the features together.
"""

import numpy as np
from mindspore import Tensor

from ..modeling import ops
from ..modeling.audio_encoder import audio_token_count
from ..modeling.packing import host_array


def shares(costs, ranks):
    """Where each rank's neighbouring share of units with these costs begins and ends: `ranks + 1` indices."""
    middle = np.cumsum(costs) - np.asarray(costs) / 2
    return np.searchsorted(middle, np.sum(costs) * np.arange(1, ranks) / ranks).tolist()


class SharedWork:
    """Base of both: `gather` puts rows of all ranks together."""

    def __init__(self, tower, comm):
        self.tower = tower
        self.comm = comm

    def gather(self, rows, counts, width, dtype):
        """rows `[counts[rank], width]` of each rank (None where it has none) -> `[sum(counts), width]`."""
        most, mine = max(counts), counts[self.comm.rank]
        parts = [] if rows is None else [rows]
        if mine < most:
            parts.append(Tensor(np.zeros((most - mine, width), np.float32)).astype(dtype))
        everything = self.comm.all_gather(parts[0] if len(parts) == 1 else ops.concat(parts, 0))
        return ops.concat([everything[rank * most : rank * most + n] for rank, n in enumerate(counts) if n], 0)


class SharedVision(SharedWork):
    """In place of `Thinker.see`: shares pictures and video frames."""

    def __call__(self, pixels, grid_thw):
        tower, ranks, rank = self.tower, self.comm.size, self.comm.rank
        grids = tower.check_grids(grid_thw, pixels.shape[0])
        frames = np.repeat(grids, grids[:, 0], axis=0)
        frames[:, 0] = 1
        if len(frames) == 1:
            return tower(pixels, grid_thw)
        patches = frames.prod(axis=1)
        bounds = [0, *shares(patches, ranks), len(frames)]
        starts = np.concatenate([[0], np.cumsum(patches)])[bounds]
        merged = tower.spatial_merge_size**2
        counts = (np.diff(starts) // merged).tolist()
        config = tower.config
        taps, rows = 1 + len(config.deepstack_visual_indexes), None
        if counts[rank]:
            own = slice(bounds[rank], bounds[rank + 1])
            features, deepstack = tower(pixels[starts[rank] : starts[rank + 1]], frames[own])
            rows = ops.concat((features, *deepstack), 1) if deepstack else features
        width = config.out_hidden_size
        rows = self.gather(rows, counts, taps * width, tower.merger.ln_q.weight.dtype)
        parts = [rows[:, tap * width : (tap + 1) * width] for tap in range(taps)]
        return parts[0], parts[1:]


class SharedHearing(SharedWork):
    """In place of `Thinker.hear`: shares the attention windows of all clips."""

    def __call__(self, features, lengths):
        tower, ranks, rank = self.tower, self.comm.size, self.comm.rank
        chunks, rows, segments = tower.pack(host_array(features), host_array(lengths))
        tokens = [length for length, count in segments for _ in range(count)]  # of each window
        if len(tokens) == 1:
            return tower.encode(Tensor(chunks), Tensor(rows), segments)
        per_chunk = audio_token_count(chunks.shape[-1], tower.config.n_window)
        bounds = [0, *shares(tokens, ranks), len(tokens)]
        starts = np.concatenate([[0], np.cumsum(tokens)])[bounds]
        counts = np.diff(starts).tolist()
        encoded = None
        if counts[rank]:
            own = rows[starts[rank] : starts[rank + 1]]
            first, last = own[0] // per_chunk, own[-1] // per_chunk + 1
            windows = tuple((length, 1) for length in tokens[bounds[rank] : bounds[rank + 1]])
            encoded = tower.encode(Tensor(chunks[first:last]), Tensor(own - first * per_chunk), windows)
        return self.gather(encoded, counts, tower.config.output_dim, tower.ln_post.weight.dtype)
