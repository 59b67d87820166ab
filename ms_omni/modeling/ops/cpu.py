"""The operators as C++ kernels for float32 on CPU (`kernels.cpp`), one launch each where MindSpore needs several.

A launch costs more than the work of a small operator, so the number of launches is what counts in decoding. Each
function leaves to `reference` what its kernel is not for: other types. Large work has kernels of its own: `cpu_dense`
(products), `cpu_attention`, `cpu_vocoder` (sums in a fixed order, which `stable` asks for).
They have no gradient: what is recorded for one runs on `reference`. Importing this module compiles the kernels; it raises
`OSError` where that cannot be done.
"""

import functools

import mindspore as ms
import numpy as np
from mindspore import Tensor

from . import cpu_attention, cpu_dense, cpu_fused, cpu_vocoder, reference
from .cpu_kernel import kernel, refusal  # noqa: F401
from .reference import (  # noqa: F401
    add_rows,
    clip,
    concat,
    cross_entropy,
    embedding,
    embedding_part,
    expert_load,
    gather_rows,
    quick_gelu,
    relu,
    scatter_rows,
    write_rows,
)

ATTENTION_SCORES = 1 << 13
"""Up to this many scores per head an `attention` takes each query by itself; more are computed in tiles."""
ATTENTION_QUERIES = 8
GATHERED_ROWS = 1 << 30  # the kernel groups by expert itself, so it can be part of a graph at any size


_rms_norm = kernel("kernels", "rms_norm")
_layer_norm = kernel("kernels", "layer_norm")
_gelu = kernel("kernels", "gelu")
_gelu_tanh = kernel("kernels", "gelu_tanh")
_silu = kernel("kernels", "silu")
_sigmoid = kernel("kernels", "sigmoid")
_swiglu = kernel("kernels", "swiglu")
_rotary = kernel("kernels", "rotary")
_route_topk = kernel("kernels", "route_topk", lambda *_: (ms.float32, ms.int32))
_scale_channels = kernel("kernels", "scale_channels")
_weighted_sum_rows = kernel("kernels", "weighted_sum_rows")
_transpose = kernel("kernels", "transpose", shape=lambda x, order: [x[place - 1] for place in order])
_argmax = kernel("kernels", "argmax", lambda _: ms.int32)
_draw = kernel("kernels", "draw", lambda *_: ms.int32)


@functools.cache
def _floats(*values):
    # Kernels take constants as arrays. Kept, because building one takes as long as a launch.
    return Tensor(np.array(values, np.float32))


@functools.cache
def _integers(*values):
    return Tensor(np.array(values, np.int32))


@functools.cache
def _order(axes):
    # Told by a shape: MindSpore remembers the shape of a result by the shapes of the inputs.
    return Tensor(np.zeros([axis + 1 for axis in axes], np.int32))


def _suits(x, *others):
    """Whether all are float32."""
    suits = x.dtype == ms.float32
    for other in others:
        suits = suits and other.dtype == ms.float32
    return suits


def linear(x, weight, bias=None, stable=False):
    return cpu_dense.linear(x, weight, bias) if _suits(x, weight) else reference.linear(x, weight, bias)


def rms_norm(x, weight, eps):
    if not _suits(x, weight):
        return reference.rms_norm(x, weight, eps)
    return _rms_norm(x, weight, _floats(eps))


def layer_norm(x, weight, bias, eps):
    if not _suits(x, weight, bias):
        return reference.layer_norm(x, weight, bias, eps)
    return _layer_norm(x, weight, bias, _floats(eps))


def gelu(x):
    return _gelu(x) if _suits(x) else reference.gelu(x)


def gelu_tanh(x):
    return _gelu_tanh(x) if _suits(x) else reference.gelu_tanh(x)


def silu(x):
    return _silu(x) if _suits(x) else reference.silu(x)


def sigmoid(x):
    return _sigmoid(x) if _suits(x) else reference.sigmoid(x)


def swiglu(gate_up):
    return _swiglu(gate_up) if _suits(gate_up) else reference.swiglu(gate_up)


def rotary(x, cos, sin):
    return _rotary(x, cos, sin) if _suits(x, cos, sin) else reference.rotary(x, cos, sin)


def attention(q, k, v, mask, scale, stable=False):
    queries = q.shape[1]
    large = queries > ATTENTION_QUERIES and queries * k.shape[2] > ATTENTION_SCORES
    if not _suits(q, k, v):
        return reference.attention(q, k, v, mask, scale)
    kernel = cpu_attention.tiles if large and not stable else cpu_attention.queries
    return kernel(q, k, v, _floats(scale)) if mask is None else kernel(q, k, v, _floats(scale), mask)


def packed_attention(q, k, v, segments, scale):
    if not _suits(q, k, v):
        return reference.packed_attention(q, k, v, segments, scale)
    return cpu_attention.packed(q, k, v, segments, _floats(scale))


def route_topk(logits, k, normalise):
    if not _suits(logits) or k > logits.shape[-1]:
        return reference.route_topk(logits, k, normalise)
    return _route_topk(logits, _integers(*(int(normalise),) * k))


def experts(x, gate_up, down, weights, indices, first=None):
    if not _suits(x, gate_up, down, weights) or indices.dtype != ms.int32:
        return reference.experts(x, gate_up, down, weights, indices, first)
    return cpu_dense.experts(x, gate_up, down, weights, indices, _integers(-1 if first is None else first))


def conv1d(x, weight, bias, dilation=1, groups=1):
    if not _suits(x, weight, bias):
        return reference.conv1d(x, weight, bias, dilation, groups)
    return cpu_vocoder.conv1d(x, weight, bias, dilation, groups)


def conv_transpose1d(x, weight, bias, stride, trim=0):
    if not _suits(x, weight, bias):
        return reference.conv_transpose1d(x, weight, bias, stride, trim)
    return cpu_vocoder.conv_transpose1d(x, weight, bias, stride, trim)


def conv2d(x, weight, bias, stride, padding):
    if not _suits(x, weight, bias):
        return reference.conv2d(x, weight, bias, stride, padding)
    return cpu_dense.conv2d(x, weight, bias, stride, padding)


def snake_beta(x, alpha, beta):
    return cpu_vocoder.snake_beta(x, alpha, beta) if _suits(x, alpha, beta) else reference.snake_beta(x, alpha, beta)


def residual_unit(x, before, snake, conv, dilation, last_snake, last_conv):
    return cpu_vocoder.residual_unit(x, before, snake, conv, dilation, last_snake, last_conv)


def scale_channels(x, scale):
    return _scale_channels(x, scale) if _suits(x, scale) else reference.scale_channels(x, scale)


def weighted_sum_rows(x, index, weights):
    if not _suits(x, weights) or index.dtype != ms.int32:
        return reference.weighted_sum_rows(x, index, weights)
    return _weighted_sum_rows(x, index, weights)


def transpose(x, axes):
    order = [axis for axis in axes if x.shape[axis] != 1]
    if order == sorted(order):  # only axes of length 1 move
        return x.reshape([x.shape[axis] for axis in axes])
    return _transpose(x, _order(tuple(axes))) if _suits(x) else reference.transpose(x, axes)


def argmax(x):
    return _argmax(x) if _suits(x) and x.ndim > 1 else reference.argmax(x)


def draw(logits, noise, temperature, top_k, top_p):
    if not _suits(logits, noise):
        return reference.draw(logits, noise, temperature, top_k, top_p)
    return _draw(logits, noise, _floats(temperature, top_k, top_p))


def prepare(weights, kept=None):
    return cpu_fused.prepare(weights, kept)


def decoder_step(x, cos, sin, head, cache, prepared):
    return cpu_fused.decoder_step(x, cos, sin, head, cache, prepared)


def code_frame(hidden, code, noise, sampling, prepared):
    return cpu_fused.code_frame(hidden, code, noise, sampling, prepared)
