"""Every operator written with MindSpore kernels that exist on CPU and on Ascend.

The spellings are chosen for MindSpore's CPU backend, where they differ by orders of magnitude: `ops.MatMul` instead of
`mint.nn.functional.linear` (100x), a materialised `tile` and a same-shape product instead of a broadcast one (5x), a
(1, K) `Conv2D` for one-dimensional convolution. Signatures and meanings are documented in `ops/__init__.py`.

A `Quantised` is tested for as a tuple: in a graph it is one, as MindSpore runs named tuples in Python.

`stable` is accepted and ignored: MindSpore's products have no option for the order of summation.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import mindspore as ms
from mindspore import Parameter, Tensor, mint, ops

from .stored import Matrix, Pair, count_of, dense, encoded, gathered, gathered_experts, grouped_experts, usual_dtype, widened

# Built once: constructing a primitive costs as much as a small product.
_matmul = ops.MatMul()
_matmul_transposed = ops.MatMul(transpose_b=True)
_batch_matmul = ops.BatchMatMul()
_batch_matmul_transposed = ops.BatchMatMul(transpose_b=True)
_bias_add = ops.BiasAdd()
_scatter_update = ops.ScatterUpdate()
_halve = ops.Split(-1, 2)  # mint.chunk has no kernel in a graph on CPU
MASKED = -1e9


class Reference:
    """Every operator but the whole steps (`decoder_step`, `decoder_chunk`, `code_frame`, `encoder_states`, `projector`); what a subclass does not define comes from here.

    Static methods, as MindSpore compiles functions into graphs. One that is composed of other operators and never compiled is
    a classmethod, so that it uses those of its class.
    """

    GRAPH_EXPERT_ROWS = 64
    """Up to this many (token, expert) pairs `experts` can be part of a graph: the weights are gathered per pair, without
    reading on the host."""

    PAGES_PROMPTS = False
    """Whether `paged_attention` does without a copy for more than one query."""

    CACHES_CODES = True
    """Whether keys and values may be stored as codes of 8 bits."""

    READS_CHUNKS = False
    """Whether `decoder_chunk` reads prompts with weights that are not packed."""

    CHOOSES = False
    """Whether ids are sampled on the device rather than on the host."""

    KEEPS_BFLOAT16 = False
    """Whether it has kernels for matrices in bfloat16 beside rows in float32; `Reference` widens them at every call."""

    VECTORS = ""
    OUTCOMES: ClassVar[dict[str, str]] = {}
    """operator -> result of the comparison on this device, in words (see `settled`)."""

    OTHER_FORMS: ClassVar[dict[str, tuple]] = {}
    """operator -> functions that compute it in other ways, in the order of preference behind the method itself."""

    @staticmethod
    def linear(x: Tensor, weight: Matrix, bias: Tensor | None = None, stable: bool = False) -> Tensor:
        rows, weight = x.reshape(-1, x.shape[-1]), dense(weight, x.dtype)  # [N, K]
        y = _matmul_transposed(rows, weight)  # [N, M]
        if bias is not None:
            y = _bias_add(y, bias)
        return y.reshape(*x.shape[:-1], weight.shape[0])

    @staticmethod
    def embedding(ids: Tensor, weight: Matrix, dtype: ms.Type | None = None) -> Tensor:
        dtype = dtype or usual_dtype(weight)
        return dense(gathered(widened(weight, dtype), ids), dtype)

    @staticmethod
    def embedding_part(ids: Tensor, weight: Matrix, first: int, dtype: ms.Type | None = None) -> Tensor:
        local_index = ids.astype(ms.int32) - first
        inside = ops.logical_and(local_index >= 0, local_index < count_of(weight))
        rows = Reference.embedding(local_index * inside.astype(ms.int32), weight, dtype)
        return ops.masked_fill(rows, mint.unsqueeze(ops.logical_not(inside), -1), 0.0)

    @staticmethod
    def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).astype(ms.float32)  # [N, D]
        n, d = rows.shape
        scale = mint.rsqrt(mint.mean(mint.square(rows), -1, True) + eps)  # [N, 1]
        rows = (rows * ops.tile(scale, (1, d))).astype(x.dtype)
        return (rows * ops.tile(weight.reshape(1, d), (n, 1))).reshape(x.shape)

    @staticmethod
    def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).astype(ms.float32)  # [N, D]
        n, d = rows.shape
        rows = rows - ops.tile(mint.mean(rows, -1, True), (1, d))
        rows = rows * ops.tile(mint.rsqrt(mint.mean(mint.square(rows), -1, True) + eps), (1, d))
        rows = rows.astype(x.dtype) * ops.tile(weight.reshape(1, d), (n, 1))
        return _bias_add(rows, bias).reshape(x.shape)

    @staticmethod
    def add_layer_norm(x: Tensor, added: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        total = x + added
        return Reference.layer_norm(total, weight, bias, eps), total

    @staticmethod
    def gelu(x: Tensor) -> Tensor:
        return x * 0.5 * (ops.erf(x * 0.7071067811865476) + 1.0)

    @staticmethod
    def gelu_tanh(x: Tensor) -> Tensor:
        # tanh(u) = 2 sigmoid(2u) - 1, and MindSpore's CPU sigmoid is the fast one of the two.
        return x * ops.sigmoid((x + x * x * x * 0.044715) * 1.5957691216057308)

    @staticmethod
    def quick_gelu(x: Tensor) -> Tensor:
        return x * ops.sigmoid(x * 1.702)

    @staticmethod
    def silu(x: Tensor) -> Tensor:
        return ops.silu(x)

    @staticmethod
    def sigmoid(x: Tensor) -> Tensor:
        return ops.sigmoid(x)

    @staticmethod
    def relu(x: Tensor) -> Tensor:
        return ops.relu(x)

    @staticmethod
    def swiglu(gate_up: Tensor) -> Tensor:
        gate, up = _halve(gate_up)
        return ops.silu(gate) * up

    @staticmethod
    def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        heads = x.shape[-2]
        repeat = (1,) * (x.ndim - 2) + (heads, 1)
        cos = ops.tile(mint.unsqueeze(cos, -2), repeat)  # [..., H, D/2]
        sin = ops.tile(mint.unsqueeze(sin, -2), repeat)
        low, high = _halve(x.astype(ms.float32))
        return mint.cat((low * cos - high * sin, high * cos + low * sin), -1).astype(x.dtype)

    @staticmethod
    def rotary_wide(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return Reference.rotary(x, _halve(cos)[0], _halve(sin)[0])

    @staticmethod
    def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, stable: bool = False) -> Tensor:
        b, s, h, d = q.shape
        t, kv_heads = k.shape[2], k.shape[1]
        group = h // kv_heads
        # One batched product per kv head: the query heads that share it are stacked as rows, nothing is repeated.
        q = mint.permute(q, (0, 2, 1, 3)).reshape(b * kv_heads, group * s, d)
        k = k.reshape(b * kv_heads, t, d)
        v = v.reshape(b * kv_heads, t, v.shape[-1])
        scores = _batch_matmul_transposed(q, k).astype(ms.float32) * scale  # [B*K, G*S, T]
        if mask is not None:
            tiled = ops.tile(mask.reshape(b, 1, s, t), (1, h, 1, 1))
            scores = scores + tiled.reshape(b * kv_heads, group * s, t)
        probs = ops.softmax(scores, -1).astype(v.dtype)
        out = _batch_matmul(probs, v).reshape(b, h, s, v.shape[-1])
        return mint.permute(out, (0, 2, 1, 3)).reshape(b, s, -1)

    @staticmethod
    def paged_attention(
        q: Tensor, keys: Matrix, values: Matrix, tables: Tensor, first: Tensor, lengths: Tensor, scale: float
    ) -> Tensor:
        b, s = q.shape[:2]
        blocks = tables.reshape(-1)
        keys = _of_rows(Reference.gather_rows(keys, blocks), b)
        values = _of_rows(Reference.gather_rows(values, blocks), b)
        t = keys.shape[2]
        # Positions behind a row may hold NaN, and zero times NaN is NaN.
        beyond = ops.tile(ops.arange(t).reshape(1, t), (b, 1)) >= ops.tile(lengths.reshape(b, 1), (1, t))  # [B, T]
        keys = ops.masked_fill(keys, beyond.reshape(b, 1, t, 1), 0.0).astype(q.dtype)
        values = ops.masked_fill(values, beyond.reshape(b, 1, t, 1), 0.0).astype(q.dtype)
        return Reference.attention(q, keys, values, _paged_mask(first, lengths, s, t), scale)

    @staticmethod
    def packed_attention(q: Tensor, k: Tensor, v: Tensor, segments: tuple[tuple[int, int], ...], scale: float) -> Tensor:
        _n, h, d = q.shape
        outputs, start = [], 0
        for length, count in segments:  # equal neighbours run as one batch
            stop = start + length * count
            parts = [x[start:stop].reshape(count, length, h, d) for x in (q, k, v)]
            keys, values = (mint.permute(x, (0, 2, 1, 3)).contiguous() for x in parts[1:])  # [count, H, length, D]
            outputs.append(Reference.attention(parts[0], keys, values, None, scale).reshape(stop - start, h * d))
            start = stop
        return outputs[0] if len(outputs) == 1 else mint.cat(outputs, 0)

    @staticmethod
    def route_topk(logits: Tensor, k: int, normalise: bool) -> tuple[Tensor, Tensor]:
        probs = ops.softmax(logits.astype(ms.float32), -1)
        weights, indices = ops.topk(probs, k, dim=-1)
        if normalise:
            total = mint.sum(weights, -1, True)
            weights = weights / ops.tile(total, (1, k))
        return weights, indices.astype(ms.int32)

    @staticmethod
    def experts(
        x: Tensor, gate_up: Matrix, down: Matrix, weights: Tensor, indices: Tensor, first: int | None = None
    ) -> Tensor:
        if indices.shape[0] * indices.shape[1] <= Reference.GRAPH_EXPERT_ROWS:
            return gathered_experts(x, gate_up, down, weights, indices, first)
        return grouped_experts(x, gate_up, down, weights, indices, first)

    @staticmethod
    def conv1d(x: Tensor, weight: Tensor, bias: Tensor, dilation: int = 1, groups: int = 1) -> Tensor:
        convolution = _conv1d(weight.shape[0], weight.shape[-1], dilation, groups)
        y = convolution(mint.unsqueeze(x, 2), mint.unsqueeze(weight, 2))  # [B, M, 1, T]
        return _bias_add(y, bias).squeeze(2)

    @staticmethod
    def conv_transpose1d(x: Tensor, weight: Tensor, bias: Tensor, stride: int, trim: int = 0) -> Tensor:
        b, _, t = x.shape
        channels, kernel = weight.shape[1:]
        shape = (b, channels, 1, (t - 1) * stride + kernel)
        y = _conv_transpose1d(weight.shape[0], kernel, stride)(mint.unsqueeze(x, 2), mint.unsqueeze(weight, 2), shape)
        y = _bias_add(y, bias).squeeze(2)
        return y[..., trim : max(shape[-1] - trim, trim)] if trim else y

    @staticmethod
    def conv2d(x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int) -> Tensor:
        kernel = tuple(weight.shape[2:])
        return _bias_add(ops.Conv2D(weight.shape[0], kernel, pad_mode="pad", pad=padding, stride=stride)(x, weight), bias)

    @classmethod
    def downsample(cls, x: Tensor, layers: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        for weight, bias in layers:
            x = cls.gelu(cls.conv2d(x, weight, bias, 2, 1))
        return x

    @staticmethod
    def snake_beta(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        b, c, t = x.shape
        alpha = ops.tile(ops.exp(alpha).reshape(1, c, 1), (b, 1, t))
        beta = ops.tile((1.0 / (ops.exp(beta) + 1e-9)).reshape(1, c, 1), (b, 1, t))
        return x + beta * mint.square(ops.sin(x * alpha))

    @staticmethod
    def scale_channels(x: Tensor, scale: Tensor) -> Tensor:
        repeat = tuple(x.shape[:-1]) + (1,)
        return x * ops.tile(scale.reshape((1,) * (x.ndim - 1) + (-1,)), repeat)

    @staticmethod
    def scatter_rows(x: Tensor, index: Tensor, rows: Tensor) -> Tensor:
        return ops.tensor_scatter_update(x, mint.unsqueeze(index, -1), rows)

    @staticmethod
    def add_rows(x: Tensor, index: Tensor, rows: Tensor) -> Tensor:
        return ops.tensor_scatter_add(x, mint.unsqueeze(index, -1), rows)

    @staticmethod
    def write_rows(buffer: Any, index: Tensor, rows: Tensor) -> Any:
        if not isinstance(buffer, tuple):
            return _scatter_update(buffer, index, rows)
        codes, scales = encoded(rows.astype(ms.float32))
        _scatter_update(buffer[0], index, codes)
        _scatter_update(buffer[1], index, scales)
        return buffer

    @staticmethod
    def gather_rows(x: Matrix, index: Tensor) -> Tensor:
        if not isinstance(x, tuple):
            return ops.gather(x, index, 0)
        codes, scales = ops.gather(x[0], index, 0), ops.gather(x[1], index, 0)
        return codes.astype(ms.float32) * ops.tile(scales, (1,) * (codes.ndim - 1) + (codes.shape[-1],))

    @staticmethod
    def weighted_sum_rows(x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        n, taps = index.shape
        rows = ops.gather(x, index.reshape(-1), 0).reshape(n, taps, -1)
        return _batch_matmul(weights.astype(x.dtype).reshape(n, 1, taps), rows).reshape(n, -1)

    @staticmethod
    def concat(parts: Sequence[Tensor], axis: int) -> Tensor:
        return mint.cat(tuple(parts), axis)

    @staticmethod
    def transpose(x: Tensor, axes: tuple[int, ...]) -> Tensor:
        return mint.permute(x, axes).contiguous()

    @staticmethod
    def clip(x: Tensor, low: float, high: float) -> Tensor:
        return ops.clamp(x, low, high) + (x - x)  # the CPU's clamp returns a number for NaN

    @staticmethod
    def argmax(x: Tensor) -> Tensor:
        return ops.argmax(x, -1).astype(ms.int32)

    @staticmethod
    def draw(logits: Tensor, noise: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
        size = logits.shape[-1] if top_k == 0 or top_k > logits.shape[-1] else top_k
        scores, ids = ops.topk(logits.astype(ms.float32) / temperature, size, dim=-1)  # [B, k], descending
        probs = ops.softmax(scores, -1)
        before = ops.cumsum(probs, -1) - probs  # probability of likelier tokens
        total = ops.cumsum(probs * (before < top_p).astype(ms.float32), -1)
        target = noise * total[:, -1:]
        index = (total <= target).astype(ms.int32).sum(-1, keepdims=True)
        index = ops.minimum(index, Tensor(size - 1, ms.int32))
        return ops.gather_elements(ids, 1, index).astype(ms.int32)

    @staticmethod
    def penalised(logits: Tensor, planes: Tensor, factors: Tensor, biases: Tensor) -> Tensor:
        logits = logits.astype(ms.float32)
        factor, bias = ops.gather(planes, factors, 0), ops.gather(planes, biases, 0)
        return ops.minimum(logits * factor, logits / factor) + bias

    @staticmethod
    def likeliest(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
        values, ids = ops.max(logits, -1, True) if count == 1 else ops.topk(logits, count, dim=-1)
        return values, ids.astype(ms.int64)

    @staticmethod
    def race(
        values: Tensor, before: Tensor, inverse_temperature: Tensor, excluded: Tensor, room: Tensor, noise: Tensor
    ) -> Tensor:
        rows, count = values.shape
        scores = values.astype(ms.float32) * ops.tile(inverse_temperature, (1, count)) + excluded
        probs = ops.softmax(scores, -1)
        left = room + _matmul(probs, before)
        return ops.argmax(ops.minimum(probs / noise, left), -1).astype(ms.int64).reshape(rows, 1)

    @staticmethod
    def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
        log_probs = ops.log_softmax(logits.astype(ms.float32), -1)
        picked = ops.gather_elements(log_probs, 1, labels.reshape(-1, 1)).reshape(-1)
        return -mint.mean(picked)

    @staticmethod
    def expert_load(logits: Tensor, k: int, mask: Tensor) -> tuple[Tensor, Tensor]:
        probs = ops.softmax(logits.astype(ms.float32), -1)  # [N, E]
        n, e = probs.shape
        _, indices = ops.topk(probs, k, dim=-1)
        rows = ops.tile(mask.reshape(n, 1), (1, k)).reshape(-1)
        counts = ops.tensor_scatter_add(mint.zeros((e,), dtype=ms.float32), indices.reshape(-1, 1), rows)
        return counts, mint.sum(probs * ops.tile(mask.reshape(n, 1), (1, e)), 0)

    @classmethod
    def residual_unit(
        cls, x: Tensor, before: Tensor, snake: Pair, conv: Pair, dilation: int, last_snake: Pair, last_conv: Pair
    ) -> Tensor:
        y = cls.snake_beta(cls.concat((before, x), -1), *snake)
        y = cls.snake_beta(cls.conv1d(y, *conv, dilation), *last_snake)
        return x + cls.conv1d(y, *last_conv)

    # ---- properties of an implementation (see `dispatch.py`) ----------------------------------------------------------

    @classmethod
    def settled(cls, dtype: ms.Type) -> "type[Reference]":
        """The class to use for models of this dtype: one that checks itself on the device returns a subclass of itself."""
        return cls

    @classmethod
    def steps(cls, dtype: ms.Type) -> dict[str, tuple]:
        """Steps that are computed as a whole, and to be compared so: none, or some of `ascend_step_cases.STEPS`."""
        return {}

    @staticmethod
    def packs(weights: Any) -> bool:
        return False

    @staticmethod
    def prepare(weights: Any, previous: Any = None) -> Any:
        return None

    @staticmethod
    def place(parameters: Iterable[Parameter]) -> None:
        pass

    @staticmethod
    def refusal(error: BaseException) -> str | None:
        return None


def _of_rows(blocks, rows):
    """`[B * n, K, P, D]` -> `[B, K, n * P, D]`."""
    _, heads, block, d = blocks.shape
    return mint.permute(blocks.reshape(rows, -1, heads, block, d), (0, 2, 1, 3, 4)).reshape(rows, heads, -1, d)


def _paged_mask(first, lengths, s, t):
    """Additive `[B, S, T]`: 0 up to a query's own position and before the end of its row."""
    b = first.shape[0]
    last = ops.tile(first.reshape(b, 1), (1, s)) + ops.tile(ops.arange(s).reshape(1, s), (b, 1))
    last = ops.minimum(last, ops.tile(lengths.reshape(b, 1), (1, s)) - 1)  # [B, S]
    hidden = ops.tile(ops.arange(t).reshape(1, 1, t), (b, s, 1)) > ops.tile(last.reshape(b, s, 1), (1, 1, t))
    return hidden.astype(ms.float32) * MASKED


@functools.cache
def _conv1d(channels, kernel, dilation, groups):
    # Cached, because building a primitive takes longer than a small convolution (0.16 ms against 0.07 ms).
    return ops.Conv2D(channels, (1, kernel), pad_mode="valid", dilation=(1, dilation), group=groups)


@functools.cache
def _conv_transpose1d(channels, kernel, stride):
    # channels: of the inputs, as its gradient is a convolution with so many outputs; the forward pass ignores them.
    return ops.Conv2DTranspose(channels, (1, kernel), pad_mode="valid", stride=(1, stride))
