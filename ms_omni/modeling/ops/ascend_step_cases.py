"""Test cases of whole steps on a device (see `ascend_cases.py`), and how they run: packed layers as in generation, not in parts, as a
step calls kernels and no operator that could be replaced alone.

A graph is called twice, with other lengths, tables and slots: `FusedInferAttentionScore` reads lengths on the host, and a graph that
reused the first ones would be wrong from the second token on. Rounding must not change a choice: the experts of each row lead by far, and
the rows of a frame are those whose codes lead by far.
"""

import functools
import itertools
from typing import Any, NamedTuple, NoReturn

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor

from ...quantised import Quantised, Storage
from . import formulas
from .ascend_cases import Kind, _tables
from .ascend_steps import PreparedFrame, PreparedStack, decoder_chunk, decoder_step
from .ascend_weight_cases import coded, coded_stack
from .ascend_weight_cases import normal as _normal
from .ascend_weights import rounded
from .fused import BlockTables, FrameWeights, LayerWeights, StackWeights

EPS = 1e-6


class Sizes(NamedTuple):
    """inner: of an expert, or of the dense MLP; shared: of the shared expert; local: experts of this rank, from number first on."""

    width: int
    heads: int
    kv_heads: int
    channels: int
    inner: int
    experts: int = 0
    top_k: int = 0
    shared: int = 0
    first: int | None = None
    local: int = 0


SMALL = Sizes(64, 8, 2, 16, 32, 8, 2, 48)
SMALL_RANK = Sizes(64, 4, 1, 16, 32, 8, 2, first=4, local=4)
SMALL_DENSE = Sizes(64, 4, 2, 16, 96)
THINKER = Sizes(2048, 32, 4, 128, 768, 128, 8)
THINKER_RANK = THINKER._replace(heads=16, kv_heads=2, first=64, local=64)
TALKER = Sizes(1024, 16, 2, 128, 384, 128, 6, 768)
CODED = Sizes(64, 8, 2, 16, 64, 8, 2, 64)
PREDICTOR = Sizes(1024, 16, 8, 128, 3072)
MARKS = 8
"""Channels of a layer's input of which each has its own experts."""


def _weight(rng, rows, columns):
    return _normal(rng, rows, columns, scale=columns**-0.5)


def _gain(rng, size):
    return 1 + _normal(rng, size, scale=0.2)


def _layer(rng, sizes, biases=False, storage=None):
    """A `LayerWeights` of arrays; storage: of its matrices, if they are codes."""
    width, channels, inner = sizes.width, sizes.channels, sizes.shared if sizes.experts else sizes.inner
    shapes = [(heads * channels, width) for heads in (sizes.heads, sizes.kv_heads, sizes.kv_heads)]
    shapes.append((width, sizes.heads * channels))
    weights = [_weight(rng, *shape) for shape in shapes]
    others = [_normal(rng, shape[0], scale=0.1) if biases else None for shape in shapes]
    norms = _gain(rng, channels), _gain(rng, channels), _gain(rng, width)
    arrays: list[Any] = [_gain(rng, width), *weights, *others, *norms]
    layer = LayerWeights(*arrays)
    if inner:
        layer = layer._replace(
            gate=_weight(rng, inner, width), up=_weight(rng, inner, width), down=_weight(rng, width, inner)
        )
    if sizes.experts:
        layer = _mixture(rng, sizes, layer, storage)
    return tuple(layer if storage is None else _with_codes(layer, storage))


def _with_codes(layer, storage):
    """A `LayerWeights` whose matrices, but for the router and the shared expert's gate, are codes."""
    fields = [name for name in ("q", "k", "v", "o", "gate", "up", "down") if getattr(layer, name) is not None]
    return layer._replace(**{name: coded(getattr(layer, name), storage) for name in fields})


def _mixture(rng, sizes, layer, storage):
    width, count, inner = sizes.width, sizes.experts, sizes.inner
    up, down = _normal(rng, width, 2 * inner, scale=width**-0.5), _normal(rng, inner, width, scale=inner**-0.5)
    local = range(sizes.local or count)
    stacks = (_stacked(part, local, storage) for part in (up, down))
    router = _weight(rng, count, width)
    for mark in range(MARKS):
        router[rng.permutation(count)[sizes.top_k :], mark] = -3.0
        layer.o[mark], layer.post_norm[mark] = 0, 1  # so that the mark reaches the router unchanged
    shared = _weight(rng, 1, width) if sizes.shared else None
    fields = dict(zip(("experts_gate_up", "experts_down"), stacks), top_k=sizes.top_k, normalise=True, first=sizes.first)
    return layer._replace(router=router, shared_gate=shared, **fields)


def _stacked(part, local, storage):
    """Experts, each the one before rolled by one (see `ascend_weight_cases.mixture`); of codes outputs are rolled."""
    if storage is None:
        return np.stack([np.roll(part, number, 0) for number in local])
    return coded_stack(part.T, storage, len(local))


def _inputs(rng, sizes, rows, mark):
    """Inputs of so many rows, each with a mark of its own if there are at most `MARKS`."""
    x = _normal(rng, rows, sizes.width)
    if sizes.experts:
        x[:, :MARKS] = 0
        x[np.arange(rows), (np.arange(rows) + mark) % MARKS] = 5
    return x


def _pool(rng, sizes, block, lengths, room):
    """Keys and values of so many positions in random blocks, tables with room for more: NaN behind them, and in free blocks."""
    used = [-(-(length + room) // block) for length in lengths]
    shape = ((sum(used) + 2) * block, sizes.kv_heads * sizes.channels)
    keys, values = (np.full(shape, np.nan, np.float32) for _ in range(2))
    tables, free = np.zeros((len(lengths), max(used)), np.int32), iter(rng.permutation(sum(used) + 1) + 1)
    for table, length, count in zip(tables, lengths, used):
        table[:count] = [next(free) for _ in range(count)]
        position = np.arange(length)
        for buffer in (keys, values):
            buffer[table[position // block] * block + position % block] = _normal(rng, length, shape[1])
    return keys, values, tables


def _step(rng, sizes, block, lengths, biases=False, storage=None):
    """Two calls: behind so many positions, then the rows in another order, some of them behind fewer. The last row pads."""
    keys, values, tables = _pool(rng, sizes, block, lengths, 2)
    first = np.array(lengths, np.int32) + 1
    second = np.where(np.arange(len(first)) % 2, first + 1, np.maximum(first // 2, 1)).astype(np.int32)
    calls = []
    for number, (order, length) in enumerate(((slice(None), first), (slice(None, None, -1), second))):
        table, length = np.pad(tables[order], ((0, 1), (0, 0))), np.append(length[order], np.int32(1))
        x = _inputs(rng, sizes, len(length), number)[:, None]
        calls.append((x, *_tables(rng, len(length), 1, sizes.channels // 2), table, length))
    norm, head = _gain(rng, sizes.width), _weight(rng, 96, sizes.width)
    if storage is not None:
        head = coded(head, Storage(8))
    return _layer(rng, sizes, biases, storage), norm, head, EPS, sizes.channels, block, keys, values, tuple(calls)


def _tokens(rng, published):
    yield _step(rng, SMALL, 16, (4, 32, 63), biases=True)
    yield _step(rng, SMALL_RANK, 16, (40, 7, 15))
    yield _step(rng, SMALL_DENSE, 16, (17,))
    for sizes in (THINKER, THINKER_RANK, TALKER) if published else ():
        yield _step(rng, sizes, 128, (0, 129, 1000, 4096, 127, 300, 20))


def _tokens_of_codes(small, published_storage):
    def cases(rng, published):
        yield _step(rng, CODED, 16, (4, 32, 63), storage=small)
        for sizes in (THINKER, TALKER) if published else ():
            yield _step(rng, sizes, 128, (0, 129, 1000, 300), storage=published_storage)

    return cases


def _chunk(rng, sizes, block, start, count, size):
    keys, values, tables = _pool(rng, sizes, block, (start,), count)
    x = np.concatenate([_inputs(rng, sizes, 1, token) for token in range(size)])[None]
    rope, norm = _tables(rng, 1, size, sizes.channels // 2), _gain(rng, sizes.width)
    return _layer(rng, sizes), norm, EPS, sizes.channels, block, keys, values, x, *rope, tables[0], start, count


def _chunks(rng, published):
    yield _chunk(rng, SMALL, 16, 24, 13, 16)
    yield _chunk(rng, SMALL_RANK, 16, 0, 20, 32)
    if published:
        yield _chunk(rng, THINKER, 128, 512, 500, 512)


def _frame(rng, sizes, layers, vocabulary, codes, rows, candidates):
    """Among many rows those whose codes lead by far."""
    half, width = sizes.channels // 2, sizes.width
    first, *embeddings = (_normal(rng, vocabulary, width) for _ in range(codes))
    heads = tuple(_weight(rng, vocabulary, width) for _ in embeddings)
    stack = tuple(_layer(rng, sizes) for _ in range(layers)), _gain(rng, width), EPS, sizes.channels
    weights = *stack, first, tuple(embeddings), heads, *_tables(rng, codes, half)
    hidden = _normal(rng, candidates, 1, width)
    code = rng.integers(0, vocabulary, (candidates, 1)).astype(np.int32)
    best = np.argsort(formulas.leads(hidden, code, *weights).min(1))[-rows:]
    return hidden[best], code[best], *weights


def _frames(rng, published):
    yield _frame(rng, SMALL_DENSE, 2, 80, 4, 3, 60)
    if published:
        yield _frame(rng, PREDICTOR, 5, 2048, 4, 2, 40)


# ---- how they run ----------------------------------------------------------------------------------------------------

_numbers = itertools.count()


def _parameter(value, dtype) -> Any:
    """On the host, where the model's are."""
    if isinstance(value, Quantised):
        codes = Parameter(value.codes, name=f"case{next(_numbers)}", requires_grad=False)
        return Quantised(codes, *(_parameter(part, dtype) for part in value[1:]))
    if not isinstance(value, Tensor):
        return value
    return Parameter(rounded(_array(value), dtype), name=f"case{next(_numbers)}")


def _array(tensor):
    return tensor.astype(ms.float32).asnumpy()


def _stack(layers, norm, eps, head_dim):
    dtype = norm.dtype
    layers = tuple(LayerWeights(*(_parameter(value, dtype) for value in layer)) for layer in layers)
    return StackWeights(layers, _parameter(norm, dtype), eps, head_dim)


def _cache(stack, keys, values, block, dtype):
    """Blocks without rows."""
    keys, values = ((_parameter(part, dtype),) for part in (keys, values))
    none = np.zeros((0, 0), np.int32)
    return BlockTables(keys, values, stack.layers[0].kv_heads, block, none, none.reshape(-1))


def _written(cache, positions):
    """Keys and values at positions `[B, S]` of the rows of a cache."""
    slots = formulas.rows_of_buffers(cache.tables, positions, cache.block).reshape(-1)
    return [_array(part)[slots] for (part,) in (cache.keys, cache.values)]


def _tokens_through(boosted, ready, layer, norm, head, eps, head_dim, block, keys, values, calls):
    stack, outputs = PreparedStack(_stack((layer,), norm, eps, head_dim), boosted), []
    head, cache = _parameter(head, norm.dtype), _cache(stack, keys, values, block, norm.dtype)
    if ready:
        stack.ready.add(len(calls[0][0]))
    elif boosted:  # where numpy emulates its kernels
        stack.layers, stack.boosted = stack.boosted, []
    for x, cos, sin, tables, lengths in calls:
        rows = cache._replace(tables=tables.asnumpy(), lengths=lengths.asnumpy())
        outputs += decoder_step(x, cos, sin, head, rows, stack)
        outputs += _written(rows, rows.lengths[:, None] - 1)
    return tuple(outputs)


def packed_step(*case: Any, ready: bool = False) -> tuple:
    return _tokens_through(False, ready, *case)


def boosted_step(*case: Any, ready: bool = False) -> tuple:
    return _tokens_through(True, ready, *case)


def packed_chunk(
    layer: tuple,
    norm: Tensor,
    eps: float,
    head_dim: int,
    block: int,
    keys: Tensor,
    values: Tensor,
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    table: Tensor,
    start: int,
    count: int,
) -> tuple:
    stack, stop = PreparedStack(_stack((layer,), norm, eps, head_dim)), start + count
    cache = _cache(stack, keys, values, block, norm.dtype)
    cache = cache._replace(tables=table.asnumpy()[None], lengths=np.array([stop]))
    hidden = decoder_chunk(x, cos, sin, cache, start, stack)
    return _array(hidden)[:, :count], *_written(cache, np.arange(start, stop)[None])


def packed_frame(
    hidden: Tensor,
    code: Tensor,
    layers: tuple,
    norm: Tensor,
    eps: float,
    head_dim: int,
    first: Tensor,
    embeddings: tuple,
    heads: tuple,
    cos: Tensor,
    sin: Tensor,
    ready: bool = False,
) -> tuple:
    parts = [tuple(_parameter(part, norm.dtype) for part in group) for group in ((first,), embeddings, heads)]
    (first,), embeddings, heads = parts
    weights = FrameWeights(_stack(layers, norm, eps, head_dim), first, embeddings, heads, cos.asnumpy(), sin.asnumpy())
    frame, rows = PreparedFrame(weights), len(hidden)
    if ready:
        frame.ready.add(rows)
    noise = np.zeros((rows, len(heads), frame.noise_width), np.float32)
    codes, total, largest = frame.run(hidden, code, noise, [None] * rows)
    return codes.astype(ms.int32), total, largest


def cells(*case: Any) -> NoReturn:
    """Replaces a step that is wrong on a device: its cells, of operators that are right."""
    raise NotImplementedError


def numbers_of_codes(*case: Any) -> NoReturn:
    """Replaces a step with codes that is wrong on a device: the same with dequantised weights, which take more memory."""
    raise NotImplementedError


for form in (packed_step, boosted_step, packed_frame):
    form.compiled = functools.partial(form, ready=True)

OF_CODES = {8: "int8_step", 4: "int4_step"}
"""Bits of codes -> the step with such weights."""
STEPS: dict[str, tuple[Kind, ...]] = {
    "decoder_step": (Kind("any", _tokens),),
    "decoder_chunk": (Kind("any", _chunks, compiled=False),),
    "code_frame": (Kind("any", _frames),),
    "boosted_step": (Kind("any", _tokens, called=False),),
    "int8_step": (Kind("any", _tokens_of_codes(Storage(8), Storage(8))),),
    "int4_step": (Kind("any", _tokens_of_codes(Storage(4, 32), Storage(4, 128))),),
}
"""step -> its kinds, as in `ascend_cases.py`."""
STEP_FORMS = {
    "decoder_step": (packed_step, cells),
    "decoder_chunk": (packed_chunk, cells),
    "code_frame": (packed_frame, cells),
    "boosted_step": (boosted_step, packed_step),
    "int8_step": (packed_step, numbers_of_codes),
    "int4_step": (packed_step, numbers_of_codes),
}
"""step -> the form that is compared, and its replacement, which is not compared as this step."""
