"""Putting the plan "ep" to work: the collectives and shares that go into the seams of a loaded model."""

from ..modeling.moe import SparseMoeBlock
from .encoders import SharedHearing, SharedVision
from .vocabulary import SplitVocabulary


def attach(model, slices, comm):
    """Fills the seams of `model` for this rank; returns its `SplitVocabulary`, or None where the head is whole.

    slices: `{full name: Slice}` of this rank.
    """
    thinker = getattr(model, "thinker", model)
    if not hasattr(thinker, "audio_tower"):
        return None  # a talker or vocoder alone: nothing is split
    sums = 0
    for index, layer in enumerate(thinker.model.layers):
        stem = f"thinker.model.layers.{index}."
        if not slices[stem + "self_attn.o_proj.weight"].is_whole:
            layer.self_attn.reduce, sums = comm.reducer(), sums + 1
            layer.self_attn.num_kv_heads = slices[stem + "self_attn.k_proj.weight"].length // layer.self_attn.head_dim
        if isinstance(layer.mlp, SparseMoeBlock):
            layer.mlp.reduce, sums = comm.reducer(), sums + 1
            layer.mlp.experts.first = slices[stem + "mlp.experts.down"].start
    thinker.model.announce = lambda x: comm.traffic.add("all_reduce", sums * x.size * x.itemsize, sums)
    thinker.see = SharedVision(thinker.visual, comm)
    thinker.hear = SharedHearing(thinker.audio_tower, comm)
    head = slices.get("thinker.lm_head.weight")
    if head is None:
        return None
    size = head.shape[0]
    vocabulary = SplitVocabulary(comm, [size * rank // comm.size for rank in range(comm.size + 1)])
    thinker.collect = vocabulary.collect
    return vocabulary
