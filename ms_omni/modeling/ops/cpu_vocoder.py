"""The vocoder's convolutions with one order of summation, as C++ kernels (`wave.cpp`): float32 on CPU.

MindSpore's own choose the order by the shape, so that the pieces of a stream differ from the whole in the last bits, and
a vocoder amplifies that. Here equal inputs give equal bits, however long x is and whatever the other rows are.
"""

import functools

import mindspore as ms
from mindspore import mint

from .cpu_kernel import kernel

_conv1d = kernel("wave", "conv1d")
_conv_transpose1d = kernel("wave", "conv_transpose1d")
_residual_unit = kernel("wave", "residual_unit")
snake_beta = kernel("wave", "snake_beta")


@functools.cache
def _settings(*values):
    # Told by a shape: MindSpore remembers the shape of a result by the shapes of the inputs.
    return mint.zeros(values, dtype=ms.int32)


def conv1d(x, weight, bias, dilation, groups):
    out = x.shape[2] - (weight.shape[2] - 1) * dilation
    if out == 0:
        return mint.zeros((x.shape[0], weight.shape[0], 0))
    return _conv1d(x, weight, bias, _settings(dilation, groups))


def conv_transpose1d(x, weight, bias, stride, trim):
    if (x.shape[2] - 1) * stride + weight.shape[2] <= 2 * trim:
        return mint.zeros((x.shape[0], weight.shape[1], 0))
    return _conv_transpose1d(x, weight, bias, _settings(stride, trim + 1))


def residual_unit(x, before, snake, conv, dilation, last_snake, last_conv):
    return _residual_unit(x, before, *snake, *conv, *last_snake, *last_conv, _settings(dilation))
