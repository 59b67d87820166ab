"""Attention with the fused kernels of Ascend: layouts, alignment and masks as they want them.

The kernels take heads whose size is a multiple of 16. Smaller ones (72 in the vision encoder) are filled up with
zeros, which change neither the scores nor the first channels of the result.
"""

import mindspore as ms
from mindspore import mint

from . import ascend_kernels as kernels
from .reference import MASKED, Reference

ALIGNMENT = 16
DISCARD_BELOW = -1.0
"""Masks hold 0 where a key counts and about -1e9 where it does not; the kernels want that as bool."""


def attention(q, k, v, mask, scale, stable=False):
    """Prompts and single tokens. Types without a kernel and values narrower than keys are left to `Reference`."""
    if q.dtype not in kernels.ATTENTION_TYPES or v.shape[-1] != k.shape[-1]:
        return Reference.attention(q, k, v, mask, scale)
    b, s, h, d = q.shape
    kv_heads = k.shape[1]
    q, k, v = _aligned(q), _aligned(k), _aligned(v)
    if mask is not None:
        mask = (mask < DISCARD_BELOW).reshape(b, 1, s, -1)
    q = kernels.transpose(q, (0, 2, 1, 3))
    layout = "BNSD" if s == 1 else "BNSD_BSND"
    out = kernels.fused_infer_attention(q, k, v, mask, kv_heads, scale, layout)
    return _unaligned(out.reshape(b, s, h, -1), d).reshape(b, s, h * d)


def paged_attention(q, keys, values, tables, first, lengths, scale):
    """Single tokens on the blocks where they lie; prompts on a copy of them, for the kernel documents one query per row."""
    known = q.dtype in kernels.ATTENTION_TYPES and q.shape[-1] % ALIGNMENT == 0 and keys.shape[2] % ALIGNMENT == 0
    if not known or q.shape[1] > 1 or values.shape[-1] != keys.shape[-1]:
        return paged_attention_gathered(q, keys, values, tables, first, lengths, scale)
    b, s, h, d = q.shape
    q = kernels.transpose(q, (0, 2, 1, 3))
    kv_heads, block = keys.shape[1:3]
    lengths = lengths.astype(ms.int64)
    out = kernels.paged_infer_attention(q, keys, values, tables, lengths, h, kv_heads, block, scale, "BNSD")
    return out.reshape(b, s, h * d)


def paged_attention_gathered(q, keys, values, tables, first, lengths, scale):
    """`attention` on a copy of the blocks of each row, zeros behind its end: what is there may be NaN."""
    b, s = q.shape[:2]
    t = tables.shape[1] * keys.shape[2]
    key = mint.arange(0, t, 1, dtype=ms.int32).reshape(1, 1, t)
    behind = mint.greater_equal(key, lengths.reshape(b, 1, 1)).reshape(b, 1, t, 1)
    keys, values = _of_rows(keys, tables, behind), _of_rows(values, tables, behind)
    query = mint.arange(0, s, 1, dtype=ms.int32).reshape(1, s)
    last = mint.minimum(first.reshape(b, 1) + query, lengths.reshape(b, 1) - 1)
    mask = mint.greater(key, last.reshape(b, s, 1)).astype(ms.float32) * MASKED
    return attention(q, keys, values, mask, scale)


def _of_rows(x, tables, behind):
    """`[blocks, K, P, D]` -> `[B, K, n * P, D]`."""
    b, n = tables.shape
    _, heads, block, d = x.shape
    blocks = mint.index_select(x.reshape(x.shape[0], -1), 0, tables.reshape(-1)).reshape(b, n, heads, block, d)
    rows = kernels.transpose(blocks, (0, 2, 1, 3, 4)).reshape(b, heads, n * block, d)
    return mint.where(behind, 0.0, rows)


def packed_attention(q, k, v, segments, scale):
    """All segments in one launch (`varlen_attention`), as far as its limit goes."""
    if q.dtype not in kernels.ATTENTION_TYPES:
        return Reference.packed_attention(q, k, v, segments, scale)
    n, h, d = q.shape
    launches = _launches(segments)
    sizes = tuple(ends[-1] for ends in launches)
    parts = [_cut(_aligned(x), sizes) for x in (q, k, v)]
    outputs = [
        kernels.varlen_attention(parts[0][i], parts[1][i], parts[2][i], ends, scale) for i, ends in enumerate(launches)
    ]
    return _unaligned(_joined(outputs), d).reshape(n, h * d)


def packed_attention_by_runs(q, k, v, segments, scale):
    """Each run of equally long segments is a batch for `fused_infer_attention`; every card documents that kernel."""
    if q.dtype not in kernels.ATTENTION_TYPES:
        return Reference.packed_attention(q, k, v, segments, scale)
    n, h, d = q.shape
    sizes = tuple(length * count for length, count in segments)
    parts = [_cut(_aligned(x), sizes) for x in (q, k, v)]
    outputs = []
    for i, (length, count) in enumerate(segments):
        batch = [part[i].reshape(count, length, h, -1) for part in parts]
        out = kernels.fused_infer_attention(batch[0], batch[1], batch[2], None, h, scale, "BSND")
        outputs.append(out.reshape(length * count, h, -1))
    return _unaligned(_joined(outputs), d).reshape(n, h * d)


def _launches(segments):
    """For each launch the cumulative lengths of its segments; a loop and tuples, which a graph can work out."""
    launches, ends, total = (), (), 0
    for length, count in segments:
        for _ in range(count):
            if len(ends) == kernels.VARLEN_SEGMENTS:
                launches, ends, total = launches + (ends,), (), 0
            total = total + length
            ends = ends + (total,)
    return launches + (ends,)


def _cut(x, sizes):
    """x `[N, ...]` in contiguous pieces of so many rows."""
    parts = kernels.split(x, sizes, 0) if len(sizes) > 1 else (x,)
    return [kernels.contiguous(part) for part in parts]


def _joined(parts):
    return parts[0] if len(parts) == 1 else mint.cat(parts, 0)


def _aligned(x):
    """x `[..., D]`, contiguous, with zeros up to the next multiple of 16 channels."""
    missing = -x.shape[-1] % ALIGNMENT
    return kernels.contiguous(x) if missing == 0 else kernels.pad(x, 0, missing)


def _unaligned(x, d):
    """The first d channels."""
    missing = x.shape[-1] - d
    return x if missing == 0 else kernels.split(x, (d, missing), -1)[0]
