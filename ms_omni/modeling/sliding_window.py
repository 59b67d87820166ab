"""Attention over the last `window` positions of an endless stream: what is kept does not grow with what has passed."""

import numpy as np
from mindspore import Tensor

from . import ops
from .cache import MASKED


class WindowContext:
    """The context (see `cache.py`) of the next `new` positions of a stream.

    keys and values: per layer `[B, K, n, D]`, the last n < window positions that have passed, or None when n = 0. After
    the pass they hold the last positions of the stream as it then is.
    """

    def __init__(self, keys, values, batch, new, window):
        self.keys, self.values = list(keys), list(values)
        old = 0 if keys[0] is None else keys[0].shape[2]
        self.keep = min(old + new, window - 1)
        self.mask = Tensor(np.repeat(window_mask(old, new, window)[None], batch, 0))

    def extend(self, layer, k, v):
        k = self._extended(self.keys, layer, k)
        v = self._extended(self.values, layer, v)
        return k, v

    def _extended(self, kept, layer, x):
        if kept[layer] is not None:
            x = ops.concat((kept[layer], x), 2)  # [B, K, T, D]
        kept[layer] = x[:, :, x.shape[2] - self.keep :].contiguous() if self.keep else None
        return x


def window_mask(old, new, window):
    """Additive float32 mask `[new, old + new]` of the last `new` positions: position i sees i - window + 1 .. i."""
    key = np.arange(old + new)
    query = np.arange(old, old + new)[:, None]
    return np.where((key <= query) & (key > query - window), np.float32(0), np.float32(MASKED))


def stream_rope_tables(start, new, batch, inv_freq):
    """cos, sin tensors `[B, new, D/2]` of the positions from `start` on.

    The angle is a float64 product: in float32 it would be 0.002 off after an hour of speech (45,000 frames).
    """
    angles = np.arange(start, start + new, dtype=np.float64)[:, None] * inv_freq.astype(np.float64)
    tables = (np.repeat(table.astype(np.float32)[None], batch, 0) for table in (np.cos(angles), np.sin(angles)))
    return tuple(Tensor(table) for table in tables)
