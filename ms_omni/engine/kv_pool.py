"""Keys and values of all answers in blocks of one pool, and the two passes that read and write them.

A row is a sequence of its own: position p stands in block `table[p // P]`, offset p % P. A prompt is read in chunks, one row
at a time (`KVPool.read_chunk`); tokens are decoded for many rows at once, each of its own length (`PoolStep`). `blocks.py` says which row
owns which block. Block 0 is scratch: what pads a chunk or a batch is written there and never read.
"""

import itertools
from collections.abc import Callable, Container, Sequence
from collections.abc import Sequence as Rows
from functools import cached_property
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor
from mindspore.common.initializer import initializer

from ..errors import InputError
from ..modeling import BLOCK_TOKENS, ops
from ..modeling.cache import MASKED, KVCache
from ..modeling.decoder import Decoder
from ..modeling.layer import Cell, explained, has_hooks
from ..modeling.moe import SparseMoeBlock
from ..modeling.ops.fused import BlockTables
from ..modeling.step_weights import stack_weights
from ..modeling.steps import COMPILE_AFTER, Graph, Step, bucket
from ..quantised import Quantised

Pair = tuple[Tensor, Tensor]
_numbers = itertools.count()  # of buffers, whose names are so the same in each run
CACHE_DTYPES = ("auto", "int8")
"""How keys and values may be stored: in the type that is computed in, or as codes with a scale per token and head."""
SCALE_BYTES = 4
PACKED_BLOCK = 16
"""Positions that a block of a pool for packed weights is a multiple of."""


def table_width(blocks: int) -> int:
    """Columns of a table for so many blocks: the next power of two, so that there are few shapes."""
    return 1 << max(blocks - 1, 0).bit_length()


def check_cache_dtype(dtype: str) -> None:
    """Raises `InputError` unless keys and values can be stored so on this device: see `KVPool.of`."""
    if dtype not in CACHE_DTYPES:
        raise InputError(f"kv_cache_dtype is {dtype!r}, expected one of {', '.join(CACHE_DTYPES)}")
    if dtype == "int8" and not ops.caches_codes():
        raise InputError(
            "kv_cache_dtype='int8' is for CPU: no kernel of Ascend is known to read a scale for each token and head from blocks "
            "without further launches (docs/ascend.md); leave it out"
        )


class KVPool:
    """The buffers of every layer, allocated once: Parameters `[blocks * K * P, D]`, row `(block * K + head) * P + offset`.

    With dtype int8 each is a `Quantised` of such, whose rows have a scale each (float32 `[blocks * K * P, 1]`).

    decoder: one that a pool is for whose weights are packed (`ops.packs`): `[blocks * P, K * D]`, row `block * P + offset`.
    """

    def __init__(
        self,
        num_layers: int,
        num_kv_heads: int,
        head_dim: int,
        blocks: int,
        dtype: ms.Type = ms.float32,
        block: int = BLOCK_TOKENS,
        decoder: Decoder | None = None,
    ) -> None:
        self.decoder = decoder
        self.num_layers, self.heads, self.head_dim, self.dtype, self.block = num_layers, num_kv_heads, head_dim, dtype, block
        self.blocks = blocks
        self.keys, self.values = (self._buffers(kind, blocks) for kind in ("key", "value"))
        self._read: tuple[Decoder, Any] | None = None

    def _buffers(self, kind, blocks):
        rows, name = self.per_position, f"pool{next(_numbers)}.{kind}"
        length, width = blocks * rows * self.block, self.heads // rows * self.head_dim
        buffers = self._zeros((length, width), self.dtype, name)
        if self.dtype != ms.int8:
            return buffers
        return tuple(map(Quantised, buffers, self._zeros((length, 1), ms.float32, f"{name}_scale")))

    def _zeros(self, shape, dtype, name):
        # A Parameter made from a view loses in-place writes (MindSpore 2.7.1), so the buffers are created flat.
        layers = range(self.num_layers)
        return ParameterTuple([Parameter(initializer("zeros", shape, dtype), name=f"{name}{i}") for i in layers])

    @property
    def parts(self) -> tuple[list, list]:
        """Of the keys and then the values of all layers: numbers or codes, and the scales of codes."""
        buffers = [*self.keys, *self.values]
        if self.dtype != ms.int8:
            return buffers, []
        return [buffer.codes for buffer in buffers], [buffer.scales for buffer in buffers]

    def reserve(self, blocks: int) -> None:
        """Makes room for so many blocks in all, where there is less; what is stored remains."""
        if blocks <= self.blocks:
            return
        old = self.parts
        rows = Tensor(np.arange(len(old[0][0]), dtype=np.int32))
        self.keys, self.values = (self._buffers(kind, blocks) for kind in ("key", "value"))
        for new_buffers, old_buffers in zip(self.parts, old):
            for buffer, stored in zip(new_buffers, old_buffers):
                ops.write_rows(buffer, rows, stored)
        self.blocks = blocks
        if self.stack is not None:
            self.stack.ready.clear()

    @classmethod
    def of(cls, decoder: Decoder, blocks: int, block: int = BLOCK_TOKENS, dtype: str = "auto") -> "KVPool":
        """A pool for the layers and kv heads of a decoder that this process holds. dtype: of `CACHE_DTYPES`, see `check_cache_dtype`."""
        heads, dtype = decoder.layers[0].self_attn.num_kv_heads, decoder.norm.dtype if dtype == "auto" else ms.int8
        packed = decoder if cls.packs(decoder, block) else None
        return cls(len(decoder.layers), heads, decoder.config.head_dim, blocks, dtype, block, packed)

    @staticmethod
    def packs(decoder: Decoder, block: int = BLOCK_TOKENS) -> bool:
        """Whether the weights of a decoder are packed for its steps."""
        weights = stack_weights(decoder, shared=True)
        return weights is not None and ops.packs(weights) and block % PACKED_BLOCK == 0

    @cached_property
    def stack(self) -> Any:
        """What `ops.prepare` has made of the layers that pack their weights, or None."""
        weights = None if self.decoder is None else stack_weights(self.decoder, shared=True)
        return None if weights is None else ops.prepare(weights)

    @property
    def per_position(self) -> int:
        """Rows of a buffer for one position."""
        return self.heads if self.decoder is None else 1

    @staticmethod
    def block_bytes(decoder: Decoder, block: int = BLOCK_TOKENS, dtype: str = "auto") -> int:
        """Memory of one block over all layers."""
        heads, width = decoder.layers[0].self_attn.num_kv_heads, decoder.config.head_dim
        row = width * decoder.norm.itemsize if dtype == "auto" else width + SCALE_BYTES
        return 2 * len(decoder.layers) * heads * block * row

    @property
    def store(self) -> tuple:
        """As the layers take it, see `modeling/cache.py`."""
        return self.keys, self.values, self.block

    def tables(self, rows: Sequence[Sequence[int]], lengths: Sequence[int]) -> np.ndarray:
        """Block numbers of rows with so many positions -> int32 `[B, n]`, n a power of two, filled with 0."""
        used = [-(-int(length) // self.block) for length in lengths]
        found = np.zeros((len(rows), table_width(max(used))), np.int32)
        for line, row, count in zip(found, rows, used, strict=True):
            if len(row) < count:
                raise ValueError(f"a row has {len(row)} blocks of {self.block} positions, but needs {count}")
            line[:count] = row[:count]
        return found

    def slots(self, tables: np.ndarray, positions: np.ndarray, real: np.ndarray | None = None) -> np.ndarray:
        """Rows of the buffers that hold positions `[B, S]` of rows with tables `[B, n]` -> int32 `[B * S * K]`, or `[B * S]`.

        real bool `[B, S]`: False where a position is padding and belongs into block 0.
        """
        columns = np.minimum(positions // self.block, tables.shape[1] - 1)  # padding may lie behind the last block
        numbers = np.take_along_axis(tables, columns, 1)
        if real is not None:
            numbers = np.where(real, numbers, 0)
        heads = self.per_position
        rows = (numbers[..., None] * heads + np.arange(heads)) * self.block + (positions % self.block)[..., None]
        return rows.reshape(-1).astype(np.int32)

    def read_chunk(
        self,
        decoder: Decoder,
        x: Tensor,
        rope: Pair,
        start: int,
        count: int,
        table: Sequence[int],
        inject: Callable[[int, Tensor], Tensor] | None = None,
        observe: Callable[[int, Tensor], None] | None = None,
        wanted: Container[int] | None = None,
    ) -> Tensor:
        """Reads the tokens `[start, start + count)` of a row, whose earlier ones are in the pool -> hidden states `[1, S, D]`.

        x `[1, S, D]`, rope (cos, sin) `[1, S, D/2]`: from `count` on both are padding, as is the result. table: the row's blocks
        in order. inject and observe: see `Decoder.run`; wanted: what is to be observed at least (None: all). The bits depend on these
        arguments alone, not on block numbers.
        """
        size, stop = x.shape[1], start + count
        if not 0 < count <= size or start < 0:
            raise ValueError(f"a chunk of {size} positions holds {count} tokens from {start} on")
        tables, offsets = self.tables([table], [stop]), np.arange(size)[None]
        fused = self._reader(decoder)
        if fused is not None:
            cache = BlockTables(self.keys, self.values, self.heads, self.block, tables, np.array([stop]))
            wanted = range(self.num_layers + 1) if wanted is None else wanted
            try:
                return ops.decoder_chunk(x, *rope, cache, start, fused, inject, observe, wanted)
            except Exception as error:
                raise explained(error) from None
        slots = self.slots(tables, start + offsets, offsets < count)
        if ops.pages_prompts():
            where, store = _tensors(tables, np.array([start]), np.array([stop])), self.store
        else:
            where, rows = self._copied(tables, start + offsets, stop)
            store = *self.store, rows
        return decoder.run(x, (*rope, where, Tensor(slots)), store, inject, observe)

    def _reader(self, decoder):
        """What `ops.decoder_chunk` takes for a decoder, or None where its cells are to run, which alone call hooks."""
        if self.stack is not None or not ops.reads_chunks():
            return self.stack
        if self._read is None or self._read[0] is not decoder:
            weights = stack_weights(decoder)
            self._read = decoder, weights and ops.prepare(weights)
        return None if has_hooks(decoder) else self._read[1]

    def _copied(self, tables, queries, stop):
        """The mask `[1, S, T]` of queries at positions `[1, S]` of one row, and the rows of the buffers int32 `[K * T]` that hold its
        `stop` positions; those that fill its last block up repeat the first, since unused rows may hold NaN.
        """
        position = np.arange(-(-stop // self.block) * self.block)
        known = np.where(position < stop, position, 0)[None]
        rows = self.slots(tables, known).reshape(len(position), -1).T
        visible = position <= np.minimum(queries, stop - 1)[..., None]
        mask = np.where(visible, np.float32(0), np.float32(MASKED))
        return Tensor(mask), Tensor(np.ascontiguousarray(rows).reshape(-1))


class PoolStep(Step):
    """One new token for each of some rows, through a decoder and its output layer.

    Where there is a fused operator (`ops.decoder_step`) that is all of it. Else the cells run, as a graph when it pays; there is
    one per number of rows and width of the tables.
    """

    def __init__(
        self, decoder: Decoder, output_layer: Cell, pool: KVPool, compile_after: int | None = COMPILE_AFTER
    ) -> None:
        super().__init__(compile_after)
        self.decoder, self.output_layer, self.pool = decoder, output_layer, pool
        self.fused = pool.stack
        if self.fused is None:
            weights = stack_weights(decoder, output_layer)
            self.fused = weights and ops.prepare(weights)
        self.graph = None if self.fused else _PoolGraph(decoder, output_layer, pool)
        self.top_k = max((layer.mlp.top_k for layer in decoder.layers if isinstance(layer.mlp, SparseMoeBlock)), default=0)

    def __call__(self, x: Tensor, rope: Pair, tables: np.ndarray, lengths: np.ndarray) -> Pair:
        """x `[B, 1, D]`, rope (cos, sin) `[B, 1, D/2]`, tables int32 `[B, n]`, lengths int32 `[B]` with the new token
        -> logits `[B, 1, V]`, hidden `[B, 1, D]`. A row that only pads the batch has length 1 and a table of zeros.
        """
        pool = self.pool
        if self.fused is not None:
            cache = BlockTables(pool.keys, pool.values, pool.heads, pool.block, tables, lengths)
            try:
                return ops.decoder_step(x, *rope, self.output_layer.stored(shared=True)[0], cache, self.fused)
            except Exception as error:
                raise explained(error) from None
        graph = self.graph
        if graph is None or graph.pool_blocks != pool.blocks:  # it has grown
            graph = self.graph = _PoolGraph(self.decoder, self.output_layer, pool)
        slots = Tensor(pool.slots(tables, lengths[:, None] - 1))
        where = _tensors(tables, lengths - 1, lengths)
        fits_graph = len(lengths) * self.top_k <= ops.graph_expert_rows()
        if fits_graph and self.decoder.compilable and self.due(tables.shape):
            return graph(x, *rope, slots, *where)
        return graph.run(x, *rope, slots, *where)

    @property
    def sizes(self) -> list[int]:
        """Of launches that are graphs, where weights are packed."""
        return [] if self.pool.stack is None else sorted(self.pool.stack.ready)

    def size(self, rows: int) -> int:
        """Of the launch for so many rows, at most `most`: the next size that was compiled."""
        return next((size for size in self.sizes if size >= rows), None) or bucket(rows)

    @property
    def most(self) -> int | None:
        """Rows of a launch, if that is limited."""
        return self.sizes[-1] if self.sizes else None

    def warm(self, rows: int) -> None:
        """Compiles the graph for so many rows, where weights are packed. From then on launches have the sizes that were compiled."""
        stack = self.pool.stack
        if stack is None or rows in self.sizes:
            return
        padding = np.zeros((rows, 1), np.int32), np.ones(rows, np.int32)
        x = Tensor(np.zeros((rows, 1, self.decoder.config.hidden_size), np.float32)).astype(self.decoder.norm.dtype)
        rope = self.decoder.rope(np.zeros((3, rows, 1), np.float32))
        stack.ready.add(rows)
        self(x, rope, *padding)


class _PoolGraph(Graph):
    def __init__(self, decoder, output_layer, pool) -> None:
        super().__init__()
        self.layers, self.norm, self.output_layer = decoder.layers, decoder.norm, output_layer
        self.block, self.pool_blocks = pool.block, pool.blocks
        (numbers, scales), layers = pool.parts, pool.num_layers
        self.keys, self.values = ParameterTuple(numbers[:layers]), ParameterTuple(numbers[layers:])
        self.scaled = bool(scales)
        if scales:
            self.key_scales, self.value_scales = ParameterTuple(scales[:layers]), ParameterTuple(scales[layers:])

    @ms.jit
    def construct(self, x, cos, sin, slots, tables, first, lengths):
        return self.run(x, cos, sin, slots, tables, first, lengths)

    def run(self, x, cos, sin, slots, tables, first, lengths):
        keys, values = self.keys, self.values
        if self.scaled:
            keys, values = _with_scales(keys, self.key_scales), _with_scales(values, self.value_scales)
        metadata, store = (cos, sin, (tables, first, lengths), slots), (keys, values, self.block)
        hidden = self._pass(x, metadata, store)
        return self.output_layer.logits(hidden), hidden


def _with_scales(codes, scales):
    """Both of each layer; a loop and plain tuples, which a graph can work out."""
    found = ()
    for layer in range(len(codes)):
        found = found + ((codes[layer], scales[layer]),)
    return found


def _tensors(*arrays):
    return tuple(Tensor(array.astype(np.int32)) for array in arrays)


def check_past(cache: KVCache, ids: np.ndarray | None, valid: np.ndarray, media_ids: Rows[int]) -> None:
    """Raises `InputError` unless ids `[B, T]`, of which `valid` bool `[B, T]` are no padding, go on from what the cache holds."""
    length = cache.length
    if ids is None:
        raise InputError("past_key_values needs input_ids: the ids of the whole conversation, earlier ones and new ones")
    if len(ids) != cache.heads[0] or ids.shape[1] <= length:
        raise InputError(
            f"past_key_values holds {length} tokens of {cache.heads[0]} conversations, so input_ids must be those "
            f"tokens and new ones behind them; got {list(ids.shape)}"
        )
    if np.isin(ids[:, length:], media_ids).any():
        raise InputError(
            "the tokens behind past_key_values hold a picture, video or sound, and those need the whole prompt; leave "
            "past_key_values out"
        )
    if (valid[:, :length] & ~cache.valid).any():
        raise InputError(
            "attention_mask marks as tokens what past_key_values holds as padding; pass the mask that the cache was made "
            "with, continued (its padding on the left), or leave past_key_values out"
        )


def copy_in(pool: KVPool, table: Rows[int], cache: KVCache, row: int, columns: np.ndarray) -> None:
    """Copies the keys and values at these columns int `[n]` of a row of the cache to the positions 0 .. n - 1 of a row's blocks."""
    positions = np.arange(len(columns))[None]
    mine, theirs = _slots(pool, table, positions), _rows(cache, row, columns)
    for buffer, stored in zip((*pool.keys, *pool.values), (*cache.keys, *cache.values), strict=True):
        ops.write_rows(buffer, mine, ops.gather_rows(stored, theirs))


def copy_out(pool: KVPool, table: Rows[int], start: int, stop: int) -> list[Tensor]:
    """The keys of all layers, then the values, at the positions `[start, stop)` of a row's blocks, each `[n * K, D]`."""
    slots = _slots(pool, table, np.arange(start, stop)[None])
    return [ops.gather_rows(buffer, slots) for buffer in (*pool.keys, *pool.values)]


def copy_into_cache(cache: KVCache, parts: Rows[tuple[list[Tensor], np.ndarray]], length: int) -> None:
    """Per row of the cache what `copy_out` gave, and the columns int `[n]` that it gets of `length`; the others are padding."""
    before = cache.length
    cache.reserve(length)
    cache.attention_mask[:, before:length] = False
    for row, (tensors, columns) in enumerate(parts):
        rows = _rows(cache, row, columns)
        for buffer, tensor in zip((*cache.keys, *cache.values), tensors, strict=True):
            ops.write_rows(buffer, rows, tensor)
        cache.attention_mask[row, columns] = True
    cache.length = length


def _slots(pool, table, positions):
    tables = pool.tables([table], [int(positions.max()) + 1])
    return Tensor(pool.slots(tables, positions))


def _rows(cache, row, columns):
    """Where they lie in the cache's buffers, int32 `[n * K]`."""
    heads = row * cache.heads[1] + np.arange(cache.heads[1])
    return Tensor((heads * cache.capacity + columns[:, None]).reshape(-1).astype(np.int32))
