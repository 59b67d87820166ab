"""The operators as C++ kernels for float32 on CPU, one launch each where MindSpore needs several.

A launch costs more than the work of a small operator, so the number of launches is what counts in decoding (`kernels.cpp`).
Importing this module compiles the kernels; it raises `OSError` where that cannot be done. Large work:

- `dense.cpp`: products of prompts, pictures and sound. Tiles in registers over what is packed of both sides (`gemm.h`); matrices in
  bfloat16 and codes of 8 and 4 bits are widened while they are packed (`panels.h`), so a product with them is one of float32. With few
  rows, as most experts have, they are widened in registers instead (`few_rows.h`). On processors with matrix units (AMX) those
  matrices are multiplied there, in float32's precision (`amx.h`).
- `fused.cpp`: steps of decoders in one launch. Their few rows stream all weights past (`products.h`), and codes are summed as whole
  numbers where the processor multiplies bytes (VNNI, `digits.h`).
- `attention.cpp`: attention of many queries, scores never stored as a whole.
- `layers.cpp`: whole layers of encoders, and of decoders that read a prompt: the same functions without a launch between.
- `wave.cpp`: the vocoder's convolutions with one order of summation. MindSpore's own choose the order by the shape, so that
  the pieces of a stream differ from the whole in the last bits, and a vocoder amplifies that. Here equal inputs give equal
  bits, however long x is and whatever the other rows are.
"""

import functools
from collections.abc import Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, mint

from . import build, cpu_encoder, cpu_fused, cpu_kernel
from .cpu_kernel import kernel, lengths
from .fused import EncoderWeights, ProjectorWeights
from .reference import Reference
from .stored import Matrix, Pair

ATTENTION_SCORES = 1 << 13
"""Up to this many scores per head an `attention` takes each query by itself; more are computed in tiles."""
ATTENTION_QUERIES = 8

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
_transpose = kernel("kernels", "transpose", shape=lambda x, order: [x[length - 1] for length in order])
_argmax = kernel("kernels", "argmax", lambda _: ms.int32)
_draw = kernel("kernels", "draw", lambda *_: ms.int32)
_linear = kernel("dense", "linear")
_linear_coded = kernel("dense", "linear_coded")
_embedding = kernel("dense", "embedding", lambda *_: ms.float32)
_embedding_coded = kernel("dense", "embedding_coded", lambda *_: ms.float32)
_conv2d = kernel("dense", "conv2d")
_downsample = kernel("dense", "downsample")
_experts = kernel("dense", "experts")
_experts_coded = kernel("dense", "experts_coded")
_attention = kernel("attention", "attention")
_attention_tiles = kernel("attention", "attention_tiles")
_packed_attention = kernel("attention", "packed_attention")
_encode_rows = kernel("attention", "encode_rows", lambda _: (ms.int8, ms.float32))
_paged_attention = kernel("attention", "paged_attention")
_paged_attention_tiles = kernel("attention", "paged_attention_tiles")
_conv1d = kernel("wave", "conv1d")
_conv_transpose1d = kernel("wave", "conv_transpose1d")
_residual_unit = kernel("wave", "residual_unit")
_snake_beta = kernel("wave", "snake_beta")


class Cpu(Reference):
    """Each method leaves to `Reference` what its kernel is not for, which is other types; there are no gradients."""

    VECTORS = build.vectors()
    GRAPH_EXPERT_ROWS = 1 << 30  # the kernel groups by expert itself, so it can be part of a graph at any size

    PAGES_PROMPTS = True

    KEEPS_BFLOAT16 = True

    READS_CHUNKS = True

    refusal = staticmethod(cpu_kernel.refusal)
    decoder_step = staticmethod(cpu_fused.decoder_step)
    decoder_chunk = staticmethod(cpu_fused.decoder_chunk)
    code_frame = staticmethod(cpu_fused.code_frame)
    encoder_states = staticmethod(cpu_encoder.encoder_states)
    projector = staticmethod(cpu_encoder.projector)

    @staticmethod
    def prepare(weights: Any, previous: Any = None) -> Any:
        if isinstance(weights, (EncoderWeights, ProjectorWeights)):
            return cpu_encoder.prepare(weights, previous)
        return cpu_fused.prepare(weights, previous)

    @staticmethod
    def linear(x: Tensor, weight: Matrix, bias: Tensor | None = None, stable: bool = False) -> Tensor:
        if x.dtype != ms.float32 or not _stored(weight):
            return Reference.linear(x, weight, bias)
        biases = () if bias is None else (bias,)
        return _linear_coded(x, *_parts(weight), *biases) if isinstance(weight, tuple) else _linear(x, weight, *biases)

    @staticmethod
    def embedding(ids: Tensor, weight: Matrix, dtype: ms.Type | None = None) -> Tensor:
        return Cpu.embedding_part(ids, weight, None, dtype)

    @staticmethod
    def embedding_part(ids: Tensor, weight: Matrix, first: int | None, dtype: ms.Type | None = None) -> Tensor:
        coded = isinstance(weight, tuple)
        if (dtype or (ms.float32 if coded else weight.dtype)) != ms.float32 or not _stored(weight):
            return (
                Reference.embedding(ids, weight, dtype)
                if first is None
                else Reference.embedding_part(ids, weight, first, dtype)
            )
        ids, first = ids.astype(ms.int32), _integers(-1 if first is None else first)
        if not coded:
            return _embedding(ids, weight, first)
        codes, scales, offsets = _parts(weight)
        width = codes.shape[-1] * (2 if codes.dtype == ms.uint8 else 1)
        return _embedding_coded(ids, codes, scales, offsets, lengths(width), first)

    @staticmethod
    def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return _rms_norm(x, weight, _floats(eps)) if _suits(x, weight) else Reference.rms_norm(x, weight, eps)

    @staticmethod
    def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        if not _suits(x, weight, bias):
            return Reference.layer_norm(x, weight, bias, eps)
        return _layer_norm(x, weight, bias, _floats(eps))

    @staticmethod
    def gelu(x: Tensor) -> Tensor:
        return _gelu(x) if _suits(x) else Reference.gelu(x)

    @staticmethod
    def gelu_tanh(x: Tensor) -> Tensor:
        return _gelu_tanh(x) if _suits(x) else Reference.gelu_tanh(x)

    @staticmethod
    def silu(x: Tensor) -> Tensor:
        return _silu(x) if _suits(x) else Reference.silu(x)

    @staticmethod
    def sigmoid(x: Tensor) -> Tensor:
        return _sigmoid(x) if _suits(x) else Reference.sigmoid(x)

    @staticmethod
    def swiglu(gate_up: Tensor) -> Tensor:
        return _swiglu(gate_up) if _suits(gate_up) else Reference.swiglu(gate_up)

    @staticmethod
    def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return _rotary(x, cos, sin) if _suits(x, cos, sin) else Reference.rotary(x, cos, sin)

    @staticmethod
    def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, stable: bool = False) -> Tensor:
        if not _suits(q, k, v):
            return Reference.attention(q, k, v, mask, scale)
        queries = q.shape[1]
        large = queries > ATTENTION_QUERIES and queries * k.shape[2] > ATTENTION_SCORES
        kernel = _attention_tiles if large and not stable else _attention
        return kernel(q, k, v, _floats(scale)) if mask is None else kernel(q, k, v, _floats(scale), mask)

    @staticmethod
    def paged_attention(
        q: Tensor, keys: Matrix, values: Matrix, tables: Tensor, first: Tensor, lengths: Tensor, scale: float
    ) -> Tensor:
        k, v, scales = keys, values, ()
        if isinstance(keys, tuple):
            k, v, scales = keys[0], values[0], (keys[1], values[1])
        if not _suits(q) or (not scales and not _suits(k, v)):
            return Reference.paged_attention(q, keys, values, tables, first, lengths, scale)
        kernel = _paged_attention_tiles if q.shape[1] > 1 and k.shape[2] % 16 == 0 else _paged_attention
        return kernel(q, k, v, tables, first, lengths, _floats(scale), *scales)

    @staticmethod
    def write_rows(buffer: Any, index: Tensor, rows: Tensor) -> Any:
        if not (isinstance(buffer, tuple) and _suits(rows)):
            return Reference.write_rows(buffer, index, rows)
        codes, scales = _encode_rows(rows)
        Reference.write_rows(buffer[0], index, codes)
        Reference.write_rows(buffer[1], index, scales)
        return buffer

    @staticmethod
    def packed_attention(q: Tensor, k: Tensor, v: Tensor, segments: tuple[tuple[int, int], ...], scale: float) -> Tensor:
        if not _suits(q, k, v):
            return Reference.packed_attention(q, k, v, segments, scale)
        return _packed_attention(q, k, v, _floats(scale), cpu_encoder.segment_ends(segments))

    @staticmethod
    def route_topk(logits: Tensor, k: int, normalise: bool) -> tuple[Tensor, Tensor]:
        if not _suits(logits) or k > logits.shape[-1]:
            return Reference.route_topk(logits, k, normalise)
        return _route_topk(logits, _integers(*(int(normalise),) * k))

    @staticmethod
    def experts(
        x: Tensor, gate_up: Matrix, down: Matrix, weights: Tensor, indices: Tensor, first: int | None = None
    ) -> Tensor:
        coded = isinstance(gate_up, tuple)
        fits = _stored(gate_up) and _stored(down) and coded == isinstance(down, tuple)
        if not fits or not _suits(x, weights) or indices.dtype != ms.int32:
            return Reference.experts(x, gate_up, down, weights, indices, first)
        offset = _integers(-1 if first is None else first)
        if coded:
            return _experts_coded(x, *_parts(gate_up), *_parts(down), weights, indices, offset)
        return _experts(x, gate_up, down, weights, indices, offset)

    @staticmethod
    def conv1d(x: Tensor, weight: Tensor, bias: Tensor, dilation: int = 1, groups: int = 1) -> Tensor:
        if not _suits(x, weight, bias):
            return Reference.conv1d(x, weight, bias, dilation, groups)
        if x.shape[2] == (weight.shape[2] - 1) * dilation:
            return mint.zeros((x.shape[0], weight.shape[0], 0))
        return _conv1d(x, weight, bias, lengths(dilation, groups))

    @staticmethod
    def conv_transpose1d(x: Tensor, weight: Tensor, bias: Tensor, stride: int, trim: int = 0) -> Tensor:
        if not _suits(x, weight, bias):
            return Reference.conv_transpose1d(x, weight, bias, stride, trim)
        if (x.shape[2] - 1) * stride + weight.shape[2] <= 2 * trim:
            return mint.zeros((x.shape[0], weight.shape[1], 0))
        return _conv_transpose1d(x, weight, bias, lengths(stride, trim + 1))

    @staticmethod
    def conv2d(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
        if not _suits(x, weight, bias):
            return Reference.conv2d(x, weight, bias, stride, padding)
        return _conv2d(x, weight, bias, lengths(stride, padding + 1))

    @classmethod
    def downsample(cls, x: Tensor, layers: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        parts = [part for layer in layers for part in layer]
        if not _suits(x, *parts) or len(layers) != 3 or tuple(parts[0].shape[2:]) != (3, 3):
            return super().downsample(x, layers)
        return _downsample(x, *parts)

    @staticmethod
    def snake_beta(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        return _snake_beta(x, alpha, beta) if _suits(x, alpha, beta) else Reference.snake_beta(x, alpha, beta)

    @classmethod
    def residual_unit(
        cls, x: Tensor, before: Tensor, snake: Pair, conv: Pair, dilation: int, last_snake: Pair, last_conv: Pair
    ) -> Tensor:
        if not _suits(x):
            return super().residual_unit(x, before, snake, conv, dilation, last_snake, last_conv)
        return _residual_unit(x, before, *snake, *conv, *last_snake, *last_conv, lengths(dilation))

    @staticmethod
    def scale_channels(x: Tensor, scale: Tensor) -> Tensor:
        return _scale_channels(x, scale) if _suits(x, scale) else Reference.scale_channels(x, scale)

    @staticmethod
    def weighted_sum_rows(x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        if not _suits(x, weights) or index.dtype != ms.int32:
            return Reference.weighted_sum_rows(x, index, weights)
        return _weighted_sum_rows(x, index, weights)

    @staticmethod
    def transpose(x: Tensor, axes: tuple[int, ...]) -> Tensor:
        order = [axis for axis in axes if x.shape[axis] != 1]
        if order == sorted(order):  # only axes of length 1 move
            return x.reshape([x.shape[axis] for axis in axes])
        return _transpose(x, _order(tuple(axes))) if _suits(x) else Reference.transpose(x, axes)

    @staticmethod
    def argmax(x: Tensor) -> Tensor:
        return _argmax(x) if _suits(x) and x.ndim > 1 else Reference.argmax(x)

    @staticmethod
    def draw(logits: Tensor, noise: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
        if not _suits(logits, noise):
            return Reference.draw(logits, noise, temperature, top_k, top_p)
        return _draw(logits, noise, _floats(temperature, top_k, top_p))


def _suits(x, *others):
    """Whether all are tensors of float32."""
    suits = x.dtype == ms.float32
    for other in others:
        suits = suits and not isinstance(other, tuple) and other.dtype == ms.float32
    return suits


def _stored(weight):
    """Whether kernels of `dense.cpp` take it as it is: float32, bfloat16, or codes."""
    return isinstance(weight, tuple) or weight.dtype in (ms.float32, ms.bfloat16)


def _parts(weight):
    """Of a `Quantised`, with an array of a single number where there are no offsets."""
    codes, scales, offsets = weight
    return codes, scales, _floats(0.0) if offsets is None else offsets


# Kernels take constants as arrays. These are cached, because building one takes as long as a launch. Where the shape of the
# result depends on them they are given as a shape: MindSpore remembers the shape of a result by the shapes of the inputs.


@functools.cache
def _floats(*values):
    return Tensor(np.array(values, np.float32))


@functools.cache
def _integers(*values):
    return Tensor(np.array(values, np.int32))


@functools.cache
def _order(axes):
    return Tensor(np.zeros([axis + 1 for axis in axes], np.int32))
