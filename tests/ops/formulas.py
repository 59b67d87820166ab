"""The operators' meanings written down in numpy float64, slowly and plainly: one loop or one line each."""

import math

import numpy as np

ERF = np.vectorize(math.erf)


def f64(x):
    return np.asarray(x, np.float64)


def softmax(x):
    e = np.exp(f64(x) - f64(x).max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-f64(x)))


def silu(x):
    return f64(x) * sigmoid(x)


def gelu(x):
    return f64(x) * 0.5 * (1 + ERF(f64(x) / math.sqrt(2)))


def gelu_tanh(x):
    x = f64(x)
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def quick_gelu(x):
    return f64(x) * sigmoid(1.702 * f64(x))


def relu(x):
    return np.maximum(f64(x), 0)


def rms_norm(x, weight, eps):
    x = f64(x)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * f64(weight)


def layer_norm(x, weight, bias, eps):
    x = f64(x)
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * f64(weight) + f64(bias)


def rotary(x, cos, sin):
    x, cos, sin = f64(x), f64(cos)[..., None, :], f64(sin)[..., None, :]
    low, high = np.split(x, 2, axis=-1)
    return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)


def attention(q, k, v, mask, scale):
    """q `[B, S, H, D]`, k and v `[B, K, T, D]`; head h reads kv head h // (H / K)."""
    q, k, v = f64(q), f64(k), f64(v)
    b, s, h, _ = q.shape
    group = h // k.shape[1]
    out = np.empty((b, s, h, v.shape[-1]))
    for row in range(b):
        for head in range(h):
            scores = q[row, :, head] @ k[row, head // group].T * scale
            if mask is not None:
                scores = scores + f64(mask[row])
            out[row, :, head] = softmax(scores) @ v[row, head // group]
    return out.reshape(b, s, -1)


def gated_mlp(x, gate_up, down):
    gate, up = np.split(f64(x) @ f64(gate_up), 2, axis=-1)
    return (silu(gate) * up) @ f64(down)


def experts(x, gate_up, down, weights, indices):
    out = np.zeros(x.shape)
    for n, row in enumerate(f64(x)):
        for weight, expert in zip(weights[n], indices[n]):
            out[n] += float(weight) * gated_mlp(row, gate_up[expert], down[expert])
    return out


def conv1d(x, weight, bias, dilation=1, groups=1):
    x, weight = f64(x), f64(weight)
    width, out_channels = weight.shape[2], weight.shape[0]
    length = x.shape[2] - (width - 1) * dilation
    y = np.zeros((len(x), out_channels, length))
    for m in range(out_channels):
        first = m // (out_channels // groups) * weight.shape[1]
        for c in range(weight.shape[1]):
            for tap in range(width):
                y[:, m] += weight[m, c, tap] * x[:, first + c, tap * dilation : tap * dilation + length]
    return y + f64(bias)[:, None]


def conv_transpose1d(x, weight, bias, stride):
    x, weight = f64(x), f64(weight)
    y = np.zeros((len(x), weight.shape[1], (x.shape[2] - 1) * stride + weight.shape[2]))
    for t in range(x.shape[2]):
        for tap in range(weight.shape[2]):
            y[:, :, t * stride + tap] += x[:, :, t] @ weight[:, :, tap]
    return y + f64(bias)[:, None]


def conv2d(x, weight, bias, stride, padding):
    x = np.pad(f64(x), ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    weight = f64(weight)
    high, wide = weight.shape[2:]
    rows, columns = (x.shape[2] - high) // stride + 1, (x.shape[3] - wide) // stride + 1
    y = np.empty((len(x), len(weight), rows, columns))
    for r in range(rows):
        for c in range(columns):
            patch = x[:, :, r * stride : r * stride + high, c * stride : c * stride + wide]
            y[:, :, r, c] = np.einsum("bchw,mchw->bm", patch, weight)
    return y + f64(bias)[:, None, None]


def snake_beta(x, alpha, beta):
    alpha, beta = np.exp(f64(alpha))[:, None], np.exp(f64(beta))[:, None]
    return f64(x) + np.sin(f64(x) * alpha) ** 2 / (beta + 1e-9)


def cross_entropy(logits, labels):
    return -np.mean(np.log(softmax(logits)[np.arange(len(labels)), labels]))
