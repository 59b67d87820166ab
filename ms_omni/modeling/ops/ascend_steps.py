"""Whole steps on Ascend: a token for many rows, a chunk of a prompt, the codes of a frame, over layers whose weights are packed.

A token and a frame are graphs for the numbers of rows in `ready`, compiled before the first request; for other numbers, and for
prompts, which have any length, the same kernels are called one by one. So nothing is compiled during a request.
"""

from collections.abc import Callable, Container, Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, mint, nn

from ...locking import interruptible
from ...quantised import Quantised
from . import ascend_kernels as kernels
from . import ascend_products as products
from .ascend_layer import BoostedLayer, CachedLayer, FrameLayer
from .ascend_weights import place, rounded
from .fused import CANDIDATES, BlockTables, FrameWeights, Kind, StackWeights, draw_inputs, preceding_sums
from .stored import Pair

ALIGNMENT = 16


def dtype_of(weights: StackWeights | FrameWeights) -> ms.Type:
    return (weights.stack if isinstance(weights, FrameWeights) else weights).norm.dtype


def packs(weights: StackWeights | FrameWeights) -> bool:
    """See `ops.packs`: not float32, nor heads that are no multiple of 16 wide, nor experts or codes of heads in the code predictor."""
    frame = isinstance(weights, FrameWeights)
    stack = weights.stack if frame else weights
    known = dtype_of(weights) in kernels.ATTENTION_TYPES and stack.head_dim % ALIGNMENT == 0
    if not frame:
        return known
    sparse = any(layer.router is not None for layer in stack.layers)
    tables = weights.first_embedding, *weights.embeddings, *weights.heads
    coded = any(isinstance(table, tuple) for table in tables)
    return known and not coded and not sparse and weights.heads[0].shape[0] >= CANDIDATES


def prepare(
    weights: StackWeights | FrameWeights, previous: Any = None, boosted: bool = False, bits: frozenset[int] = products.BITS
) -> "PreparedStack | PreparedFrame":
    if isinstance(weights, FrameWeights):
        return previous if isinstance(previous, PreparedFrame) and previous.fits(weights) else PreparedFrame(weights, bits)
    return PreparedStack(weights, boosted, bits)


class Launch:
    """A cell, as a graph or kernel by kernel. ready: numbers of rows with a graph, which the next call compiles; boosted: a
    cell that is the graph instead, in kernels that exist in graphs alone.
    """

    def __init__(self, cell: nn.Cell, ready: set[int], boosted: nn.Cell | None = None) -> None:
        in_graph, options = (cell, {}) if boosted is None else (boosted, {"infer_boost": "on"})
        for part in (cell, in_graph):
            part.set_train(False)
        self.cell, self.in_graph, self.ready = cell, in_graph, ready
        self.graph = ms.jit(
            in_graph, jit_level="O0", fullgraph=True, **options
        )  # an error where MindSpore would fall back to Python

    def __call__(self, rows: int, *inputs: Tensor) -> Any:
        if rows not in self.ready:
            return self.cell.construct(*inputs)
        with interruptible():
            return self.graph(*inputs)


class PreparedStack:
    """weights: `StackWeights`. boosted: whether graphs have the boosted form. bits: of codes that kernels multiply with. launch: of a token,
    for the buffers of a pool, from the first one on.
    """

    def __init__(self, weights: StackWeights, boosted: bool = False, bits: frozenset[int] = products.BITS) -> None:
        self.bits = bits
        self.weights, self.norm, self.eps, self.dtype = weights, weights.norm, weights.eps, weights.norm.dtype
        self.layers: list[CachedLayer] = [
            CachedLayer(layer, weights.eps, weights.head_dim, bits=bits) for layer in weights.layers
        ]
        self.boosted: list[CachedLayer] = [
            BoostedLayer(layer, weights.eps, weights.head_dim, like)
            for layer, like in zip(weights.layers, self.layers if boosted else ())
        ]
        sums = [part for layer in self.layers for part in (layer.sum_heads, layer.sum_experts)]
        self.sums = [part for part in sums if part is not None]
        self.launch, self.ready = None, set()

    def step(self, x: Tensor, cos: Tensor, sin: Tensor, head: Tensor | Quantised, cache: BlockTables) -> Pair:
        if self.launch is None or self.launch.cell.keys is not cache.keys:
            head = products.dense((head,), (None,), self.dtype, self.bits)
            boosted = _Step(self, self.boosted, head, cache) if self.boosted else None
            self.launch = Launch(_Step(self, self.layers, head, cache), self.ready, boosted)
        tables = np.zeros((len(x), self.launch.cell.columns), np.int32)
        width = min(tables.shape[1], cache.tables.shape[1])  # padded to a power of two
        tables[:, :width] = cache.tables[:, :width]
        last = cache.lengths - 1
        slots = np.take_along_axis(tables, last[:, None] // cache.block, 1)[:, 0] * cache.block + last % cache.block
        for part in self.sums if len(x) in self.ready else ():  # which count their traffic, but are not called in a graph
            part.count(x)
        step = self.launch.in_graph if len(x) in self.ready else self.launch.cell
        inputs = slots.astype(np.int32), tables, cache.lengths.astype(step.lengths)
        return self.launch(len(x), x.reshape(len(x), -1), *self._rope(cos, sin), *map(Tensor.from_numpy, inputs))

    def chunk(
        self,
        x: Tensor,
        cos: Tensor,
        sin: Tensor,
        cache: BlockTables,
        start: int,
        inject: Callable[[int, Tensor], Tensor] | None,
        observe: Callable[[int, Tensor], None] | None,
        wanted: Container[int],
    ) -> Tensor:
        size, stop = x.shape[1], int(cache.lengths[0])
        position, block = np.arange(start, start + size), cache.block
        slots = np.where(position < stop, self._rows(cache, np.minimum(position, stop - 1)), position % block)
        cached = np.arange(-(-stop // block) * block)
        rows = self._rows(cache, np.where(cached < stop, cached, 0))  # free positions may hold NaN
        last = np.minimum(position, stop - 1).astype(np.int32)[None, :, None]
        mask = mint.greater(Tensor(cached.astype(np.int32)), Tensor(last))
        slots, rows = Tensor(slots.astype(np.int32)), Tensor(rows.astype(np.int32))
        rope, total, shape = self._rope(cos, sin), None, x.shape
        if observe is not None and 0 in wanted:
            observe(0, x)
        x = x.reshape(size, -1)
        for index, layer in enumerate(self.layers):
            layer.block = block
            x, total = layer.construct(x, total, rope, (cache.keys[index], cache.values[index], slots, rows, mask))
            if observe is not None and index + 1 in wanted:
                observe(index + 1, (x + total).reshape(shape))
            if inject is not None:
                total = inject(index, total.reshape(shape)).reshape(total.shape)
        return kernels.add_rms_norm(x, total, self.norm, self.eps)[0].reshape(shape)

    @staticmethod
    def _rows(cache, positions):
        """Rows of the buffers that hold these positions of the first row."""
        return cache.tables[0][positions // cache.block] * cache.block + positions % cache.block

    def _rope(self, cos, sin):
        """Tables `[B, S, D/2]` of the host -> `[1, B * S, 1, D]`, both halves filled, in the type of the layers."""
        return tuple(rounded(full(table.asnumpy()), self.dtype) for table in (cos, sin))


def full(table: np.ndarray) -> np.ndarray:
    return np.concatenate((table, table), -1).reshape(1, -1, 1, 2 * table.shape[-1])


class _Step(nn.Cell):
    """One token for each of N rows. columns: of the tables, enough for all blocks, so that there is one shape per N."""

    def __init__(self, stack, layers, head, cache):
        super().__init__(auto_prefix=False)
        self.layers, self.norm, self.eps, self.head = nn.CellList(layers), stack.norm, stack.eps, head
        self.keys, self.values, self.columns = cache.keys, cache.values, cache.keys[0].shape[0] // cache.block
        self.lengths = layers[0].lengths
        for layer in self.layers:
            layer.block = cache.block

    def construct(self, x, cos, sin, slots, tables, batch_valid_length):
        """MindSpore may look for the lengths by this name: see `kernels.paged_attention`."""
        total = None
        for index, layer in enumerate(self.layers):
            context = self.keys[index], self.values[index], slots, tables, batch_valid_length
            x, total = layer(x, total, (cos, sin), context)
        hidden, _ = kernels.add_rms_norm(x, total, self.norm, self.eps)
        return self.head(hidden), hidden


def decoder_step(
    x: Tensor, cos: Tensor, sin: Tensor, head: Tensor | Quantised, cache: BlockTables, prepared: PreparedStack
) -> Pair:
    logits, hidden = prepared.step(x, cos, sin, head, cache)
    return logits.reshape(len(x), 1, -1), hidden.reshape(x.shape)


def decoder_chunk(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    cache: BlockTables,
    start: int,
    prepared: PreparedStack,
    inject: Callable[[int, Tensor], Tensor] | None = None,
    observe: Callable[[int, Tensor], None] | None = None,
    wanted: Container[int] = (),
) -> Tensor:
    return prepared.chunk(x, cos, sin, cache, start, inject, observe, wanted)


# ---- choosing one id per row ---------------------------------------------------------------------------------------------
#
# Penalties are six kernels, the likeliest ids one, drawing among them seven. Where id j arrives at time `noise[j] / probs[j]`, noise
# exponential, the first to arrive is id j with probability `probs[j]` (Gumbel-max trick; Maddison et al. 2014, section 2, in the
# exponential form). Ids that may not be drawn get no score above 0.


def penalised(logits: Tensor, planes: Tensor, factors: Tensor, biases: Tensor) -> Tensor:
    """With factors of 1 or more the smaller of product and quotient is the penalised logit, whatever its sign."""
    logits = logits.astype(ms.float32)
    factor, bias = mint.index_select(planes, 0, factors), mint.index_select(planes, 0, biases)
    return mint.minimum(mint.addcmul(bias, logits, factor), kernels.addcdiv(bias, logits, factor))


def likeliest(logits: Tensor, count: int) -> Pair:
    return kernels.largest(logits) if count == 1 else kernels.topk(logits, count)


def race(
    values: Tensor, before: Tensor, inverse_temperature: Tensor, excluded: Tensor, room: Tensor, noise: Tensor
) -> Tensor:
    probs = kernels.softmax(mint.addcmul(excluded, values.astype(ms.float32), inverse_temperature))
    left = mint.addmm(room, probs, before)  # times a large number: top_p minus the probability of likelier ids
    return mint.argmax(mint.minimum(mint.div(probs, noise), left), -1, True)


def drawn(logits: Tensor, before: Tensor, draw: tuple[Tensor, ...]) -> Pair:
    """One of the likeliest ids of each row, in a kernel more; draw: the other arguments of `race` -> ids int64 `[B, 1]`, the largest
    logits float32 `[B, K]`.
    """
    values, ids = kernels.topk(logits, CANDIDATES)
    values = values.astype(ms.float32)
    return mint.gather(ids, -1, race(values, before, *draw)), values


# ---- frames ------------------------------------------------------------------------------------------------------------


class PreparedFrame:
    """weights: `FrameWeights`. Rows of a launch are sampled each in its own way. noise_width: random numbers per code."""

    noise_width = CANDIDATES

    def __init__(self, weights: FrameWeights, bits: frozenset[int] = products.BITS) -> None:
        self.ready = set()
        self.launch = Launch(_Frame(weights, bits), self.ready)
        place(_parameters(weights))
        self.sources = _identity(weights)
        self.codes = len(weights.heads) + 1

    def fits(self, weights: FrameWeights) -> bool:
        """Whether it was prepared from these weights, as they are now."""
        return self.sources == _identity(weights)

    @staticmethod
    def takes(kind: Kind) -> bool:
        """Whether rows can be sampled in this way: greedily, or with top_k up to `CANDIDATES`."""
        return kind is None or 0 < kind[1] <= CANDIDATES

    def frame(self, hidden: Tensor, code: Tensor, noise: np.ndarray, kinds: Sequence[Kind]) -> Pair:
        """kinds: how each row samples, see `fused.Kind`; noise float32 `[B, n - 1, K]`, exponential."""
        codes, total, largest = self.run(hidden, code, noise, kinds)
        broken = ~np.isfinite(largest.asnumpy()).all(1)
        if broken.any():
            total = total + Tensor(np.where(broken, np.float32(np.nan), np.float32(0))[:, None, None]).astype(hidden.dtype)
        return codes, total

    def run(self, hidden: Tensor, code: Tensor, noise: np.ndarray, kinds: Sequence[Kind]) -> tuple[Tensor, Tensor, Tensor]:
        """The outputs of the launch, see `_Frame`."""
        rows, dtype = len(hidden), hidden.dtype
        *same, noise = draw_inputs(kinds, noise)
        summed = np.ones((rows, 1, self.codes), np.float32)
        summed[..., 0] = 0  # of the talker's state
        arrays = *same, np.ascontiguousarray(noise.swapaxes(0, 1))
        inputs = hidden, code.astype(ms.int64), rounded(summed, dtype), *map(Tensor.from_numpy, arrays)
        return self.launch(rows, *inputs)


def _identity(weights):
    """Identities and addresses, which differ when any of the weights does."""
    return [(id(part), part.data_ptr()) for part in _parameters(weights)]


def _parameters(weights):
    stack = weights.stack
    parts = [weights.first_embedding, *weights.embeddings, *weights.heads, stack.norm]
    fields = [
        part for layer in stack.layers for field in layer for part in (field if isinstance(field, tuple) else (field,))
    ]
    return parts + [part for part in fields if isinstance(part, Parameter)]


class _Frame(nn.Cell):
    """The growing sequence of at most n tokens goes through the layers again for each code: n is small, and without a cache nothing
    has to be copied.
    """

    def __init__(self, weights, bits):
        super().__init__(auto_prefix=False)
        stack, count = weights.stack, len(weights.heads)
        self.layers = nn.CellList([FrameLayer(layer, stack.eps, stack.head_dim, bits=bits) for layer in stack.layers])
        self.norm, self.eps, self.first = stack.norm, stack.eps, weights.first_embedding
        self.heads, self.tables = ParameterTuple(weights.heads), ParameterTuple(weights.embeddings)
        sizes = range(2, count + 2)
        cos, sin = ([full(table[:size]) for size in sizes] for table in (weights.cos, weights.sin))
        self.ropes = tuple(tuple(rounded(table, stack.norm.dtype) for table in pair) for pair in zip(cos, sin))
        self.masks = tuple(Tensor(np.triu(np.ones((1, size, size), bool), 1)) for size in sizes)
        self.last = tuple(Tensor(np.array([size - 1], np.int32)) for size in sizes)
        self.before, self.counts = Tensor(preceding_sums()), (1,) * count

    def construct(self, hidden, code, summed, inverse_temperature, excluded, room, noise):
        """hidden `[B, 1, D]`, code int64 `[B, 1]`, summed `[B, 1, n]`: weights of the sum; then see `ops.race`, noise
        `[n - 1, B, K]` -> codes int64 `[B, n]`, sums of their embeddings `[B, 1, D]`, the last code's largest logits `[B, K]`.
        """
        b, _, width = hidden.shape
        x, codes = mint.cat((hidden, kernels.embedding(code, self.first)), 1), (code,)
        noises, embed, largest = kernels.split(noise, self.counts, 0), None, None
        for index in range(len(self.counts)):
            if embed is not None:
                x = mint.cat((x, embed), 1)
            rows, total = x.reshape(-1, width), None
            for layer in self.layers:
                rows, total = layer(rows, total, self.ropes[index], self.masks[index])
            rows, _ = kernels.add_rms_norm(rows, total, self.norm, self.eps)
            state = mint.index_select(rows.reshape(b, -1, width), 1, self.last[index]).reshape(b, width)
            draw = (inverse_temperature, excluded, room, noises[index].reshape(room.shape))
            code, largest = drawn(kernels.dense(state, self.heads[index], None), self.before, draw)
            embed = kernels.embedding(code, self.tables[index])
            codes = (*codes, code)
        return mint.cat(codes, 1), mint.baddbmm(embed, summed, x), largest


def code_frame(hidden: Tensor, code: Tensor, noise: np.ndarray, sampling: Sequence[Kind], prepared: PreparedFrame) -> Pair:
    return prepared.frame(hidden, code, noise, sampling)
