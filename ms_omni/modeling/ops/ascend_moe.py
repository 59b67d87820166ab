"""Mixtures of experts with the fused kernels of Ascend: nothing is read on the host, so any size fits a graph.

    x [N, D] --rows by expert--> [N * K, D] --gate_up--> [N * K, 2I] --swiglu--> --down--> [N * K, D] --weighted--> [N, D]
"""

import mindspore as ms
from mindspore import mint

from . import ascend_kernels as kernels


def route_topk(logits, k, normalise):
    """Softmax, choice and normalisation in float32."""
    probs = mint.nn.functional.softmax(logits.astype(ms.float32), -1)
    weights, indices = kernels.topk(probs, k)
    if normalise:
        weights = weights / mint.sum(weights, -1, True)
    return weights, indices.astype(ms.int32)


def experts(x, gate_up, down, weights, indices):
    """Two grouped products over the rows sorted by expert; the weights are stored as these want them, `[E, in, out]`."""
    rows, places, ends = kernels.moe_init_routing(x, indices, gate_up.shape[0])
    ends = ends.astype(ms.int64)
    hidden = kernels.swiglu(kernels.grouped_matmul(rows, gate_up, ends))
    out = kernels.grouped_matmul(hidden, down, ends)
    return kernels.moe_token_unpermute(out, places, weights.astype(x.dtype))
