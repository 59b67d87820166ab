"""Keys and values of earlier tokens, and which of them a decoder layer attends to.

A pass over S new tokens is described by two plain tuples, which a compiled graph takes as they are:

    metadata   (cos, sin, mask, slots): rotary tables `[B, S, D/2]`, additive mask `[B, S, T]`, rows of the buffers to write
               (cos, sin, (tables, first, lengths), slots): on blocks, see `ops.paged_attention`; slots int32 `[B * S * K]`
    store      None: one whole sequence, nothing is stored
               (keys, values): preallocated buffers of a `KVCache`, one Parameter per layer
               (keys, values, P): buffers in blocks of P positions, `[blocks * K * P, D]`, one Parameter per layer, or codes and
                       scales of such (int8, and float32 `[blocks * K * P, 1]`)
               (keys, values, P, rows): the same, attended to in a copy: rows int32 `[B * K * T]` of the buffers; with a mask `[B, S, T]`
               or an object with `extend(layer, k, v)` of its own (`WindowContext`)
"""

from collections.abc import Sequence
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor
from mindspore.common.initializer import initializer

from . import BUCKET_TOKENS, ops

MASKED = -1e9
AttentionMetadata = tuple[Any, ...]


def causal_mask(valid: np.ndarray, queries: int, window: int | None = None, runs: np.ndarray | None = None) -> np.ndarray:
    """Additive float32 mask `[B, S, T]` of the last `queries` positions of valid `[B, T]` (bool; False is padding).

    window: how many positions a query attends to, itself included; runs int `[B, T]`: a query attends to its own run alone.

    A query in the padding attends to itself, so that its softmax stays finite; the result is not used.
    """
    total = valid.shape[1]
    key, query = np.arange(total), np.arange(total - queries, total)[:, None]
    allowed = (key <= query) & (valid[:, None, :] | (key == query))
    if window is not None:
        allowed &= key > query - window
    if runs is not None:
        allowed &= runs[:, None, :] == runs[:, -queries:, None]
    return np.where(allowed, np.float32(0), np.float32(MASKED))


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Any, slots: Any, store: Any, layer: int, scale: float, stable: bool = False
) -> Tensor:
    """Stores the keys and values of new tokens and attends to all that the mask allows: `[B, S, H * D]`.

    q `[B, S, H, D]`, k and v `[B, S, K, D]`; mask and slots: of the metadata.
    """
    if isinstance(store, tuple) and len(store) > 2:
        return _attend_in_blocks(q, k, v, mask, slots, store, layer, scale)
    k, v = ops.transpose(k, (0, 2, 1, 3)), ops.transpose(v, (0, 2, 1, 3))  # [B, K, S, D]
    k, v = extend(store, layer, k, v, mask, slots)
    return ops.attention(q, k, v, mask, scale, stable)


def _attend_in_blocks(q, k, v, mask, slots, store, layer, scale):
    keys, values, block = store[0][layer], store[1][layer], store[2]
    b, _, heads, d = k.shape
    ops.write_rows(keys, slots, k.reshape(-1, d))
    ops.write_rows(values, slots, v.reshape(-1, d))
    if len(store) == 3:
        keys, values = _blocks(keys, heads, block), _blocks(values, heads, block)
        tables, first, lengths = mask
        return ops.paged_attention(q, keys, values, tables, first, lengths, scale)
    k, v = ops.gather_rows(keys, store[3]).astype(q.dtype), ops.gather_rows(values, store[3]).astype(q.dtype)
    return ops.attention(q, k.reshape(b, heads, -1, d), v.reshape(b, heads, -1, d), mask, scale)


def _blocks(buffer, heads, block):
    """`[blocks * K * P, D]` -> `[blocks, K, P, D]`, of codes with their scales."""
    if isinstance(buffer, tuple):
        return buffer[0].reshape(-1, heads, block, buffer[0].shape[-1]), buffer[1].reshape(-1, heads, block, 1)
    return buffer.reshape(-1, heads, block, buffer.shape[-1])


def extend(store: Any, layer: int, k: Tensor, v: Tensor, mask: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
    """Stores new keys and values `[B, K, S, D]` of one layer and returns those to attend to, `[B, K, T, D]`.

    A prompt that starts the sequence (T = S) attends to its own keys and values; what follows reads the whole buffer,
    which has one shape for many steps.
    """
    if store is None:
        return k, v
    if not isinstance(store, tuple):
        return store.extend(layer, k, v)
    keys, values = store
    b, heads, new, d = k.shape
    ops.write_rows(keys[layer], slots, k.reshape(-1, d))
    ops.write_rows(values[layer], slots, v.reshape(-1, v.shape[-1]))
    if mask.shape[-1] == new and new > 1:
        return k, v
    return keys[layer].reshape(b, heads, -1, d), values[layer].reshape(b, heads, -1, v.shape[-1])


def whole_sequence(
    rope: tuple[Tensor, Tensor], valid: np.ndarray, window: int | None = None, runs: np.ndarray | None = None
) -> tuple[AttentionMetadata, None]:
    """metadata and store of a pass over a whole sequence that is not continued; valid, window, runs: see `causal_mask`."""
    return (*rope, Tensor(causal_mask(valid, valid.shape[1], window, runs)), None), None


class KVCache:
    """Keys and values of every layer in preallocated buffers, and the length that all rows share.

    The buffers are parameters `[B * K * capacity, D]`, one row per slot, so that a step writes in place with one
    scatter and can become one compiled graph. Their capacity is a multiple of `bucket` positions and doubles when it is
    used up.
    """

    def __init__(
        self,
        num_layers: int,
        batch_size: int,
        num_kv_heads: int,
        head_dim: int,
        capacity: int,
        dtype: ms.Type = ms.float32,
        bucket: int = BUCKET_TOKENS,
    ) -> None:
        self.heads = (batch_size, num_kv_heads)
        self.rows = batch_size * num_kv_heads
        self.head_dim = head_dim
        self.dtype = dtype
        self.num_layers = num_layers
        self.bucket = bucket
        self.length = 0
        self.capacity = 0
        self.attention_mask = np.zeros((batch_size, 0), bool)  # [B, capacity]: False is padding
        self.keys = self.values = ()
        self.reserve(capacity)

    def get_seq_length(self) -> int:
        """Number of positions filled so far, padding included."""
        return self.length

    @property
    def valid(self) -> np.ndarray:
        """The attention mask of the positions filled so far, bool `[B, length]`: False is padding."""
        return self.attention_mask[:, : self.length]

    def clear(self) -> None:
        """Empties the cache; the buffers stay."""
        self.length = 0

    def reserve(self, tokens: int) -> None:
        """Makes room for `tokens` positions in all; what is stored stays."""
        if tokens <= self.capacity:
            return
        tokens = max(tokens, 2 * self.capacity)
        capacity = -(-tokens // self.bucket) * self.bucket
        self.keys = self._all_grown("key", self.keys, capacity)
        self.values = self._all_grown("value", self.values, capacity)
        mask, self.attention_mask = self.attention_mask, np.zeros((self.heads[0], capacity), bool)
        self.attention_mask[:, : self.length] = mask[:, : self.length]
        self.capacity = capacity

    def _all_grown(self, kind, buffers, capacity):
        buffers = buffers or (None,) * self.num_layers
        return ParameterTuple(
            [self._grown(f"cache{id(self)}.{kind}{layer}", old, capacity) for layer, old in enumerate(buffers)]
        )

    def _grown(self, name, old, capacity):
        # A Parameter made from a view loses in-place writes (MindSpore 2.7.1), so the buffer is created flat.
        buffer = Parameter(initializer("zeros", (self.rows * capacity, self.head_dim), self.dtype), name=name)
        if old is not None and self.length:
            rows = ops.gather_rows(old, self.slots(self.capacity, 0, self.length))
            ops.write_rows(buffer, self.slots(capacity, 0, self.length), rows)
        return buffer

    def copy_from(self, other: "KVCache", copies: int) -> None:
        """Takes over what `other` holds, every batch row of it `copies` times in a row."""
        self.clear()
        self.reserve(other.length)
        batch, heads = other.heads
        rows = np.arange(other.rows).reshape(batch, heads).repeat(copies, axis=0).reshape(-1, 1)
        theirs = Tensor((rows * other.capacity + np.arange(other.length)).reshape(-1).astype(np.int32))
        mine = self.slots(self.capacity, 0, other.length)
        for buffers, sources in ((self.keys, other.keys), (self.values, other.values)):
            for buffer, source in zip(buffers, sources):
                ops.write_rows(buffer, mine, ops.gather_rows(source, theirs))
        self.attention_mask[:, : other.length] = other.attention_mask[:, : other.length].repeat(copies, axis=0)
        self.length = other.length

    def slots(self, capacity: int, start: int, stop: int) -> Tensor:
        """Rows of a buffer that hold the positions `[start, stop)` of every batch row and head, int32."""
        rows = np.arange(self.rows)[:, None] * capacity + np.arange(start, stop)
        return Tensor(rows.reshape(-1).astype(np.int32))

    def advance(self, valid: np.ndarray) -> None:
        """Makes room for the next tokens and counts them in; valid `[B, S]` bool, False where a row has padding."""
        start, stop = self.length, self.length + valid.shape[1]
        self.reserve(stop)
        self.attention_mask[:, start:stop] = valid
        self.length = stop

    def allocate(self, rope: tuple[Tensor, Tensor], valid: np.ndarray) -> tuple[AttentionMetadata, tuple]:
        """metadata and store of the next tokens; valid as for `advance`."""
        self.advance(valid)
        start, new = self.length - valid.shape[1], valid.shape[1]
        mask = causal_mask(valid, new) if start == 0 and new > 1 else self._mask(start, valid)
        slots = self.slots(self.capacity, start, self.length)
        return (*rope, Tensor(mask), slots), (self.keys, self.values)

    def _mask(self, start, valid):
        """The mask over the whole buffer, `[B, S, capacity]`: one shape for many steps and chunks."""
        mask = np.full((*valid.shape, self.capacity), MASKED, np.float32)
        mask[:, :, :start] = np.where(self.valid[:, None, :start], np.float32(0), np.float32(MASKED))
        mask[:, :, start : self.length] = causal_mask(valid, valid.shape[1])
        return mask


class WindowContext:
    """The store and the mask of the next `new` positions of a stream.

    keys and values: per layer `[B, K, n, D]`, the last n < window positions that have passed, or None when n = 0. After
    the pass they hold the last positions of the stream as it then is.
    """

    def __init__(self, keys: Sequence, values: Sequence, batch: int, new: int, window: int) -> None:
        self.keys, self.values = list(keys), list(values)
        old = 0 if keys[0] is None else keys[0].shape[2]
        self.keep = min(old + new, window - 1)
        self.mask = Tensor(np.repeat(window_mask(old, new, window)[None], batch, 0))

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        k = self._extended(self.keys, layer, k)
        v = self._extended(self.values, layer, v)
        return k, v

    def _extended(self, stored, layer, x):
        if stored[layer] is not None:
            x = ops.concat((stored[layer], x), 2)  # [B, K, T, D]
        stored[layer] = x[:, :, x.shape[2] - self.keep :].contiguous() if self.keep else None
        return x


def window_mask(old: int, new: int, window: int) -> np.ndarray:
    """Additive float32 mask `[new, old + new]` of the last `new` positions: position i attends to i - window + 1 .. i."""
    key = np.arange(old + new)
    query = np.arange(old, old + new)[:, None]
    return np.where((key <= query) & (key > query - window), np.float32(0), np.float32(MASKED))
