"""The attention kernels of `ascend_kernels` in numpy (see `emulation.py`)."""

import functools

import mindspore as ms
import numpy as np

from .emulation_rules import FLOATS, primitive, require, same_type


def _softmax_product(scores, values):
    """`softmax(scores) @ values`; the maximum may be -inf nowhere."""
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True)) @ values


@functools.cache
def _infer_attention(kv_heads, scale, layout, masked):
    head_axis, time_axis = (2, 1) if layout == "BSND" else (1, 2)

    def shape(q, k, v, mask=None):
        require(isinstance(scale, float), f"scale {scale!r}")
        require(len(q) == len(k) == 4 and k == v, f"q {q}, k {k}, v {v}: four axes each, k and v alike")
        require(layout in ("BNSD", "BSND", "BNSD_BSND"), f"layout {layout}")
        require(layout != "BNSD_BSND" or q[time_axis] > 1, "BNSD_BSND is for more than one query")
        require(q[0] == k[0] and q[3] == k[3], f"batch and channels of q {q} and k {k}")
        require(q[3] % 16 == 0 and q[3] <= 512, f"{q[3]} channels: a multiple of 16, at most 512")
        heads = q[head_axis]
        require(k[head_axis] == kv_heads and heads % kv_heads == 0, f"{heads} heads, {k[head_axis]} not {kv_heads} for kv")
        require(heads // kv_heads <= 64 and heads <= 256, f"{heads} heads for {kv_heads} kv heads: at most 256 and 64 each")
        expected = [q[0], 1, q[time_axis], k[time_axis]]
        require(mask is None or mask == expected, f"mask {mask}, expected {expected}")
        return [q[0], q[2], q[1], q[3]] if layout == "BNSD_BSND" else q

    def dtype(q, k, v, mask=None):
        require(mask is None or mask == ms.bool_, f"a mask of type {mask}; expected bool")
        return same_type(FLOATS, q, k, v)

    def compute(q, k, v, mask=None):
        if layout == "BSND":
            q, k, v = (x.transpose(0, 2, 1, 3) for x in (q, k, v))
        b, h, s, d = q.shape
        k, v = k[:, :, None], v[:, :, None]  # [B, K, 1, T, D]
        scores = q.reshape(b, kv_heads, -1, s, d) @ k.swapaxes(-1, -2) * np.float32(scale)
        if mask is not None:
            require(not mask.all(-1).any(), "a query that may look at nothing")
            scores = np.where(mask[:, :, None], np.float32(-np.inf), scores)
        out = _softmax_product(scores, v).reshape(b, h, s, d)
        return out if layout == "BNSD" else np.ascontiguousarray(out.transpose(0, 2, 1, 3))

    # MindSpore 2.10 counts the function's parameters, those with a default too.
    return primitive(compute if masked else lambda q, k, v: compute(q, k, v), shape, dtype)


def fused_infer_attention(q, k, v, mask, kv_heads, scale, layout):
    kernel = _infer_attention(kv_heads, scale, layout, mask is not None)
    return kernel(q, k, v) if mask is None else kernel(q, k, v, mask)


@functools.cache
def _varlen_attention(ends, scale):
    def shape(q, k, v):
        require(len(q) == 3 and q == k == v, f"q {q}, k {k}, v {v}: three axes, all alike")
        require(q[2] % 16 == 0 and q[2] <= 512 and q[1] <= 256, f"{q[1]} heads of {q[2]} channels")
        lengths = np.diff([0, *ends])
        require(len(ends) <= 1024, f"{len(ends)} segments, at most 1024")
        require((lengths > 0).all() and ends[-1] == q[0], f"cumulative lengths {ends} for {q[0]} tokens")
        return q

    def compute(q, k, v):
        out, start = np.empty_like(q), 0
        for stop in ends:
            queries, keys, values = (x[start:stop].swapaxes(0, 1) for x in (q, k, v))  # [H, n, D]
            scores = queries @ keys.swapaxes(1, 2) * np.float32(scale)
            out[start:stop] = _softmax_product(scores, values).swapaxes(0, 1)
            start = stop
        return out

    return primitive(compute, shape, lambda *types: same_type(FLOATS, *types))


def varlen_attention(q, k, v, ends, scale):
    return _varlen_attention(ends, scale)(q, k, v)
