"""Products and convolutions with one order of summation, as C++ kernels (`vocoder.cpp`): float32 on CPU.

MindSpore's own choose the order by the shape, so that the pieces of a stream differ from the whole in the last bits, and
a vocoder amplifies that. Here equal inputs give equal bits, however long x is and whatever the other rows are.
"""

import functools

import mindspore as ms
from mindspore import mint, ops

from . import build

_LIBRARY = build.library("vocoder")


def _kernel(name, shape):
    return ops.Custom(f"{_LIBRARY}:ms_omni_{name}", shape, lambda x, *_: x, "aot")


_linear = _kernel("stable_linear", lambda x, weight, *_: [*x[:-1], weight[0]])


_conv1d = _kernel("conv1d", lambda x, weight, _, s: [x[0], weight[0], x[2] - (weight[2] - 1) * s[0]])
_conv_transpose1d = _kernel("conv_transpose1d", lambda x, weight, _, s: [x[0], weight[1], (x[2] - 1) * s[0] + weight[2]])


@functools.cache
def _settings(*values):
    # Told by a shape: MindSpore remembers the shape of a result by the shapes of the inputs.
    return mint.zeros(values, dtype=ms.int32)


def linear(x, weight, bias):
    if x.size == 0:
        return mint.zeros((*x.shape[:-1], weight.shape[0]))
    return _linear(x, weight) if bias is None else _linear(x, weight, bias)


def conv1d(x, weight, bias, dilation, groups):
    out = x.shape[2] - (weight.shape[2] - 1) * dilation
    if out == 0:
        return mint.zeros((x.shape[0], weight.shape[0], 0))
    return _conv1d(x, weight, bias, _settings(dilation, groups))


def conv_transpose1d(x, weight, bias, stride):
    return _conv_transpose1d(x, weight, bias, _settings(stride))
