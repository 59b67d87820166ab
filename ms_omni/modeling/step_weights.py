"""The weights of cells as the fused operators take them (`ops/fused.py`), wherever those do exactly what the cells do.

A cell that a parallel plan has changed (`source`, `reduce`, `fetch`, `first`), or that has something the operators do not know (another
activation, layer scales, stable sums), has no such weights: None, and the cells themselves run.
"""

import numpy as np

from . import ops
from .decoder import DecoderLayer
from .layers import GatedMLP, identity
from .moe import SharedExpertMoeBlock, SparseMoeBlock
from .ops import fused
from .rope import rope_angles


def stack_weights(decoder):
    """`StackWeights` of a `Decoder`, or None."""
    layers = [_layer(layer, decoder.norm.eps) for layer in decoder.layers]
    if not layers or not is_plain(decoder.norm) or any(layer is None for layer in layers):
        return None
    return fused.StackWeights(tuple(layers), decoder.norm.weight, decoder.norm.eps, decoder.layers[0].self_attn.head_dim)


def frame_weights(talker):
    """`FrameWeights` of a `Talker` and its code predictor, or None."""
    predictor = talker.code_predictor
    embeddings, heads = list(predictor.model.codec_embedding), list(predictor.lm_head)
    stack = stack_weights(predictor.model)
    if stack is None or not is_plain(talker.model.codec_embedding, *embeddings, *heads):
        return None
    cos, sin = rope_angles(np.arange(predictor.config.num_code_groups), predictor.model.inv_freq)
    return fused.FrameWeights(
        stack,
        talker.model.codec_embedding.weight,
        tuple(cell.weight for cell in embeddings),
        tuple(cell.weight for cell in heads),
        cos,
        sin,
    )


def is_plain(*cells):
    """Whether linear layers, norms and embeddings read their own parameters, and sum in any order."""
    return all(
        cell.source is identity and not getattr(cell, "stable", False) and getattr(cell, "fetch", None) is None
        for cell in cells
    )


def _layer(layer, eps):
    attention, mlp = layer.self_attn, _mlp(layer.mlp)
    projections = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
    norms = [layer.input_layernorm, layer.post_attention_layernorm]
    head_norms = [None if norm is identity else norm for norm in (attention.q_norm, attention.k_norm)]
    known = (
        type(layer) is DecoderLayer
        and layer.self_attn_layer_scale is identity
        and layer.mlp_layer_scale is identity
        and attention.reduce is identity
        and not attention.stable
        and is_plain(*projections)
        and all(norm is None or (norm.eps == eps and is_plain(norm)) for norm in norms + head_norms)
    )
    if mlp is None or not known:
        return None
    return fused.LayerWeights(
        norms[0].weight,
        *(cell.weight for cell in projections),
        *(cell.bias for cell in projections),
        *(norm and norm.weight for norm in head_norms),
        norms[1].weight,
        **mlp,
    )


def _mlp(mlp):
    if type(mlp) is GatedMLP:
        return _dense(mlp)
    if type(mlp) not in (SparseMoeBlock, SharedExpertMoeBlock):
        return None
    experts = mlp.experts
    if mlp.reduce is not identity or experts.source is not identity or experts.first is not None or not is_plain(mlp.gate):
        return None
    mixture = {
        "router": mlp.gate.weight,
        "experts_gate_up": experts.gate_up,
        "experts_down": experts.down,
        "top_k": mlp.top_k,
        "normalise": mlp.norm_topk_prob,
    }
    if type(mlp) is SparseMoeBlock:
        return mixture
    shared = _dense(mlp.shared_expert) if is_plain(mlp.shared_expert_gate) else None
    return shared and {**mixture, **shared, "shared_gate": mlp.shared_expert_gate.weight}


def _dense(mlp):
    cells = mlp.gate_proj, mlp.up_proj, mlp.down_proj
    if mlp.act_fn is not ops.silu or not is_plain(*cells):
        return None
    return dict(zip(("gate", "up", "down"), (cell.weight for cell in cells)))
