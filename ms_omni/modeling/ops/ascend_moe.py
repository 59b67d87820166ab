"""Mixtures of experts with the fused kernels of Ascend: nothing is read on the host, so any size fits a graph.

x [N, D] --rows by expert--> [N * K, D] --gate_up--> [N * K, 2I] --swiglu--> --down--> [N * K, D] --weighted--> [N, D]
"""

import mindspore as ms
from mindspore import mint, ops

from . import ascend_kernels as kernels


def route_topk(logits, k, normalise):
    """Softmax, choice and normalisation in float32."""
    probs = mint.nn.functional.softmax(logits.astype(ms.float32), -1)
    weights, indices = kernels.topk(probs, k)
    if normalise:
        weights = weights / mint.sum(weights, -1, True)
    return weights, indices.astype(ms.int32)


def experts(x, gate_up, down, weights, indices, first=None):
    """Two grouped products over the rows sorted by expert; the weights are stored as these want them, `[E, in, out]`.

    Pairs whose expert is elsewhere are sorted behind all others and left out of the groups.
    """
    if first is None:
        return _grouped(x, gate_up, down, weights, indices)
    held = gate_up.shape[0]
    place, here = _here(indices, first, held)
    rows, places, ends = kernels.moe_init_routing(x, mint.where(here, place, held), held + 1)
    out = _products(rows, gate_up, down, ends[:held])
    used = ops.arange(out.shape[0]).astype(ms.int32).reshape(-1, 1) < ends[held - 1]
    out = mint.where(used, out, mint.zeros((1, 1), dtype=out.dtype))  # the kernel leaves the rest as it finds it
    return kernels.moe_token_unpermute(out, places, weights.astype(x.dtype))


def experts_of_all_pairs(x, gate_up, down, weights, indices, first=None):
    """The same where the kernel insists on a group for every row: pairs whose expert is elsewhere go to one that is here,
    with weight 0, and cost as much as the others.
    """
    if first is not None:
        place, here = _here(indices, first, gate_up.shape[0])
        indices = mint.where(here, place, 0)
        weights = weights * here.astype(weights.dtype)
    return _grouped(x, gate_up, down, weights, indices)


def _grouped(x, gate_up, down, weights, indices):
    rows, places, ends = kernels.moe_init_routing(x, indices, gate_up.shape[0])
    out = _products(rows, gate_up, down, ends)
    return kernels.moe_token_unpermute(out, places, weights.astype(x.dtype))


def _products(rows, gate_up, down, ends):
    ends = ends.astype(ms.int64)
    hidden = kernels.swiglu(kernels.grouped_matmul(rows, gate_up, ends))
    return kernels.grouped_matmul(hidden, down, ends)


def _here(indices, first, held):
    """The number of each expert among those that are held, and whether it is one of them."""
    place = indices - first
    return place, ops.logical_and(place >= 0, place < held)
