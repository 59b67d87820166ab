"""Sharing the work of the encoders: each rank encodes some of the frames or windows, and all get all features.

The weights are on every rank. Pictures and video frames do not look at one another, nor do the windows of a sound, so
each rank takes neighbouring ones, about equally much; one gather per call puts the features together.
"""

import numpy as np
from mindspore import Tensor

from ..modeling import ops
from ..modeling.audio_encoder import audio_token_count
from ..modeling.forward import check_arguments
from ..modeling.packing import finite
from ..outputs import VisionOutput


def shares(costs, ranks):
    """Where each rank's neighbouring share of units with these costs begins and ends: `ranks + 1` indices."""
    middle = np.cumsum(costs) - np.asarray(costs) / 2
    return np.searchsorted(middle, np.sum(costs) * np.arange(1, ranks) / ranks).tolist()


class _Shared:
    """Base of both, to be put in front of an encoder (`layers.become`). comm: `Collectives`."""

    def _gather(self, rows, counts, width, dtype):
        """rows `[counts[rank], width]` of each rank (None where it has none) -> `[sum(counts), width]`."""
        most, mine = max(counts), counts[self.comm.rank]
        parts = [] if rows is None else [rows]
        if mine < most:
            parts.append(Tensor(np.zeros((most - mine, width), np.float32)).astype(dtype))
        everything = self.comm.all_gather(parts[0] if len(parts) == 1 else ops.concat(parts, 0))
        return ops.concat([everything[rank * most : rank * most + n] for rank, n in enumerate(counts) if n], 0)


class SharedVision(_Shared):
    """A `VisionEncoder` that shares pictures and video frames."""

    def construct(self, hidden_states, grid_thw, output_hidden_states=None, output_attentions=None, return_dict=None):
        encode, ranks, rank = super().construct, self.comm.size, self.comm.rank
        grids = self.check_grids(grid_thw, hidden_states.shape[0])
        frames = np.repeat(grids, grids[:, 0], axis=0)
        frames[:, 0] = 1
        if len(frames) == 1 or output_hidden_states:
            return encode(hidden_states, grid_thw, output_hidden_states, output_attentions)
        check_arguments(output_attentions)
        pixels = finite(hidden_states, "pixel values", ("patches", self.patch_embed.width))  # or all ranks fail
        patches = frames.prod(axis=1)
        bounds = [0, *shares(patches, ranks), len(frames)]
        starts = np.concatenate([[0], np.cumsum(patches)])[bounds]
        merged = self.spatial_merge_size**2
        counts = (np.diff(starts) // merged).tolist()
        taps, width, rows = 1 + len(self.config.deepstack_visual_indexes), self.config.out_hidden_size, None
        if counts[rank]:
            own = slice(bounds[rank], bounds[rank + 1])
            features, deepstack = encode(pixels[starts[rank] : starts[rank + 1]], frames[own])
            rows = ops.concat((features, *deepstack), 1) if deepstack else features
        rows = self._gather(rows, counts, taps * width, self.merger.ln_q.dtype)
        parts = [rows[:, tap * width : (tap + 1) * width] for tap in range(taps)]
        return VisionOutput(parts[0], parts[1:])


class SharedHearing(_Shared):
    """An `AudioEncoder` that shares the attention windows of all clips."""

    def encode(self, chunks, rows, segments, states=None):
        encode, ranks, rank = super().encode, self.comm.size, self.comm.rank
        tokens = [length for length, count in segments for _ in range(count)]  # of each window
        if len(tokens) == 1 or states is not None:
            return encode(chunks, rows, segments, states)
        per_chunk = audio_token_count(chunks.shape[-1], self.config.n_window)
        bounds = [0, *shares(tokens, ranks), len(tokens)]
        starts = np.concatenate([[0], np.cumsum(tokens)])[bounds]
        counts = np.diff(starts).tolist()
        encoded = None
        if counts[rank]:
            own = rows[starts[rank] : starts[rank + 1]]
            first, last = own[0] // per_chunk, own[-1] // per_chunk + 1
            windows = tuple((length, 1) for length in tokens[bounds[rank] : bounds[rank + 1]])
            encoded = encode(chunks[first:last], own - first * per_chunk, windows)
        return self._gather(encoded, counts, self.config.output_dim, self.ln_post.dtype)
