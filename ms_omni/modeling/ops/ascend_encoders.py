"""The layers of an encoder in few launches: `encoder_states`, operator by operator, as pictures have any size.

Queries, keys and values are one product, turned once so that each lies by itself; sum and norm are one kernel. The kernels want
heads of a multiple of 16 channels, so zeros are put into the weights, once, behind both halves of a head, where the
rotary pairs (i, i + D/2) stay pairs:

    72 channels of a head: | 0 ... 35 | zeros, 4 | 36 ... 71 | zeros, 4 |
"""

import numpy as np
from mindspore import Tensor

from . import ascend_kernels as kernels
from .ascend_attention import ALIGNMENT
from .ascend_weights import packed
from .fused import EncoderWeights


class PreparedEncoder:
    """The weights of every layer as these kernels take them; kept: another one, of which what fits is taken over."""

    def __init__(self, weights, head_dim, kept=None):
        self.weights = weights
        self.half, self.missing = head_dim // 2, -head_dim % ALIGNMENT // 2
        before = kept.attention if kept else [(None,) * 3] * len(weights.layers)
        self.attention = [self._attention(layer, *old) for layer, old in zip(weights.layers, before)]

    def _attention(self, layer, weight, bias, out):
        weights, biases = zip(*layer.projections)
        return (
            packed(self._rows, *weights, kept=weight),
            None if all(part is None for part in biases) else packed(self._rows, *biases, kept=bias),
            packed(self._columns, layer.out[0], kept=out),
        )

    def _rows(self, *arrays):
        there = next(array for array in arrays if array is not None)
        return self._filled(np.concatenate([np.zeros_like(there) if array is None else array for array in arrays]))

    def _columns(self, array):
        return self._filled(array.T).T

    def _filled(self, array):
        """Rows of channels of heads, with zeros behind each half of a head."""
        halves = array.reshape(-1, self.half, *array.shape[1:])
        return np.pad(halves, [(0, 0), (0, self.missing), *[(0, 0)] * (array.ndim - 1)]).reshape(-1, *array.shape[1:])

    def tables(self, cos, sin):
        """`[N, D/2]` each -> those of queries and keys below one another, both halves filled, `[2 * N, D]`."""
        return (Tensor(np.tile(self._filled(table.asnumpy().T).T, (2, 2))) for table in (cos, sin))


def prepare(weights, kept=None):
    if not isinstance(weights, EncoderWeights):
        return None
    layer = weights.layers[0]
    head_dim = layer.out[0].shape[1] // weights.heads
    if layer.out[0].dtype not in kernels.ATTENTION_TYPES or head_dim % 2:
        return None
    return PreparedEncoder(weights, head_dim, kept if isinstance(kept, PreparedEncoder) else None)


def encoder_states(cls, x, segments, rope, prepared):
    eps, tables, made = prepared.weights.eps, rope and tuple(prepared.tables(*rope)), None
    for layer, attention in zip(prepared.weights.layers, prepared.attention):
        if made is None:
            normalised = cls.layer_norm(x, *layer.norm, eps)
        else:
            normalised, x = cls.add_layer_norm(x, made, *layer.norm, eps)
        yield x
        made = _attend(cls, normalised, segments, tables, prepared.weights, attention, layer.out[1])
        normalised, x = cls.add_layer_norm(x, made, *layer.mlp_norm, eps)
        made = cls.linear(prepared.weights.activation(cls.linear(normalised, *layer.fc1)), *layer.fc2)
    yield x + made


def _attend(cls, x, segments, tables, weights, packed, out_bias):
    weight, bias, out = (part and part.current() for part in packed)
    n = x.shape[0]
    qkv = cls.transpose(cls.linear(x, weight, bias).reshape(n, 3, -1), (1, 0, 2))  # [3, N, H * D]
    qkv = qkv.reshape(3 * n, weights.heads, -1)
    qk = cls.rotary_wide(qkv[: 2 * n], *tables) if tables else qkv
    attended = cls.packed_attention(qk[:n], qk[n : 2 * n], qkv[2 * n :], segments, weights.scale)
    return cls.linear(attended, out, out_bias)
