"""Layers that know of ranks: what a plan makes of the layers of a loaded model.

A plan changes the class of a cell and nothing else of it: parts, parameters and their names stay.
"""

from functools import cache
from typing import Any

from mindspore import nn

from ..modeling import ops
from ..modeling.layers import in_order
from ..modeling.moe import SparseMoeBlock
from .collectives import Collectives
from .encoders import SharedHearing, SharedVision
from .plan import Slice
from .vocabulary import SplitVocabulary


def become(cell: nn.Cell, part: type, **state: Any) -> None:
    """Puts the class `part` in front of a cell's own, and its attributes into the cell."""
    object.__setattr__(cell, "__class__", _joined(part, type(cell)))
    vars(cell).update(state)


@cache
def _joined(part, kind):
    return type(part.__name__ + kind.__name__, (part, kind), {})


class Split:
    """A `Linear` of which each rank makes `size` outputs."""

    in_place = False  # its outputs are nobody's whole


class SplitHead(Split):
    """A head of which each rank has some of the vocabulary. vocabulary: `SplitVocabulary`."""

    def whole(self, logits):
        return self.vocabulary.collect(logits)


class Some:
    """`Experts` of which each rank has some, those from number `first` on; the others add nothing."""

    in_place = False


class ByRow:
    """An `Embedding` of which each rank has some rows, those from number `first` on: a lookup sends the rows that are asked for.

    Each rank looks up the ids of its own rows and a sum brings them together; the others add zeros, so the rows are exactly those
    of the table.
    """

    in_place = False

    def construct(self, ids):
        return ops.embedding(*self.rows(ids))

    def rows(self, ids):
        own = self.quantised("weight") if self.coded else self.weight
        rows = ops.embedding_part(ids.reshape(-1), own, self.first, self.dtype)  # [N, D]
        return in_order(ids), self.all_reduce(rows)


def split_thinker(model: nn.Cell, slices: dict[str, Slice], comm: Collectives) -> SplitVocabulary | None:
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
    become(thinker.audio_tower, SharedHearing, comm=comm)
    head = slices.get("thinker.lm_head.weight")
    if head is None:
        return None
    vocabulary = SplitVocabulary(comm, [head.shape[0] * rank // comm.size for rank in range(comm.size + 1)])
    become(thinker.lm_head, SplitHead, size=head.length, vocabulary=vocabulary)
    return vocabulary
