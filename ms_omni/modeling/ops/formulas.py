"""The definition of each operator in numpy: a device must agree within its rounding. Arrays in, arrays out, float32 in between.

Signatures and meanings are those of `ops/__init__.py`, without `stable`. Written for clarity, and fast enough for the
published sizes; `write_rows` returns the buffer as it must be afterwards.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...quantised import Quantised, dequantised
from .fused import LayerWeights

Matrix = np.ndarray | Quantised

_erf = np.vectorize(math.erf, otypes=[np.float64])


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def linear(x: np.ndarray, weight: Matrix, bias: np.ndarray | None = None) -> np.ndarray:
    y = x @ (dequantised(weight) if isinstance(weight, Quantised) else weight).T
    return y if bias is None else y + bias


def embedding(ids: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return weight[ids]


def embedding_part(ids: np.ndarray, weight: np.ndarray, first: int) -> np.ndarray:
    local_index = ids - first
    here = (local_index >= 0) & (local_index < len(weight))
    return weight[np.where(here, local_index, 0)] * here[..., None]


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + eps) * weight


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return rms_norm(centred, weight, eps) + bias


def add_layer_norm(
    x: np.ndarray, added: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float
) -> tuple[np.ndarray, np.ndarray]:
    return layer_norm(x + added, weight, bias, eps), x + added


def gelu(x: np.ndarray) -> np.ndarray:
    return x * 0.5 * (1 + _erf(x / math.sqrt(2)))


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def silu(x: np.ndarray) -> np.ndarray:
    return x * sigmoid(x)


def quick_gelu(x: np.ndarray) -> np.ndarray:
    return x * sigmoid(1.702 * x)


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


def swiglu(gate_up: np.ndarray) -> np.ndarray:
    gate, up = np.split(gate_up, 2, axis=-1)
    return silu(gate) * up


def rotary(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    low, high = np.split(x, 2, axis=-1)
    cos, sin = cos[..., None, :], sin[..., None, :]
    return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)


def rotary_wide(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    return rotary(x, *(table[..., : x.shape[-1] // 2] for table in (cos, sin)))


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray | None, scale: float) -> np.ndarray:
    group = q.shape[2] // k.shape[1]
    out = np.empty((*q.shape[:3], v.shape[-1]), np.float32)
    for row, head in np.ndindex(len(q), q.shape[2]):  # one by one, as the scores of all would not fit into memory
        scores = q[row, :, head] @ k[row, head // group].T * scale
        out[row, :, head] = softmax(scores if mask is None else scores + mask[row]) @ v[row, head // group]
    return out.reshape(*q.shape[:2], -1)


def paged_attention(
    q: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    tables: np.ndarray,
    first: np.ndarray,
    lengths: np.ndarray,
    scale: float,
) -> np.ndarray:
    out = []
    for row, (table, start, length) in enumerate(zip(tables, first, lengths)):
        k, v = (
            x[table].transpose(1, 0, 2, 3).reshape(1, x.shape[1], -1, x.shape[-1])[:, :, :length] for x in (keys, values)
        )
        last = np.minimum(start + np.arange(q.shape[1]), length - 1)
        mask = np.where(np.arange(length) <= last[:, None], np.float32(0), np.float32(-1e9))
        out.append(attention(q[row : row + 1], k, v, mask[None], scale)[0])
    return np.stack(out)


def packed_attention(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, segments: tuple[tuple[int, int], ...], scale: float
) -> np.ndarray:
    out, start = [], 0
    for length in (length for length, count in segments for _ in range(count)):
        rows = slice(start, start + length)
        keys, values = (x[None, rows].transpose(0, 2, 1, 3) for x in (k, v))
        out.append(attention(q[None, rows], keys, values, None, scale)[0])
        start += length
    return np.concatenate(out)


def route_topk(logits: np.ndarray, k: int, normalise: bool) -> tuple[np.ndarray, np.ndarray]:
    probs = softmax(logits)
    indices = np.argsort(-probs, axis=-1, kind="stable")[:, :k]
    weights = np.take_along_axis(probs, indices, -1)
    return weights / weights.sum(-1, keepdims=True) if normalise else weights, indices.astype(np.int32)


def experts(
    x: np.ndarray, gate_up: Matrix, down: Matrix, weights: np.ndarray, indices: np.ndarray, first: int | None = None
) -> np.ndarray:
    out = np.zeros(x.shape, np.float32)
    for expert in range(gate_up.shape[0]):
        rows, ranks = np.nonzero(indices == expert + (first or 0))
        if len(rows):
            hidden = swiglu(x[rows] @ _expert(gate_up, expert)) @ _expert(down, expert)
            np.add.at(out, rows, weights[rows, ranks, None] * hidden)
    return out


def _expert(stack, number):
    """`[in, out]`."""
    if not isinstance(stack, Quantised):
        return stack[number]
    return dequantised(Quantised(*(None if part is None else part[number] for part in stack))).T


def conv1d(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, dilation: int = 1, groups: int = 1) -> np.ndarray:
    channels, width = weight.shape[1:]
    length = x.shape[-1] - (width - 1) * dilation
    x, weight = x.reshape(len(x), groups, channels, -1), weight.reshape(groups, -1, channels, width)
    taps = (weight[..., tap] @ x[..., tap * dilation : tap * dilation + length] for tap in range(width))
    return functools.reduce(np.add, taps).reshape(len(x), -1, length) + bias[:, None]


def conv_transpose1d(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: int, trim: int = 0) -> np.ndarray:
    width, steps = weight.shape[2], x.shape[2]
    out = np.zeros((len(x), weight.shape[1], (steps - 1) * stride + width), np.float32)
    for tap in range(width):
        out[..., tap : tap + (steps - 1) * stride + 1 : stride] += weight[..., tap].T @ x
    return (out + bias[:, None])[..., trim : max(out.shape[-1] - trim, trim)]


def conv2d(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, stride: int, padding: int) -> np.ndarray:
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    high, wide = weight.shape[2:]
    rows, columns = (x.shape[2] - high) // stride + 1, (x.shape[3] - wide) // stride + 1
    out = np.zeros((len(x), len(weight), rows, columns), np.float32)
    for r, c in np.ndindex(high, wide):
        piece = x[:, :, r : r + stride * rows : stride, c : c + stride * columns : stride]
        out += (weight[:, :, r, c] @ piece.reshape(*piece.shape[:2], -1)).reshape(out.shape)
    return out + bias[:, None, None]


def snake_beta(x: np.ndarray, alpha: np.ndarray, beta: np.ndarray) -> np.ndarray:
    return x + np.sin(x * np.exp(alpha)[:, None]) ** 2 / (np.exp(beta)[:, None] + 1e-9)


def scale_channels(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return x * scale


def scatter_rows(x: np.ndarray, index: np.ndarray, rows: np.ndarray) -> np.ndarray:
    out = x.copy()
    out[index] = rows
    return out


def add_rows(x: np.ndarray, index: np.ndarray, rows: np.ndarray) -> np.ndarray:
    out = x.copy()
    np.add.at(out, index, rows)
    return out


write_rows = scatter_rows


def gather_rows(x: np.ndarray, index: np.ndarray) -> np.ndarray:
    return x[index]


def weighted_sum_rows(x: np.ndarray, index: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return (weights[..., None] * x[index]).sum(1)


def concat(parts: Sequence[np.ndarray], axis: int) -> np.ndarray:
    return np.concatenate(parts, axis)


def transpose(x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    return x.transpose(axes)


def clip(x: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.where(np.isfinite(x), np.clip(x, low, high), np.nan)


def argmax(x: np.ndarray) -> np.ndarray:
    return x.argmax(-1).astype(np.int32)


def draw(logits: np.ndarray, noise: np.ndarray, temperature: float, top_k: int, top_p: float) -> np.ndarray:
    order = np.argsort(-logits, axis=-1, kind="stable")[:, : top_k or None]
    probs = softmax(np.take_along_axis(logits, order, -1) / temperature)
    before = probs.cumsum(-1) - probs  # probability of likelier ids
    total = (probs * (before < top_p)).cumsum(-1)
    index = np.minimum((total <= noise * total[:, -1:]).sum(-1, keepdims=True), order.shape[-1] - 1)
    return np.take_along_axis(order, index, -1).astype(np.int32)


def penalised(logits: np.ndarray, planes: np.ndarray, factors: np.ndarray, biases: np.ndarray) -> np.ndarray:
    factor, bias = planes[factors], planes[biases]
    return np.where(logits < 0, logits * factor, logits / factor) + bias


def likeliest(logits: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    ids = np.argsort(-logits, axis=-1, kind="stable")[:, :count]
    return np.take_along_axis(logits, ids, -1), ids


def race(
    values: np.ndarray,
    before: np.ndarray,
    inverse_temperature: np.ndarray,
    excluded: np.ndarray,
    room: np.ndarray,
    noise: np.ndarray,
) -> np.ndarray:
    probs = softmax(values * inverse_temperature + excluded)
    free = probs.cumsum(-1) - probs < room / -before.min()
    return np.where(free, probs / noise, -1).argmax(-1)[:, None]


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return -np.log(softmax(logits)[np.arange(len(labels)), labels]).mean()


def expert_load(logits: np.ndarray, k: int, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    probs = softmax(logits)
    chosen = np.argsort(-probs, axis=-1, kind="stable")[:, :k]
    counts = np.zeros(probs.shape[-1], np.float32)
    np.add.at(counts, chosen, mask[:, None])
    return counts, (probs * mask[:, None]).sum(0)


# ---- whole steps, of the formulas above: see `ascend_step_cases.py` for the arguments --------------------------------


def decoder_step(
    layer: tuple,
    norm: np.ndarray,
    head: Matrix,
    eps: float,
    head_dim: int,
    block: int,
    keys: np.ndarray,
    values: np.ndarray,
    calls: tuple,
) -> tuple[np.ndarray, ...]:
    """Logits, hidden states, and the keys and values that are written, of each call."""
    w, keys, values, outputs = LayerWeights(*layer), keys.copy(), values.copy(), []
    for x, cos, sin, tables, lengths in calls:
        slots = rows_of_buffers(tables, lengths[:, None] - 1, block).reshape(-1)
        attend = functools.partial(_attend, (keys, values), slots, tables, lengths - 1, lengths, block)
        hidden = rms_norm(_layer(w, x, cos, sin, eps, head_dim, attend), norm, eps)
        outputs += [linear(hidden, head), hidden, keys[slots], values[slots]]
    return tuple(outputs)


boosted_step = int8_step = int4_step = decoder_step


def decoder_chunk(
    layer: tuple,
    norm: np.ndarray,
    eps: float,
    head_dim: int,
    block: int,
    keys: np.ndarray,
    values: np.ndarray,
    x: np.ndarray,
    cos: np.ndarray,
    sin: np.ndarray,
    table: np.ndarray,
    start: int,
    count: int,
) -> tuple[np.ndarray, ...]:
    """Hidden states of the tokens, and the keys and values that are written."""
    w, buffers, stop = LayerWeights(*layer), (keys.copy(), values.copy()), start + count
    slots = rows_of_buffers(table[None], np.arange(start, stop)[None], block).reshape(-1)
    attend = functools.partial(_attend, buffers, slots, table[None], np.array([start]), np.array([stop]), block)
    x, cos, sin = x[:, :count], cos[:, :count], sin[:, :count]
    hidden = rms_norm(_layer(w, x, cos, sin, eps, head_dim, attend), norm, eps)
    return hidden, *(part[slots] for part in buffers)


def code_frame(*case: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes, the likeliest ones, the sum of their embeddings, and the 64 largest logits of the last one."""
    codes, total, logits = _frame(*case)
    return codes, total, -np.sort(-logits[-1], -1)[:, :64]


def leads(*case: Any) -> np.ndarray:
    """By how much each code of a frame is likelier than the next `[B, n - 1]`."""
    best = np.sort(np.stack(_frame(*case)[2], 1), -1)
    return best[..., -1] - best[..., -2]


def _frame(hidden, code, layers, norm, eps, head_dim, first, embeddings, heads, cos, sin):
    x, codes, outputs = np.concatenate([hidden, first[code]], 1), [code], []
    for head, embedding in zip(heads, embeddings):
        y, mask = x, np.triu(np.full((x.shape[1],) * 2, np.float32(-1e9)), 1)
        for layer in layers:
            y = _layer(LayerWeights(*layer), y, cos[: y.shape[1]], sin[: y.shape[1]], eps, head_dim, _attend_causally(mask))
        outputs.append(linear(rms_norm(y[:, -1], norm, eps), head))
        codes.append(outputs[-1].argmax(-1)[:, None].astype(np.int32))
        x = np.concatenate([x, embedding[codes[-1]]], 1)
    return np.concatenate(codes, 1), x[:, 1:].sum(1, keepdims=True), outputs


def _layer(w, x, cos, sin, eps, head_dim, attend):
    """x `[B, S, D]`; attend: of queries, keys and values `[B, S, heads, D]` and the scale -> `[B, S, H * D]`."""
    y = rms_norm(x, w.input_norm, eps)
    parts = (linear(y, *pair) for pair in ((w.q, w.q_bias), (w.k, w.k_bias), (w.v, w.v_bias)))
    q, k, v = (part.reshape(*x.shape[:2], -1, head_dim) for part in parts)
    q, k = (part if norm is None else rms_norm(part, norm, eps) for part, norm in ((q, w.q_norm), (k, w.k_norm)))
    x = x + linear(attend(rotary(q, cos, sin), rotary(k, cos, sin), v, head_dim**-0.5), w.o, w.o_bias)
    return x + _mlp(w, rms_norm(x, w.post_norm, eps))


def _mlp(w, x):
    gate, up, down = w[w._fields.index("gate") :][:3]
    dense = gate is not None and linear(swiglu(np.concatenate([linear(x, gate), linear(x, up)], -1)), down)
    if w.router is None:
        return dense
    rows = x.reshape(-1, x.shape[-1])
    chosen = route_topk(linear(rows, w.router), w.top_k, w.normalise)
    mixed = experts(rows, w.experts_gate_up, w.experts_down, *chosen, w.first).reshape(x.shape)
    return mixed if w.gate is None else mixed + sigmoid(linear(x, w.shared_gate)) * dense


def rows_of_buffers(tables: np.ndarray, positions: np.ndarray, block: int) -> np.ndarray:
    """Rows of buffers `[blocks * P, K * D]` that hold positions `[B, S]` of rows with these blocks."""
    return np.take_along_axis(tables, positions // block, 1) * block + positions % block


def _attend(buffers, slots, tables, first, lengths, block, q, k, v, scale):
    for buffer, new in zip(buffers, (k, v)):
        buffer[slots] = new.reshape(len(slots), -1)
    keys, values = (buffer.reshape(-1, block, *k.shape[2:]).transpose(0, 2, 1, 3) for buffer in buffers)
    return paged_attention(q, keys, values, tables, first, lengths, scale)


def _attend_causally(mask):
    def attend(q, k, v, scale):
        return attention(q, k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3), np.tile(mask, (len(q), 1, 1)), scale)

    return attend
