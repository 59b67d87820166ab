"""Attention with the fused kernels of Ascend: layouts, alignment and masks as they want them.

The kernels take heads whose size is a multiple of 16. Smaller ones (72 in the vision encoder) are filled up with
zeros, which change neither the scores nor the first channels of the result.
"""

from mindspore import mint

from . import ascend_kernels as kernels
from .reference import Reference

ALIGNMENT = 16
DISCARD_BELOW = -1.0
"""Masks hold 0 where a key counts and about -1e9 where it does not; the kernels want that as bool."""


def attention(q, k, v, mask, scale, stable=False):
    """Prompts and single tokens. Types without a kernel and values narrower than keys are left to `Reference`."""
    if q.dtype not in kernels.ATTENTION_TYPES or v.shape[-1] != k.shape[-1]:
        return Reference.attention(q, k, v, mask, scale)
    b, s, h, d = q.shape
    kv_heads = k.shape[1]
    q, k, v = _aligned(q), _aligned(k).contiguous(), _aligned(v).contiguous()
    if mask is not None:
        mask = (mask < DISCARD_BELOW).reshape(b, 1, s, -1)
    if s == 1:  # moving an axis of length 1 is no transposition
        out = kernels.fused_infer_attention(q.reshape(b, h, 1, -1), k, v, mask, kv_heads, scale, "BNSD")
    else:
        q = mint.permute(q, (0, 2, 1, 3)).contiguous()
        out = kernels.fused_infer_attention(q, k, v, mask, kv_heads, scale, "BNSD_BSND")
    return out.reshape(b, s, h, -1)[..., :d].reshape(b, s, h * d)


def packed_attention(q, k, v, segments, scale):
    """All segments in one launch (`varlen_attention`), as far as its limit goes."""
    if q.dtype not in kernels.ATTENTION_TYPES:
        return Reference.packed_attention(q, k, v, segments, scale)
    n, h, d = q.shape
    q, k, v = (_aligned(x).contiguous() for x in (q, k, v))
    lengths = [length for length, count in segments for _ in range(count)]
    outputs, start = [], 0
    for first in range(0, len(lengths), kernels.VARLEN_SEGMENTS):
        ends = _cumulative(lengths[first : first + kernels.VARLEN_SEGMENTS])
        stop = start + ends[-1]
        part = (q, k, v) if stop - start == n else (q[start:stop], k[start:stop], v[start:stop])
        outputs.append(kernels.varlen_attention(*part, ends, scale))
        start = stop
    out = outputs[0] if len(outputs) == 1 else mint.cat(outputs, 0)
    return out[..., :d].reshape(n, h * d)


def packed_attention_by_runs(q, k, v, segments, scale):
    """Each run of equally long segments is a batch for `fused_infer_attention`; every card documents that kernel."""
    if q.dtype not in kernels.ATTENTION_TYPES:
        return Reference.packed_attention(q, k, v, segments, scale)
    n, h, d = q.shape
    q, k, v = (_aligned(x).contiguous() for x in (q, k, v))
    outputs, start = [], 0
    for length, count in segments:
        stop = start + length * count
        part = [x[start:stop].reshape(count, length, h, -1) for x in (q, k, v)]
        out = kernels.fused_infer_attention(*part, None, h, scale, "BSND")
        outputs.append(out.reshape(stop - start, h, -1))
        start = stop
    out = outputs[0] if len(outputs) == 1 else mint.cat(outputs, 0)
    return out[..., :d].reshape(n, h * d)


def _aligned(x):
    """x `[..., D]` with zeros up to the next multiple of 16 channels."""
    missing = -x.shape[-1] % ALIGNMENT
    if missing == 0:
        return x
    return mint.cat((x, mint.zeros((*x.shape[:-1], missing), dtype=x.dtype)), -1)


def _cumulative(lengths):
    ends, total = [], 0
    for length in lengths:
        total += length
        ends.append(total)
    return tuple(ends)
