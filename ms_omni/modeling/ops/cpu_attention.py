"""Attention of many queries as C++ kernels (`attention.cpp`): float32 on CPU, scores never stored as a whole."""

import functools

import numpy as np
from mindspore import Tensor, ops

from . import build

_LIBRARY = build.library("attention")


def _kernel(name, shape):
    return ops.Custom(f"{_LIBRARY}:ms_omni_{name}", shape, lambda x, *_: x, "aot")


queries = _kernel("attention", lambda q, k, v, *_: [q[0], q[1], q[2] * v[3]])
tiles = _kernel("attention_tiles", lambda q, k, v, *_: [q[0], q[1], q[2] * v[3]])
_packed = _kernel("packed_attention", lambda q, *_: [q[0], q[1] * q[2]])


@functools.lru_cache(maxsize=64)
def _ends(segments):
    lengths = np.repeat([length for length, _ in segments], [count for _, count in segments])
    return Tensor(np.cumsum(lengths).astype(np.int32))


def packed(q, k, v, segments, scale):
    """`packed_attention` of the interface; scale is a tensor `[1]`."""
    return _packed(q, k, v, scale, _ends(segments))
