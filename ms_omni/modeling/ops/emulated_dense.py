"""Norms, activations, rotary positions, products and convolutions of `ascend_kernels` in numpy (see `emulation.py`)."""

import functools
import math

import numpy as np
from mindspore import ops

from .emulation_rules import FLOATS, primitive, require, same_type

_ERF = np.frompyfunc(math.erf, 1, 1)


@functools.cache
def _rms_norm(eps):
    def shape(x, weight):
        require(weight == x[-1:], f"weight {weight} for {x}")
        require(0 < eps <= 1, f"eps {eps}")
        return x

    def compute(x, weight):
        return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + np.float32(eps)) * weight

    return primitive(compute, shape, lambda *types: same_type(FLOATS, *types))


def rms_norm(x, weight, eps):
    return _rms_norm(eps)(x, weight)


@functools.cache
def _layer_norm(eps):
    def shape(x, weight, bias):
        require(weight == bias == x[-1:], f"weight {weight} and bias {bias} for {x}")
        return x

    def compute(x, weight, bias):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + np.float32(eps)) * weight + bias

    return primitive(compute, shape, lambda *types: same_type(FLOATS, *types))


def layer_norm(x, weight, bias, eps):
    return _layer_norm(eps)(x, weight, bias)


@functools.cache
def _gelu(approximate):
    def compute(x):
        if approximate == "tanh":
            return 0.5 * x * (1 + np.tanh(np.float32(math.sqrt(2 / math.pi)) * (x + np.float32(0.044715) * x**3)))
        return 0.5 * x * (1 + _ERF(x / np.float32(math.sqrt(2))).astype(np.float32))

    require(approximate in ("none", "tanh"), f"approximate {approximate!r}")
    return primitive(compute, lambda x: x, lambda x: same_type(FLOATS, x))


def gelu(x, approximate):
    return _gelu(approximate)(x)


def _swiglu_shape(x):
    require(x[-1] % 2 == 0, f"{x[-1]} channels, expected an even number")
    return [*x[:-1], x[-1] // 2]


def _swiglu_compute(x):
    gate, up = np.split(x, 2, -1)
    with np.errstate(over="ignore"):
        return gate / (1 + np.exp(-gate)) * up


_swiglu = primitive(_swiglu_compute, _swiglu_shape, lambda x: same_type(FLOATS, x))


def swiglu(x):
    return _swiglu(x)


def _rotary_shape(x, cos, sin):
    require(len(x) == 4 and cos == sin == [1, x[1], 1, x[3]], f"x {x} (BSND), cos {cos}, sin {sin} (1S1D)")
    require(x[3] % 2 == 0 and x[3] < 896 and x[0] < 1000 and x[2] < 1000, f"x {x}")
    return x


def _rotary_compute(x, cos, sin):
    require(max(np.abs(cos).max(), np.abs(sin).max()) <= 1.00001, "cosines and sines beyond 1")
    low, high = np.split(x, 2, -1)
    return x * cos + np.concatenate([-high, low], -1) * sin


_rotary = primitive(_rotary_compute, _rotary_shape, lambda *types: same_type(FLOATS, *types))


def rotary_position_embedding(x, cos, sin):
    return _rotary(x, cos, sin)


def _dense_shape(x, weight, bias=None):
    require(len(weight) == 2 and x[-1] == weight[1], f"x {x}, weight {weight}")
    require(bias is None or bias == weight[:1], f"bias {bias}, weight {weight}")
    return [*x[:-1], weight[0]]


_dense = primitive(lambda x, weight: x @ weight.T, _dense_shape, lambda *types: same_type(FLOATS, *types))
_dense_bias = primitive(lambda x, weight, bias: x @ weight.T + bias, _dense_shape, lambda *types: same_type(FLOATS, *types))


def dense(x, weight, bias):
    if x.size == 0:  # MindSpore hands no empty array to numpy
        return ops.zeros((*x.shape[:-1], weight.shape[0]), x.dtype)
    return _dense(x, weight) if bias is None else _dense_bias(x, weight, bias)


@functools.cache
def _conv2d(stride, padding, dilation, groups):
    def out_size(x, weight, axis):
        reach = (weight[axis] - 1) * dilation[axis - 2] + 1
        padded = x[axis] + 2 * padding[axis - 2]
        require(padded >= reach, f"x {x} is smaller than the kernel {weight}")
        return (padded - reach) // stride[axis - 2] + 1

    def shape(x, weight, bias):
        require(len(x) == len(weight) == 4 and x[1] == weight[1] * groups, f"x {x}, weight {weight}, {groups} groups")
        require(bias == weight[:1] and weight[0] % groups == 0, f"bias {bias}, weight {weight}, {groups} groups")
        return [x[0], weight[0], out_size(x, weight, 2), out_size(x, weight, 3)]

    def compute(x, weight, bias):
        height, width = out_size(x.shape, weight.shape, 2), out_size(x.shape, weight.shape, 3)
        x = np.pad(x, ((0, 0), (0, 0), (padding[0],) * 2, (padding[1],) * 2))
        batch, channels = len(x), weight.shape[1]
        kernels = weight.reshape(groups, -1, *weight.shape[1:])  # [g, M/g, C/g, kh, kw]
        total = np.zeros((batch, groups, kernels.shape[1], height * width), np.float32)
        for row, column in np.ndindex(*weight.shape[2:]):
            top, left = row * dilation[0], column * dilation[1]
            rows = slice(top, top + (height - 1) * stride[0] + 1, stride[0])
            columns = slice(left, left + (width - 1) * stride[1] + 1, stride[1])
            total += kernels[..., row, column] @ x[:, :, rows, columns].reshape(batch, groups, channels, -1)
        return total.reshape(batch, -1, height, width) + bias[:, None, None]

    return primitive(compute, shape, lambda *types: same_type(FLOATS, *types))


def conv2d(x, weight, bias, stride, padding, dilation, groups):
    return _conv2d(stride, padding, dilation, groups)(x, weight, bias)
