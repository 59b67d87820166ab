"""Attention of many queries as C++ kernels (`attention.cpp`): float32 on CPU, scores never stored as a whole."""

import functools

import numpy as np
from mindspore import Tensor

from .cpu_kernel import kernel

queries = kernel("attention", "attention")
tiles = kernel("attention", "attention_tiles")
_packed = kernel("attention", "packed_attention")


@functools.lru_cache(maxsize=64)
def _ends(segments):
    lengths = np.repeat([length for length, _ in segments], [count for _, count in segments])
    return Tensor(np.cumsum(lengths).astype(np.int32))


def packed(q, k, v, segments, scale):
    """`packed_attention` of the interface; scale is a tensor `[1]`."""
    return _packed(q, k, v, scale, _ends(segments))
