"""Mixtures of experts with the fused kernels of Ascend: nothing is read on the host, so any size fits a graph.

x [N, D] --rows by expert--> [N * K, D] --gate_up--> [N * K, 2I] --swiglu--> --down--> [N * K, D] --weighted--> [N, D]
"""

import functools

import mindspore as ms
from mindspore import Tensor, mint

from . import ascend_kernels as kernels
from . import ascend_products as products
from .reference import Reference
from .stored import Matrix


def route_topk(logits: Tensor, k: int, normalise: bool) -> tuple[Tensor, Tensor]:
    """In float32. Weights that are divided by their sum are the softmax of the chosen logits alone."""
    logits = logits.astype(ms.float32)
    if normalise:
        logits, indices = kernels.topk(logits, k)
        weights = kernels.softmax(logits)
    else:
        weights, indices = kernels.topk(kernels.softmax(logits), k)
    return weights, indices.astype(ms.int32)


def experts(x: Tensor, gate_up: Matrix, down: Matrix, weights: Tensor, indices: Tensor, first: int | None = None) -> Tensor:
    """Two grouped products over the rows sorted by expert; the weights are stored in their layout, `[E, in, out]`.

    Pairs whose expert is on another rank are sorted behind all others and left out of the groups.
    """
    if isinstance(gate_up, tuple):
        return _of_codes(experts, x, gate_up, down, weights, indices, first)
    local_experts = gate_up.shape[0]
    if first is None:
        rows, row_index, counts = kernels.moe_init_routing(x, indices, local_experts)
        out = _products(rows, gate_up, down, counts)
    else:
        local_index = mint.clamp(indices - first, None, local_experts)
        rows, row_index, counts = kernels.moe_init_routing(
            x, mint.where(local_index < 0, local_experts, local_index), local_experts + 1
        )
        counts, others = kernels.split(counts, (local_experts, 1), 0)
        out = _products(rows, gate_up, down, counts)
        # The product leaves the rows behind the groups as they are.
        rows_to_end = mint.arange(rows.shape[0], 0, -1, dtype=ms.int32).reshape(-1, 1)
        out = mint.where(rows_to_end > others, out, 0.0)
    return kernels.moe_token_unpermute(out, row_index, weights.astype(x.dtype))


def experts_of_all_pairs(
    x: Tensor, gate_up: Matrix, down: Matrix, weights: Tensor, indices: Tensor, first: int | None = None
) -> Tensor:
    """The same where the kernel requires a group for every row: pairs whose expert is on another rank go to a local one
    with weight 0, and cost as much as the others.
    """
    if isinstance(gate_up, tuple):
        return _of_codes(experts_of_all_pairs, x, gate_up, down, weights, indices, first)
    local_experts = gate_up.shape[0]
    if first is not None:
        local_index = indices - first
        indices = mint.clamp(local_index, 0, local_experts - 1)
        weights = mint.where(local_index == indices, weights, 0.0)
    rows, row_index, counts = kernels.moe_init_routing(x, indices, local_experts)
    out = _products(rows, gate_up, down, counts)
    return kernels.moe_token_unpermute(out, row_index, weights.astype(x.dtype))


def _products(rows, gate_up, down, counts):
    counts = counts.astype(ms.int64)
    return _times(kernels.swiglu(_times(rows, gate_up, counts)), down, counts)


def _times(rows, weight, counts):
    if isinstance(weight, _Stack):
        return weight.product(rows, counts)
    return kernels.grouped_matmul(rows, weight, counts)


class _Stack:
    """A stack of codes packed for its kernel, outside graphs."""

    def __init__(self, weight, dtype):
        self.shape, self.product = weight.shape, products.grouped(weight, dtype)


def _in_graph(form, x, gate_up, down, weights, indices, first):
    """A graph cannot pack codes; the model's graphs use `ascend_layer.py`, where they are packed before."""
    return Reference.experts(x, gate_up, down, weights, indices, first)


@functools.wraps(_in_graph)
def _of_codes(form, x, gate_up, down, weights, indices, first):
    return form(x, _Stack(gate_up, x.dtype), _Stack(down, x.dtype), weights, indices, first)
