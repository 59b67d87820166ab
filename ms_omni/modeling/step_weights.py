"""The weights of cells as the fused operators take them (`ops/fused.py`), where those compute exactly what the cells do.

Sharded layers, cells that a parallel plan has changed, and cells with features that the operators do not support (another
activation, layer scales, stable sums) have no such weights: None, and the cells themselves run.
"""

from typing import Any

import numpy as np

from . import ops
from .decoder import DecoderLayer
from .layer import CellsOnly, Layer, identity
from .layers import GatedMLP
from .moe import SharedExpertMoeBlock, SparseMoeBlock
from .ops import fused
from .positions import rope_angles


def stack_weights(decoder: Any, *others: Layer, shared: bool = False) -> fused.StackWeights | None:
    """`StackWeights` of a `Decoder`, or None; also if one of the other layers, which are used with it, is sharded.

    shared: also of one that is sharded over ranks.
    """
    try:
        for layer in others:
            layer.stored(shared)
        return _stack(decoder, shared)
    except CellsOnly:
        return None


def frame_weights(talker: Any) -> fused.FrameWeights | None:
    """`FrameWeights` of a `Talker` and its code predictor, or None."""
    predictor = talker.code_predictor
    try:
        stack = _stack(predictor.model)
        embeddings = [table.stored()[0] for table in (talker.model.codec_embedding, *predictor.model.codec_embedding)]
        heads = [head.stored()[0] for head in predictor.lm_head]
    except CellsOnly:
        return None
    cos, sin = rope_angles(np.arange(predictor.config.num_code_groups), predictor.model.inv_freq)
    return fused.FrameWeights(stack, embeddings[0], tuple(embeddings[1:]), tuple(heads), cos, sin)


def _stack(decoder, shared=False):
    eps = decoder.norm.eps
    layers = tuple(_layer(layer, eps, shared) for layer in decoder.layers)
    _check(layers)
    return fused.StackWeights(layers, _norm(decoder.norm, eps), eps, decoder.layers[0].self_attn.head_dim)


def _check(supported):
    if not supported:
        raise CellsOnly


def _layer(layer, eps, shared):
    attention = layer.self_attn
    _check(type(layer) is DecoderLayer and layer.self_attn_layer_scale is identity and layer.mlp_layer_scale is identity)
    _check(not attention.stable and (shared or attention.reduce is identity))
    projections = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    weights, biases = zip(*(projection.stored(shared) for projection in projections))
    q_norm, k_norm = (None if norm is identity else _norm(norm, eps) for norm in (attention.q_norm, attention.k_norm))
    names = ("q", "k", "v", "o")
    return fused.LayerWeights(
        input_norm=_norm(layer.input_layernorm, eps),
        **dict(zip(names, weights)),
        **{f"{name}_bias": bias for name, bias in zip(names, biases)},
        q_norm=q_norm,
        k_norm=k_norm,
        post_norm=_norm(layer.post_attention_layernorm, eps),
        sum_heads=_sum(attention.reduce),
        **_mlp(layer.mlp, shared),
    )


def _sum(reduce):
    return None if reduce is identity else reduce


def _norm(norm, eps):
    _check(norm.eps == eps)
    return norm.stored()[0]


def _mlp(mlp, shared):
    if type(mlp) is GatedMLP:
        return _dense(mlp)
    _check(type(mlp) in (SparseMoeBlock, SharedExpertMoeBlock) and (shared or mlp.reduce is identity))
    experts = dict(zip(("experts_gate_up", "experts_down"), mlp.experts.stored(shared)))
    mixture = {**experts, "router": mlp.gate.stored()[0], "top_k": mlp.top_k, "normalise": mlp.norm_topk_prob}
    mixture |= {"first": mlp.experts.first, "sum_experts": _sum(mlp.reduce)}
    if type(mlp) is SparseMoeBlock:
        return mixture
    return {**mixture, **_dense(mlp.shared_expert), "shared_gate": mlp.shared_expert_gate.stored()[0]}


def _dense(mlp):
    _check(mlp.act_fn is ops.silu)
    parts = {"gate": mlp.gate_proj, "up": mlp.up_proj, "down": mlp.down_proj}
    return {name: projection.stored()[0] for name, projection in parts.items()}
