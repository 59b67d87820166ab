"""Test cases of the operators on a device: inputs of every kind that the model has for them.

A kind is a class of shapes for which a device may use another kernel, or other tiles of the same one; forms are chosen for
each. Small cases have a small epsilon, padding, and experts without tokens. Published ones have the sizes of the published
checkpoint. float32 arrays are rounded to the dtype under test, float64 arrays become float32
tensors, a `Buffer` becomes a Parameter.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from .ascend_weight_cases import experts, experts_of_codes, few, few_whole, is_coded, linear_of_codes, whole
from .ascend_weight_cases import normal as _normal

MASKED = -1e9


@dataclass(frozen=True)
class Buffer:
    """An array that the operator writes to."""

    array: np.ndarray


@dataclass(frozen=True)
class Kind:
    """name; cases: (a numpy generator, whether at the published sizes too) -> tuples of arguments; fits: whether arguments
    are of this kind, a function that MindSpore can compile, so no lambda; None: all that is of no kind before it; compiled:
    whether the model's graphs contain it; called: whether it exists outside graphs, on a card.
    """

    name: str
    cases: Callable[[np.random.Generator, bool], Iterator[tuple]]
    fits: Callable[..., bool] | None = None
    compiled: bool = True
    called: bool = True


def _one_row(x, *_, **__):
    return x.size == x.shape[-1]


def _linear_row(rng, published):
    yield _normal(rng, 1, 64), _normal(rng, 96, 64, scale=0.2), None
    for outputs in (128, 5120) if published else ():
        yield _normal(rng, 1, 1, 2048), _normal(rng, outputs, 2048, scale=0.02), None


def _linear(rng, published):
    yield _normal(rng, 2, 5, 64), _normal(rng, 96, 64, scale=0.2), _normal(rng, 96)
    if published:
        yield _normal(rng, 1, 512, 2048), _normal(rng, 4096, 2048, scale=0.02), None
        yield _normal(rng, 1500, 1152), _normal(rng, 4304, 1152, scale=0.03), _normal(rng, 4304)


def _rms_norm(rng, published):
    yield _normal(rng, 2, 3, 4, 128), _normal(rng, 128), 1e-6
    yield _normal(rng, 5, 256, scale=1e-3), _normal(rng, 256), 1e-6  # small enough that eps matters
    for shape in ((1, 1, 2048), (1, 512, 32, 128)) if published else ():
        yield _normal(rng, *shape), _normal(rng, shape[-1]), 1e-6


def _layer_norm(rng, published):
    for rows, width in ((7, 144), (1500, 1152)) if published else ((7, 144),):
        yield _normal(rng, rows, width) + 3, _normal(rng, width), _normal(rng, width), 1e-5


def _add_layer_norm(rng, published):
    for rows, width in ((7, 144), (1500, 1152)) if published else ((7, 144),):
        yield *(_normal(rng, rows, width) + 3 for _ in range(2)), _normal(rng, width), _normal(rng, width), 1e-5


def _activation(rng, published):
    for shape in ((9, 64), (512, 1536)) if published else ((9, 64),):
        yield (_normal(rng, *shape, scale=3.0),)


def _tables(rng, *shape):
    angles = rng.uniform(-100, 100, shape)
    return np.cos(angles), np.sin(angles)


def _rotary(rng, published):
    sizes = ((2, 5, 8), (1, 1, 1), (1, 512, 32))  # one of them has one token and one head
    for batch, tokens, heads in sizes[: 3 if published else 2]:
        yield (_normal(rng, batch, tokens, heads, 128), *_tables(rng, batch, tokens, 64))


def _rotary_odd(rng, published):
    yield (_normal(rng, 11, 3, 72), *_tables(rng, 11, 36))  # packed, as in the vision encoder


def _rotary_wide(rng, published):
    for rows, heads, channels in ((10, 3, 80), (2048, 16, 80)) if published else ((10, 3, 80),):
        yield (_normal(rng, rows, heads, channels), *(np.tile(table, 2) for table in _tables(rng, rows, channels // 2)))


def _mask(batch, queries, keys):
    """Causal for the last queries, and the first keys of the second row are padding."""
    visible = np.arange(keys) <= np.arange(keys - queries, keys)[:, None]
    visible = np.repeat(visible[None], batch, 0)
    visible[1:, :, :2] = False
    return np.where(visible, 0.0, MASKED)


def _cached(rng, batch, heads, kv_heads, queries, keys):
    q = _normal(rng, batch, queries, heads, 128)
    k, v = (_normal(rng, batch, kv_heads, keys, 128) for _ in range(2))
    return q, k, v


def _attention_step(rng, published):
    for batch, heads, kv_heads, keys in ((2, 16, 2, 32), (1, 32, 4, 8192), (4, 16, 2, 768))[: 3 if published else 1]:
        room = np.where(np.arange(keys) < keys * 5 // 8, 0.0, MASKED)  # a cache with room left
        yield *_cached(rng, batch, heads, kv_heads, 1, keys), np.tile(room, (batch, 1, 1)), 128**-0.5


def _attention(rng, published):
    sizes = ((2, 16, 2, 7, 32), (1, 32, 4, 512, 512), (1, 8, 1, 512, 8192))
    for batch, heads, kv_heads, queries, keys in sizes[: 3 if published else 1]:  # a prompt after other tokens
        yield *_cached(rng, batch, heads, kv_heads, queries, keys), _mask(batch, queries, keys), 128**-0.5


def _attention_odd(rng, published):
    yield _normal(rng, 2, 2, 4, 64), _normal(rng, 2, 4, 5, 64), _normal(rng, 2, 4, 5, 64), _mask(2, 2, 5), 0.2
    yield _normal(rng, 1, 3, 2, 24), _normal(rng, 1, 2, 3, 24), _normal(rng, 1, 2, 3, 24), None, 0.3


def _aligned_heads(q, *_, **__):
    return q.shape[-1] % 16 == 0


def _aligned(q, k, *_, **__):
    return q.shape[-1] % 16 == 0 and k.shape[2] % 16 == 0


def _one_query(q, k, *_, **__):
    return q.shape[1] == 1 and q.shape[-1] % 16 == 0 and k.shape[2] % 16 == 0


def _paged(rng, heads, kv_heads, block, rows, width, channels=128):
    """rows: (length, queries of S that are no padding). NaN behind the end of a row and in free blocks."""
    blocks, s = sum(-(-length // block) for length, _ in rows) + 2, max(queries for _, queries in rows)
    keys, values = (np.full((blocks, kv_heads, block, channels), np.nan, np.float32) for _ in range(2))
    tables, free = np.zeros((len(rows), width), np.int32), iter(rng.permutation(blocks - 1) + 1)
    for table, (length, _) in zip(tables, rows):
        for n, start in enumerate(range(0, length, block)):
            table[n], count = next(free), min(block, length - start)
            for x in (keys, values):
                x[table[n], :, :count] = _normal(rng, kv_heads, count, channels)
    first = np.array([length - queries for length, queries in rows], np.int32)
    lengths = np.array([length for length, _ in rows], np.int32)
    return _normal(rng, len(rows), s, heads, channels), keys, values, tables, first, lengths, channels**-0.5


def _paged_step(rng, published):
    yield _paged(rng, 16, 2, 16, ((5, 1), (33, 1), (64, 1)), 4)
    if published:
        yield _paged(rng, 32, 4, 128, ((1, 1), (129, 1), (1000, 1), (4096, 1)), 32)


def _paged_chunk(rng, published):
    yield _paged(rng, 16, 2, 16, ((40, 8), (20, 5)), 4)  # the second row is shorter than its queries
    if published:
        yield _paged(rng, 32, 4, 128, ((1024, 512),), 8)
        yield _paged(rng, 32, 4, 128, ((527, 15),), 8)


def _paged_odd(rng, published):
    yield _paged(rng, 4, 2, 4, ((5, 1), (9, 1)), 4, 24)


def _one_query_in_blocks(q, keys, *_, **__):
    return q.shape[1] == 1 and q.shape[-1] % 16 == 0 and keys.shape[2] % 16 == 0


def _packed(rng, heads, channels, segments):
    n = sum(length * count for length, count in segments)
    return *(_normal(rng, n, heads, channels) for _ in range(3)), segments, channels**-0.5


def _packed_attention(rng, published):
    yield _packed(rng, 3, 64, ((5, 2), (3, 1)))
    if published:
        yield _packed(rng, 20, 64, ((104, 7), (39, 1)))  # sound


def _packed_attention_odd(rng, published):
    yield _packed(rng, 3, 72, ((4, 1), (1, 2), (6, 1)))
    if published:
        yield _packed(rng, 16, 72, ((1024, 2),))  # a video


def _route_topk(rng, published):
    for tokens in (6, 512) if published else (6,):
        logits = np.stack([rng.permutation(128) for _ in range(tokens)]) / np.float32(16)  # no two alike, also in bfloat16
        yield logits.astype(np.float32), 8, True
        yield logits.astype(np.float32), 6, False


def _conv1d(rng, published):
    small = ((2, 16, 30, 24, 7, 0.2, 3), (1, 16, 9, 8, 1, 0.2, 1))
    large = ((1, 1024, 22, 1536, 7, 0.01, 1), (1, 96, 7734, 96, 7, 0.04, 9))
    for batch, channels, steps, filters, width, scale, dilation in (*small, *(large if published else ())):
        weight = _normal(rng, filters, channels, width, scale=scale)
        yield _normal(rng, batch, channels, steps), weight, _normal(rng, filters), dilation, 1


def _conv1d_channels(rng, published):
    for channels in (16, 1024) if published else (16,):  # one filter per channel
        yield _normal(rng, 2, channels, 12), _normal(rng, channels, 1, 7), _normal(rng, channels), 1, channels


def _grouped(x, weight, bias, dilation=1, groups=1):
    return groups > 1


def _conv_transpose1d(rng, published):
    yield _normal(rng, 2, 16, 5), _normal(rng, 16, 8, 10, scale=0.2), _normal(rng, 8), 5
    yield _normal(rng, 1, 16, 4), _normal(rng, 16, 16, 2, scale=0.2), _normal(rng, 16), 2
    yield _normal(rng, 2, 16, 5), _normal(rng, 16, 8, 10, scale=0.2), _normal(rng, 8), 5, 5  # trimmed
    if published:
        yield _normal(rng, 1, 1536, 17), _normal(rng, 1536, 768, 16, scale=0.02), _normal(rng, 768), 8, 8


def _conv2d(rng, published):
    yield _normal(rng, 2, 1, 16, 25), _normal(rng, 16, 1, 3, 3), _normal(rng, 16), 2, 1
    yield _normal(rng, 2, 16, 8, 13), _normal(rng, 16, 16, 3, 3, scale=0.1), _normal(rng, 16), 2, 1
    if published:
        yield _normal(rng, 2, 480, 64, 50), _normal(rng, 480, 480, 3, 3, scale=0.015), _normal(rng, 480), 2, 1


def _snake_beta(rng, published):
    for channels, steps in ((8, 11), (96, 7680)) if published else ((8, 11),):
        yield _normal(rng, 2, channels, steps), _normal(rng, channels, scale=0.3), _normal(rng, channels, scale=0.3)


def _scale_channels(rng, published):
    yield _normal(rng, 2, 5, 32), _normal(rng, 32)


def _embedding(rng, published):
    yield np.array([[3, 0], [8, 3]], np.int32), _normal(rng, 9, 32)
    if published:
        yield rng.integers(0, 20_000, (1, 512)).astype(np.int32), _normal(rng, 20_000, 2048)


def _embedding_part(rng, published):
    yield np.array([[3, 0], [8, 12]], np.int32), _normal(rng, 6, 32), 3


def _replaced_rows(rng, published):
    yield _normal(rng, 9, 32), np.array([7, 2], np.int32), _normal(rng, 2, 32)
    if published:
        yield _normal(rng, 2048, 2048), rng.permutation(2048)[:900].astype(np.int32), _normal(rng, 900, 2048)


def _write_rows(rng, published):
    for rows, new in ((9, 2), (4 * 8192, 4), (4 * 8192, 4 * 512))[: 3 if published else 1]:
        yield Buffer(_normal(rng, rows, 128)), rng.permutation(rows)[:new].astype(np.int32), _normal(rng, new, 128)


def _gather_rows(rng, published):
    yield _normal(rng, 9, 3, 16), np.array([7, 7, 0], np.int32)


def _weighted_sum_rows(rng, published):
    yield _normal(rng, 9, 32), np.array([[7, 2], [0, 0], [8, 1]], np.int32), rng.uniform(0, 1, (3, 2))


def _concat(rng, published):
    yield (_normal(rng, 2, 3, 16), _normal(rng, 2, 4, 16)), 1


def _transpose(rng, published):
    yield _normal(rng, 2, 3, 5, 16), (0, 2, 1, 3)


def _clip(rng, published):
    yield _normal(rng, 3, 16, scale=2.0), -1.0, 1.0


def _scores(rng, size=100):
    """Logits of which no two are alike, in bfloat16 neither."""
    return np.stack([rng.permutation(size) for _ in range(3)]).astype(np.float32) / np.float32(8)


def _argmax(rng, published):
    yield (_scores(rng),)
    if published:
        yield (_normal(rng, 1, 151_936).clip(-3, 3) + 9 * (np.arange(151_936) == 100_003).astype(np.float32),)


def _draw(rng, published):
    for top_k, top_p in ((0, 1.0), (7, 0.8)):
        yield _scores(rng), np.array([[0.03], [0.5], [0.97]]), 0.9, top_k, top_p


def _penalised(rng, published):
    for size in (96, 152_064) if published else (96,):
        planes = np.concatenate([rng.uniform(1, 1.5, (3, size)), -rng.uniform(0, 2, (3, size))])
        yield _normal(rng, 4, size), planes, np.array([0, 2, 1, 2], np.int32), np.array([3, 5, 4, 3], np.int32)


def _one(logits, count):
    return count == 1


def _largest(rng, published):
    yield np.repeat(_scores(rng, 50), 2, 1), 1  # of equals the first
    if published:
        yield from ((*case, 1) for case in _argmax(rng, True))


def _likeliest(rng, published):
    yield _scores(rng), 7


def _race(rng, published):
    """Noise with a clear winner, and no set whose probability is close to top_p."""
    for count in (8, 64) if published else (8,):
        c, before = 1e20, np.triu(np.ones((count, count)), 1)
        values = np.tile(np.arange(count, 0, -1, dtype=np.float32) / np.float32(8), (4, 1))
        excluded = np.where(np.arange(count) < np.array([[count], [count], [3], [1]]), 0.0, -np.inf)
        inverse, shares = np.array([[1.25], [0.5], [1.0], [1.0]]), np.array([[1.0], [0.42], [0.8], [1.0]])
        noise = np.full((4, count), 2.0)
        noise[np.arange(4), [4, 1, 2, 0]] = 0.01
        noise[1, 6] = 1e-4  # would win, but is outside top_p
        yield values, -c * before, inverse, excluded, np.tile(c * shares, (1, count)), noise


def _cross_entropy(rng, published):
    yield _scores(rng), np.array([5, 0, 99], np.int32)


def _expert_load(rng, published):
    yield _scores(rng), 4, np.array([1.0, 0.0, 1.0])


def _any(cases, compiled=True):
    return (Kind("any", cases, None, compiled),)


KINDS: dict[str, tuple[Kind, ...]] = {
    "linear": (
        Kind("codes", linear_of_codes, is_coded, compiled=False),
        Kind("one row", _linear_row, _one_row),
        Kind("several rows", _linear),
    ),
    "embedding": _any(_embedding),
    "embedding_part": _any(_embedding_part),
    "rms_norm": _any(_rms_norm),
    "layer_norm": _any(_layer_norm, compiled=False),
    "add_layer_norm": _any(_add_layer_norm, compiled=False),
    **dict.fromkeys(("silu", "sigmoid", "swiglu"), _any(_activation)),
    **dict.fromkeys(("gelu", "gelu_tanh", "quick_gelu", "relu"), _any(_activation, compiled=False)),
    "rotary": (
        Kind("heads of a multiple of 16", _rotary, _aligned_heads),
        Kind("other heads", _rotary_odd),
    ),
    "rotary_wide": _any(_rotary_wide, compiled=False),
    "attention": (
        Kind("one query", _attention_step, _one_query),
        Kind("several queries", _attention, _aligned, compiled=False),
        Kind("other heads or keys", _attention_odd),
    ),
    "paged_attention": (
        Kind("one query", _paged_step, _one_query_in_blocks),
        Kind("several queries", _paged_chunk, _aligned_heads, compiled=False),
        Kind("other heads or blocks", _paged_odd, compiled=False),
    ),
    "packed_attention": (
        Kind("heads of a multiple of 16", _packed_attention, _aligned_heads, compiled=False),
        Kind("other heads", _packed_attention_odd, None, compiled=False),
    ),
    "route_topk": _any(_route_topk),
    "experts": (
        Kind("codes", experts_of_codes, is_coded, compiled=False),
        Kind("few tokens", experts((1, 1), (None,)), few_whole),
        Kind(
            "few tokens on a rank", experts((1, 4), (8, 20)), few
        ),  # experts 20 and on do not exist, so all pairs are of other ranks
        Kind("many tokens", experts((33, 512), (None,)), whole, compiled=False),
        Kind("many tokens on a rank", experts((33, 512), (8, 20)), None, compiled=False),
    ),
    "conv1d": (
        Kind("filters of one channel", _conv1d_channels, _grouped, compiled=False),
        Kind("filters of all channels", _conv1d, None, compiled=False),
    ),
    "conv_transpose1d": _any(_conv_transpose1d, compiled=False),
    "conv2d": _any(_conv2d, compiled=False),
    "snake_beta": _any(_snake_beta, compiled=False),
    "scale_channels": _any(_scale_channels),
    "scatter_rows": _any(_replaced_rows, compiled=False),
    "add_rows": _any(_replaced_rows, compiled=False),
    "write_rows": _any(_write_rows),
    "gather_rows": _any(_gather_rows),
    "weighted_sum_rows": _any(_weighted_sum_rows),
    "concat": _any(_concat),
    "transpose": _any(_transpose),
    "clip": _any(_clip, compiled=False),
    "argmax": _any(_argmax),
    "draw": _any(_draw),
    "penalised": _any(_penalised),
    "likeliest": (Kind("one", _largest, _one), Kind("several", _likeliest)),
    "race": _any(_race),
    "cross_entropy": _any(_cross_entropy, compiled=False),
    "expert_load": _any(_expert_load, compiled=False),
}
"""operator -> its kinds of arguments; every argument is of the first kind that it fits."""


def cases(operator: str, rng: np.random.Generator, published: bool = False) -> Iterator[tuple]:
    """The arguments of all kinds of an operator."""
    for kind in KINDS[operator]:
        yield from kind.cases(rng, published)


CASES = {operator: functools.partial(cases, operator) for operator in KINDS}
