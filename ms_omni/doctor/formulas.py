"""Small cases of the operators with the answer worked out in numpy float64: what an operator must give on any device."""

import math

import numpy as np

ERF = np.vectorize(math.erf)


def softmax(x):
    """Along the last axis."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def silu(x):
    """x times its sigmoid."""
    return x / (1 + np.exp(-x))


def attention(q, k, v, mask, scale):
    """q `[B, S, H, D]`, k and v `[B, K, T, D]`, mask `[B, S, T]`."""
    group = q.shape[2] // k.shape[1]
    k, v = np.repeat(k, group, 1), np.repeat(v, group, 1)
    scores = np.einsum("bshd,bhtd->bhst", q, k) * scale + mask[:, None]
    return np.einsum("bhst,bhtd->bshd", softmax(scores), v).reshape(*q.shape[:2], -1)


def experts(x, gate_up, down, weights, indices):
    """x `[N, D]`, gate_up `[E, D, 2I]`, down `[E, I, D]`."""
    out = np.zeros_like(x)
    for row in range(len(x)):
        for weight, expert in zip(weights[row], indices[row]):
            gate, up = np.split(x[row] @ gate_up[expert], 2)
            out[row] += weight * ((silu(gate) * up) @ down[expert])
    return out


def convolution(x, weight, bias, dilation):
    """x `[B, C, T]`, weight `[M, C, W]`."""
    width = weight.shape[-1]
    length = x.shape[-1] - (width - 1) * dilation
    taps = [
        np.einsum("bct,mc->bmt", x[..., tap * dilation : tap * dilation + length], weight[..., tap]) for tap in range(width)
    ]
    return sum(taps) + bias[:, None]


def cases():
    """Yields (operator, arguments, expected): arrays float32 or int32, numbers as they are; expected float64."""
    rng = np.random.RandomState(0)

    def normal(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    x, weight, gain, bias = normal(6, 64), normal(32, 64), normal(64), normal(64)
    wide = x.astype(np.float64)
    yield "linear", (x, weight, bias[:32]), wide @ weight.T + bias[:32]
    yield "rms_norm", (x, gain, 1e-6), wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-6) * gain
    centred = wide - wide.mean(-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    yield "layer_norm", (x, gain, bias, 1e-5), normed * gain + bias
    yield "gelu", (x,), wide * 0.5 * (1 + ERF(wide / math.sqrt(2)))
    yield "gelu_tanh", (x,), 0.5 * wide * (1 + np.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)))
    yield "silu", (x,), silu(wide)
    yield "swiglu", (x,), silu(wide[:, :32]) * wide[:, 32:]
    yield "scale_channels", (x, gain), wide * gain
    yield from _attention_cases(normal)
    yield from _expert_cases(normal)
    yield from _vocoder_cases(normal)


def _attention_cases(normal):
    q, k, v = normal(1, 3, 4, 32), normal(1, 2, 5, 32), normal(1, 2, 5, 32)
    angles = normal(1, 3, 16)
    low, high = np.split(q.astype(np.float64), 2, axis=-1)
    cos, sin = np.cos(angles)[..., None, :], np.sin(angles)[..., None, :]
    yield (
        "rotary",
        (q, np.cos(angles), np.sin(angles)),
        np.concatenate([low * cos - high * sin, high * cos + low * sin], -1),
    )
    mask = np.where(np.arange(5) <= np.arange(2, 5)[:, None], np.float32(0), np.float32(-1e9))[None]
    yield "attention", (q, k, v, mask, 0.2), attention(*(a.astype(np.float64) for a in (q, k, v, mask)), 0.2)
    packed = [normal(7, 4, 32) for _ in range(3)]
    pieces = [slice(0, 3), slice(3, 7)]
    whole = [
        attention(
            *(
                part.astype(np.float64)[None, piece]
                if index == 0
                else part.astype(np.float64)[None, piece].transpose(0, 2, 1, 3)
                for index, part in enumerate(packed)
            ),
            np.zeros((1, 1, 1)),
            0.2,
        )[0]
        for piece in pieces
    ]
    yield "packed_attention", (*packed, ((3, 1), (4, 1)), 0.2), np.concatenate(whole)


def _expert_cases(normal):
    x, logits, gate_up, down = normal(5, 32), normal(5, 8), normal(8, 32, 48), normal(8, 24, 32)
    indices = np.argsort(-logits, axis=-1, kind="stable")[:, :2].astype(np.int32)
    weights = np.take_along_axis(softmax(logits.astype(np.float64)), indices, -1)
    yield "route_topk", (logits, 2, False), weights
    narrow = weights.astype(np.float32)
    yield "experts", (x, gate_up, down, narrow, indices), experts(x.astype(np.float64), gate_up, down, narrow, indices)


def _vocoder_cases(normal):
    x, weight, bias, alpha, beta = normal(1, 8, 20), normal(6, 8, 3), normal(6), 0.3 * normal(8), 0.3 * normal(8)
    wide = x.astype(np.float64)
    yield "conv1d", (x, weight, bias, 2), convolution(wide, weight, bias, 2)
    up, stride = normal(8, 6, 4), 2
    out = np.zeros((1, 6, (20 - 1) * stride + 4)) + bias[:, None]
    for t in range(20):
        out[..., t * stride : t * stride + 4] += np.einsum("bc,cmw->bmw", wide[..., t], up)
    yield "conv_transpose1d", (x, up, bias, stride), out
    frequency, height = np.exp(alpha.astype(np.float64))[:, None], np.exp(beta.astype(np.float64))[:, None]
    yield "snake_beta", (x, alpha, beta), wide + np.sin(wide * frequency) ** 2 / (height + 1e-9)
