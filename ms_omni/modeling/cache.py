"""Where a decoder layer finds the keys and values of earlier tokens, and what it may look at.

A layer receives a context and calls `context.extend(layer, k, v)`, which stores the new keys and values `[B, K, S, D]`
and returns those to attend to `[B, K, T, D]`; `context.mask` is the additive mask `[B, S, T]` that belongs to them.

    NoCache    one whole sequence, nothing is kept
    KVCache    preallocated; one slot per position, padded rows on the left
"""

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor
from mindspore.common.initializer import initializer

from . import ops

MASKED = -1e9
BUCKET_TOKENS = 256


def causal_mask(valid, queries):
    """Additive float32 mask `[B, S, T]` of the last `queries` positions of valid `[B, T]` (bool; False is padding).

    A query in the padding sees itself, so that its softmax stays finite; nobody reads what it computes.
    """
    total = valid.shape[1]
    key, query = np.arange(total), np.arange(total - queries, total)[:, None]
    allowed = (key <= query) & (valid[:, None, :] | (key == query))
    return np.where(allowed, np.float32(0), np.float32(MASKED))


class NoCache:
    """The context of a forward pass over a whole sequence that nobody continues."""

    def __init__(self, valid):
        self.mask = Tensor(causal_mask(valid, valid.shape[1]))

    def extend(self, layer, k, v):
        return k, v


class KVCache:
    """Keys and values of every layer in preallocated buffers, and the length that all rows share.

    The buffers are parameters `[B * K * capacity, D]`, one row per slot, so that a step writes in place with one
    scatter and can become one compiled graph. Their capacity is a multiple of `bucket` positions and grows by reallocation.
    """

    def __init__(self, num_layers, batch_size, num_kv_heads, head_dim, capacity, dtype=ms.float32,
                 bucket=BUCKET_TOKENS):  # fmt: skip
        self.heads = (batch_size, num_kv_heads)
        self.rows = batch_size * num_kv_heads
        self.head_dim = head_dim
        self.dtype = dtype
        self.num_layers = num_layers
        self.length = 0
        self.bucket = bucket
        self.capacity = 0
        self.valid = np.zeros((batch_size, 0), bool)
        self.keys, self.values = [], []
        self.reserve(capacity)

    def get_seq_length(self):
        """Number of positions filled so far, padding included."""
        return self.length

    def clear(self):
        """Forgets everything but keeps the buffers."""
        self.length = 0
        self.valid = self.valid[:, :0]

    def reserve(self, tokens):
        """Makes room for `tokens` positions in all; keeps what is stored."""
        if tokens <= self.capacity:
            return
        capacity = -(-tokens // self.bucket) * self.bucket
        self.keys = [self._grown(buffer, capacity) for buffer in self.keys or [None] * self.num_layers]
        self.values = [self._grown(buffer, capacity) for buffer in self.values or [None] * self.num_layers]
        self.capacity = capacity

    def _grown(self, old, capacity):
        # A Parameter made from a view loses in-place writes (MindSpore 2.7.1), so the buffer is created flat.
        buffer = Parameter(initializer("zeros", (self.rows * capacity, self.head_dim), self.dtype))
        if old is not None and self.length:
            kept = ops.gather_rows(old, self.slots(self.capacity, 0, self.length))
            ops.write_rows(buffer, self.slots(capacity, 0, self.length), kept)
        return buffer

    def slots(self, capacity, start, stop):
        """Rows of a buffer that hold the positions `[start, stop)` of every batch row and head, int32."""
        rows = np.arange(self.rows)[:, None] * capacity + np.arange(start, stop)
        return Tensor(rows.reshape(-1).astype(np.int32))

    def context(self, valid):
        """The context of the next `valid.shape[1]` tokens; valid `[B, S]` bool, False where a row has padding."""
        return _CacheContext(self, valid)


class _CacheContext:
    def __init__(self, cache, valid):
        queries = valid.shape[1]
        self.cache = cache
        self.start = cache.length
        self.stop = cache.length + queries
        cache.reserve(self.stop)
        cache.valid = np.concatenate([cache.valid, valid], axis=1)
        cache.length = self.stop
        self.slots = cache.slots(cache.capacity, self.start, self.stop)
        self.whole = queries == 1  # a single step reads the whole buffer: one shape, hence one graph
        mask = causal_mask(cache.valid, queries)
        if self.whole:
            ahead = np.full((*mask.shape[:2], cache.capacity - self.stop), MASKED, np.float32)
            mask = np.concatenate([mask, ahead], axis=-1)
        self.mask = Tensor(mask)

    def extend(self, layer, k, v):
        k_all = self._write(self.cache.keys[layer], k)
        v_all = self._write(self.cache.values[layer], v)
        return (k, v) if self.start == 0 and not self.whole else (k_all, v_all)

    def _write(self, buffer, rows):
        cache = self.cache
        ops.write_rows(buffer, self.slots, rows.reshape(-1, cache.head_dim))
        stored = buffer.reshape(*cache.heads, cache.capacity, cache.head_dim)
        return stored if self.whole else stored[:, :, : self.stop]
