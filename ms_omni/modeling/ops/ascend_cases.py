"""What the operators of `ascend` are tried with: small inputs of every kind that the model has for them.

Head sizes, group sizes and alignments are those of the published checkpoints: 128 channels per head with 8 queries per kv
head, 64 (audio), 72 (vision, no multiple of 16), up to 128 experts of which some stay empty. float32 arrays are rounded
to the dtype under test, float64 arrays become float32 tensors, a `Buffer` becomes a Parameter.
"""

from dataclasses import dataclass

import numpy as np

MASKED = -1e9


@dataclass(frozen=True)
class Buffer:
    """An array that the operator writes to."""

    array: np.ndarray


def _normal(rng, *shape, scale=1.0):
    return (rng.standard_normal(shape) * scale).astype(np.float32)


def _linear(rng):
    weight, bias = _normal(rng, 96, 64, scale=0.2), _normal(rng, 96)
    yield _normal(rng, 2, 5, 64), weight, bias
    yield _normal(rng, 1, 64), weight, None


def _rms_norm(rng):
    yield _normal(rng, 2, 3, 4, 128), _normal(rng, 128), 1e-6
    yield _normal(rng, 5, 256, scale=1e-3), _normal(rng, 256), 1e-6  # small enough that eps counts


def _layer_norm(rng):
    yield _normal(rng, 7, 144) + 3, _normal(rng, 144), _normal(rng, 144), 1e-5


def _activation(rng):
    yield (_normal(rng, 9, 64, scale=3.0),)


def _tables(rng, *shape):
    angles = rng.uniform(-100, 100, shape)
    return np.cos(angles), np.sin(angles)


def _rotary(rng):
    yield (_normal(rng, 2, 5, 8, 128), *_tables(rng, 2, 5, 64))
    yield (_normal(rng, 1, 1, 1, 128), *_tables(rng, 1, 1, 64))  # one token, one head
    yield (_normal(rng, 11, 3, 72), *_tables(rng, 11, 36))  # packed, as in the vision encoder


def _mask(rng, batch, queries, keys):
    """Causal for the last queries, and the first keys of the second row are padding."""
    seen = np.arange(keys) <= np.arange(keys - queries, keys)[:, None]
    seen = np.repeat(seen[None], batch, 0)
    seen[1:, :, :2] = False
    return np.where(seen, 0.0, MASKED)


def _attention(rng):
    cached = _normal(rng, 2, 2, 32, 128), _normal(rng, 2, 2, 32, 128)
    step = np.where(np.arange(32) < 20, 0.0, MASKED) + np.zeros((2, 1, 1))  # one token on a cache with room left
    yield _normal(rng, 2, 1, 16, 128), *cached, step, 128**-0.5
    yield _normal(rng, 2, 7, 16, 128), *cached, _mask(rng, 2, 7, 32), 128**-0.5  # a prompt after other tokens
    yield _normal(rng, 2, 2, 4, 64), _normal(rng, 2, 4, 5, 64), _normal(rng, 2, 4, 5, 64), _mask(rng, 2, 2, 5), 0.2
    yield _normal(rng, 1, 3, 2, 24), _normal(rng, 1, 2, 3, 24), _normal(rng, 1, 2, 3, 24), None, 0.3


def _packed_attention(rng):
    for segments, channels in ((((5, 2), (3, 1)), 64), (((4, 1), (1, 2), (6, 1)), 72)):
        n = sum(length * count for length, count in segments)
        yield (*(_normal(rng, n, 3, channels) for _ in range(3)), segments, channels**-0.5)


def _route_topk(rng):
    logits = np.stack([rng.permutation(128) for _ in range(6)]) / np.float32(16)  # no two alike, in bfloat16 neither
    yield logits.astype(np.float32), 8, True
    yield logits.astype(np.float32), 6, False


def _experts(rng):
    experts, width, inner = 16, 64, 32
    weights = _normal(rng, experts, width, 2 * inner, scale=0.2), _normal(rng, experts, inner, width, scale=0.2)
    for tokens in (1, 13):  # with one token most experts are empty, the first and the last among them
        indices = np.stack([rng.permutation(experts - 4)[:4] + 2 for _ in range(tokens)]).astype(np.int32)
        case = _normal(rng, tokens, width), *weights, rng.uniform(0.1, 1, (tokens, 4)), indices
        yield case
        yield (*case, 8)  # those from 8 on are held here, the last ones of them do not exist
        yield (*case, 20)  # nobody wants the experts of this process


def _conv1d(rng):
    yield _normal(rng, 2, 16, 30), _normal(rng, 24, 16, 7, scale=0.2), _normal(rng, 24), 3, 1
    yield _normal(rng, 2, 16, 12), _normal(rng, 16, 1, 7), _normal(rng, 16), 1, 16  # one filter per channel
    yield _normal(rng, 1, 16, 9), _normal(rng, 8, 16, 1, scale=0.2), _normal(rng, 8), 1, 1


def _conv_transpose1d(rng):
    yield _normal(rng, 2, 16, 5), _normal(rng, 16, 8, 10, scale=0.2), _normal(rng, 8), 5
    yield _normal(rng, 1, 16, 4), _normal(rng, 16, 16, 2, scale=0.2), _normal(rng, 16), 2
    yield _normal(rng, 2, 16, 5), _normal(rng, 16, 8, 10, scale=0.2), _normal(rng, 8), 5, 5  # trimmed


def _conv2d(rng):
    yield _normal(rng, 2, 1, 16, 25), _normal(rng, 16, 1, 3, 3), _normal(rng, 16), 2, 1
    yield _normal(rng, 2, 16, 8, 13), _normal(rng, 16, 16, 3, 3, scale=0.1), _normal(rng, 16), 2, 1


def _snake_beta(rng):
    yield _normal(rng, 2, 8, 11), _normal(rng, 8, scale=0.3), _normal(rng, 8, scale=0.3)


def _scale_channels(rng):
    yield _normal(rng, 2, 5, 32), _normal(rng, 32)


def _embedding(rng):
    yield np.array([[3, 0], [8, 3]], np.int32), _normal(rng, 9, 32)


def _embedding_part(rng):
    yield np.array([[3, 0], [8, 12]], np.int32), _normal(rng, 6, 32), 3


def _place_rows(rng):
    yield _normal(rng, 9, 32), np.array([7, 2], np.int32), _normal(rng, 2, 32)


def _write_rows(rng):
    yield Buffer(_normal(rng, 9, 32)), np.array([7, 2], np.int32), _normal(rng, 2, 32)


def _gather_rows(rng):
    yield _normal(rng, 9, 3, 16), np.array([7, 7, 0], np.int32)


def _weighted_sum_rows(rng):
    yield _normal(rng, 9, 32), np.array([[7, 2], [0, 0], [8, 1]], np.int32), rng.uniform(0, 1, (3, 2))


def _concat(rng):
    yield (_normal(rng, 2, 3, 16), _normal(rng, 2, 4, 16)), 1


def _transpose(rng):
    yield _normal(rng, 2, 3, 5, 16), (0, 2, 1, 3)


def _clip(rng):
    yield _normal(rng, 3, 16, scale=2.0), -1.0, 1.0


def _scores(rng):
    """Logits of which no two are alike, in bfloat16 neither."""
    return np.stack([rng.permutation(100) for _ in range(3)]).astype(np.float32) / np.float32(8)


def _argmax(rng):
    yield (_scores(rng),)


def _draw(rng):
    for top_k, top_p in ((0, 1.0), (7, 0.8)):
        yield _scores(rng), np.array([[0.03], [0.5], [0.97]]), 0.9, top_k, top_p


def _cross_entropy(rng):
    yield _scores(rng), np.array([5, 0, 99], np.int32)


def _expert_load(rng):
    yield _scores(rng), 4, np.array([1.0, 0.0, 1.0])


CASES = {
    "linear": _linear,
    "rms_norm": _rms_norm,
    "layer_norm": _layer_norm,
    "gelu": _activation,
    "gelu_tanh": _activation,
    "swiglu": _activation,
    "rotary": _rotary,
    "attention": _attention,
    "packed_attention": _packed_attention,
    "route_topk": _route_topk,
    "experts": _experts,
    "conv1d": _conv1d,
    "conv_transpose1d": _conv_transpose1d,
    "conv2d": _conv2d,
    "snake_beta": _snake_beta,
    "scale_channels": _scale_channels,
    "embedding": _embedding,
    "embedding_part": _embedding_part,
    "silu": _activation,
    "sigmoid": _activation,
    "quick_gelu": _activation,
    "relu": _activation,
    "scatter_rows": _place_rows,
    "add_rows": _place_rows,
    "write_rows": _write_rows,
    "gather_rows": _gather_rows,
    "concat": _concat,
    "weighted_sum_rows": _weighted_sum_rows,
    "transpose": _transpose,
    "clip": _clip,
    "argmax": _argmax,
    "draw": _draw,
    "cross_entropy": _cross_entropy,
    "expert_load": _expert_load,
}
"""operator -> function from a numpy generator to the tuples of its arguments."""
