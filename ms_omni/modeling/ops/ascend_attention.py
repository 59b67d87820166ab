"""Attention with the fused kernels of Ascend, in the layouts, alignment and masks that they take, and the layers of encoders around it.

The kernels take heads whose size is a multiple of 16. Smaller ones (72 in the vision encoder) are filled up with
zeros, which change neither the scores nor the first channels of the result.
"""

from collections.abc import Container, Iterator
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, mint

from . import ascend_kernels as kernels
from .ascend_weights import packed
from .fused import EncoderWeights
from .reference import MASKED, Reference
from .stored import Matrix

ALIGNMENT = 16
DISCARD_BELOW = -1.0
"""Masks are 0 for keys that are attended to and about -1e9 for others; the kernels take bool."""


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, stable: bool = False) -> Tensor:
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


def paged_attention(
    q: Tensor, keys: Matrix, values: Matrix, tables: Tensor, first: Tensor, lengths: Tensor, scale: float
) -> Tensor:
    """Single tokens on the blocks themselves; prompts on a copy of them, as the kernel is documented for one query per row."""
    known = q.dtype in kernels.ATTENTION_TYPES and q.shape[-1] % ALIGNMENT == 0 and keys.shape[2] % ALIGNMENT == 0
    if not known or q.shape[1] > 1 or values.shape[-1] != keys.shape[-1]:
        return paged_attention_gathered(q, keys, values, tables, first, lengths, scale)
    b, s, h, d = q.shape
    q = kernels.transpose(q, (0, 2, 1, 3))
    kv_heads, block = keys.shape[1:3]
    lengths = lengths.astype(ms.int64)
    out = kernels.paged_infer_attention(q, keys, values, tables, lengths, h, kv_heads, block, scale, "BNSD")
    return out.reshape(b, s, h * d)


def paged_attention_gathered(
    q: Tensor, keys: Matrix, values: Matrix, tables: Tensor, first: Tensor, lengths: Tensor, scale: float
) -> Tensor:
    """`attention` on a copy of the blocks of each row, zeros behind its end, where the pool may hold NaN."""
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


def packed_attention(q: Tensor, k: Tensor, v: Tensor, segments: tuple[tuple[int, int], ...], scale: float) -> Tensor:
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


def packed_attention_by_runs(q: Tensor, k: Tensor, v: Tensor, segments: tuple[tuple[int, int], ...], scale: float) -> Tensor:
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


def _launches(segments) -> tuple[tuple[int, ...], ...]:
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


# ---- layers of encoders ---------------------------------------------------------------------------------------------------
#
# `encoder_states` runs operator by operator, as pictures have any size. Queries, keys and values are one product, transposed once so
# that each is contiguous; sum and norm are one kernel. Zeros are put into the weights, once, behind both halves of a head, where the
# rotary pairs (i, i + D/2) stay pairs:
#
#     72 channels of a head: | 0 ... 35 | zeros, 4 | 36 ... 71 | zeros, 4 |


class PreparedEncoder:
    """The weights of every layer as these kernels take them; previous: an earlier one, whose packed weights are reused where they are of the same parameters."""

    def __init__(self, weights: EncoderWeights, head_dim: int, previous: "PreparedEncoder | None" = None) -> None:
        self.weights = weights
        self.half, self.missing = head_dim // 2, -head_dim % ALIGNMENT // 2
        before = previous.attention if previous else [(None,) * 3] * len(weights.layers)
        self.attention = [self._attention(layer, *old) for layer, old in zip(weights.layers, before)]

    def _attention(self, layer, weight, bias, out):
        weights, biases = zip(*layer.projections)
        return (
            packed(self._rows, *weights, previous=weight),
            None if all(part is None for part in biases) else packed(self._rows, *biases, previous=bias),
            packed(self._columns, layer.out[0], previous=out),
        )

    def _rows(self, *arrays):
        present = next(array for array in arrays if array is not None)
        return self._filled(np.concatenate([np.zeros_like(present) if array is None else array for array in arrays]))

    def _columns(self, array):
        return self._filled(array.T).T

    def _filled(self, array):
        """Rows of channels of heads, with zeros behind each half of a head."""
        parts = array.reshape(-1, self.half, *array.shape[1:])
        return np.pad(parts, [(0, 0), (0, self.missing), *[(0, 0)] * (array.ndim - 1)]).reshape(-1, *array.shape[1:])

    def tables(self, cos: Tensor, sin: Tensor) -> Iterator[Tensor]:
        """`[N, D/2]` each -> those of queries and keys below one another, both halves filled, `[2 * N, D]`."""
        return (Tensor(np.tile(self._filled(table.asnumpy().T).T, (2, 2))) for table in (cos, sin))


def prepare_encoder(weights: Any, previous: Any = None) -> PreparedEncoder | None:
    if not isinstance(weights, EncoderWeights):
        return None
    layer = weights.layers[0]
    head_dim = layer.out[0].shape[1] // weights.heads
    if layer.out[0].dtype not in kernels.ATTENTION_TYPES or head_dim % 2:
        return None
    return PreparedEncoder(weights, head_dim, previous if isinstance(previous, PreparedEncoder) else None)


def encoder_states(
    cls: Any,
    x: Tensor,
    segments: tuple[tuple[int, int], ...],
    rope: tuple[Tensor, Tensor] | None,
    prepared: PreparedEncoder,
    wanted: Container[int],
) -> Iterator[Tensor]:
    eps, tables, added = prepared.weights.eps, rope and tuple(prepared.tables(*rope)), None
    for number, (layer, attention) in enumerate(zip(prepared.weights.layers, prepared.attention)):
        if added is None:
            normalised = cls.layer_norm(x, *layer.norm, eps)
        else:
            normalised, x = cls.add_layer_norm(x, added, *layer.norm, eps)
        if number in wanted:
            yield x
        added = _attend(cls, normalised, segments, tables, prepared.weights, attention, layer.out[1])
        normalised, x = cls.add_layer_norm(x, added, *layer.mlp_norm, eps)
        added = cls.linear(prepared.weights.activation(cls.linear(normalised, *layer.fc1)), *layer.fc2)
    if len(prepared.attention) in wanted:
        yield x + added


def _attend(cls, x, segments, tables, weights, packed, out_bias):
    weight, bias, out = (part and part.current() for part in packed)
    n = x.shape[0]
    qkv = cls.transpose(cls.linear(x, weight, bias).reshape(n, 3, -1), (1, 0, 2))  # [3, N, H * D]
    qkv = qkv.reshape(3 * n, weights.heads, -1)
    qk = cls.rotary_wide(qkv[: 2 * n], *tables) if tables else qkv
    attended = cls.packed_attention(qk[:n], qk[n : 2 * n], qkv[2 * n :], segments, weights.scale)
    return cls.linear(attended, out, out_bias)
