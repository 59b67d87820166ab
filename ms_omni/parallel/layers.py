"""Layers that know of ranks: what a plan makes of the layers of a loaded model.

A plan changes the class of a cell and nothing else of it: parts, parameters and their names stay.
"""

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from mindspore import Tensor, nn

from ..modeling import ops
from ..modeling.audio_encoder import audio_token_count
from ..modeling.forward import check_arguments
from ..modeling.layers import consecutive
from ..modeling.moe import SparseMoeBlock
from ..modeling.packing import finite
from ..outputs import VisionOutput
from .collectives import Collectives
from .vocabulary import SplitVocabulary

if TYPE_CHECKING:
    Mixin = Any
else:
    Mixin = object
"""What the classes here are put in front of has the attributes that they use."""


def become(cell: nn.Cell, part: type, **state: Any) -> None:
    """Puts the class `part` in front of a cell's own, and its attributes into the cell."""
    object.__setattr__(cell, "__class__", _joined(part, type(cell)))
    vars(cell).update(state)


@cache
def _joined(part: type, kind: type) -> type:
    return type(part.__name__ + kind.__name__, (part, kind), {})


class Split(Mixin):
    """A `Linear` of which each rank makes `size` outputs."""

    in_place = False  # its outputs are nobody's whole


class SplitHead(Split):
    """A head of which each rank has some of the vocabulary. vocabulary: `SplitVocabulary`."""

    def whole(self, logits: Tensor) -> Tensor:
        return self.vocabulary.collect(logits)


class Some(Mixin):
    """`Experts` of which each rank has some, those from number `first` on; the others add nothing."""

    in_place = False


class ByRow(Mixin):
    """An `Embedding` of which each rank has some rows, those from number `first` on: a lookup sends the rows that are asked for.

    Each rank looks up the ids of its own rows and a sum brings them together; the others add zeros, so the rows are exactly those
    of the table.
    """

    in_place = False

    def construct(self, ids: Tensor) -> Tensor:
        return ops.embedding(*self.rows(ids))

    def rows(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        own = self.quantised("weight") if self.coded else self.weight
        rows = ops.embedding_part(ids.reshape(-1), own, self.first, self.dtype)  # [N, D]
        return consecutive(ids), self.all_reduce(rows)


def split_thinker(model: nn.Cell, slices: dict[str, Any], comm: Collectives) -> SplitVocabulary | None:
    """The plan "ep" for this rank; returns its `SplitVocabulary`, or None where the head is whole.

    slices: `{full name: Slice}` of this rank.
    """
    thinker = getattr(model, "thinker", model)
    if not hasattr(thinker, "audio_tower"):
        return None  # a talker or vocoder alone: nothing is split
    for index, layer in enumerate(thinker.model.layers):
        attention, stem = layer.self_attn, f"thinker.model.layers.{index}."
        if not slices[stem + "self_attn.o_proj.weight"].is_whole:
            attention.reduce = comm.reducer()
            for name in ("q_proj", "k_proj", "v_proj"):
                become(getattr(attention, name), Split, size=slices[f"{stem}self_attn.{name}.weight"].length)
        if isinstance(layer.mlp, SparseMoeBlock):
            layer.mlp.reduce = comm.reducer()
            become(layer.mlp.experts, Some, first=slices[stem + "mlp.experts.down"].start)
    become(thinker.visual, SharedVision, comm=comm)
    become(thinker.audio_tower, SharedAudio, comm=comm)
    head = slices.get("thinker.lm_head.weight")
    if head is None:
        return None
    vocabulary = SplitVocabulary(comm, [head.shape[0] * rank // comm.size for rank in range(comm.size + 1)])
    become(thinker.lm_head, SplitHead, size=head.length, vocabulary=vocabulary)
    return vocabulary


def shares(costs: Any, ranks: int) -> list[int]:
    """Where each rank's neighbouring share of units with these costs begins and ends: `ranks + 1` indices."""
    middle = np.cumsum(costs) - np.asarray(costs) / 2
    return np.searchsorted(middle, np.sum(costs) * np.arange(1, ranks) / ranks).tolist()


class _Shared(Mixin):
    """Base of both, to be put in front of an encoder (`layers.become`). comm: `Collectives`."""

    def _gather(self, rows: Tensor | None, counts: list[int], width: int, dtype: Any) -> Tensor:
        """rows `[counts[rank], width]` of each rank (None where it has none) -> `[sum(counts), width]`."""
        most, mine = max(counts), counts[self.comm.rank]
        parts = [] if rows is None else [rows]
        if mine < most:
            parts.append(Tensor(np.zeros((most - mine, width), np.float32)).astype(dtype))
        everything = self.comm.all_gather(parts[0] if len(parts) == 1 else ops.concat(parts, 0))
        return ops.concat([everything[rank * most : rank * most + n] for rank, n in enumerate(counts) if n], 0)


class SharedVision(_Shared):
    """A `VisionEncoder` that shares pictures and video frames."""

    def construct(
        self,
        hidden_states: Any,
        grid_thw: Any,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> VisionOutput:
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


class SharedAudio(_Shared):
    """An `AudioEncoder` that shares the attention windows of all clips."""

    def encode(self, chunks: Any, rows: Any, segments: Any, states: Any = None) -> Any:
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
