"""Between a pool and a `KVCache` of the caller's: what `past_key_values` holds of a prompt, and what an answer leaves in one."""

from collections.abc import Sequence as Rows

import numpy as np
from mindspore import Tensor

from ..errors import InputError
from ..modeling import ops
from ..modeling.cache import KVCache
from .kv_pool import KVPool


def check_held(cache: KVCache, ids: np.ndarray | None, valid: np.ndarray, media_ids: Rows[int]) -> None:
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


def take_over(pool: KVPool, table: Rows[int], cache: KVCache, row: int, columns: np.ndarray) -> None:
    """Copies the keys and values at these columns int `[n]` of a row of the cache to the positions 0 .. n - 1 of a row's blocks."""
    places = np.arange(len(columns))[None]
    mine, theirs = _slots(pool, table, places), _rows(cache, row, columns)
    for buffer, stored in zip((*pool.keys, *pool.values), (*cache.keys, *cache.values), strict=True):
        ops.write_rows(buffer, mine, ops.gather_rows(stored, theirs))


def taken_from(pool: KVPool, table: Rows[int], start: int, stop: int) -> list[Tensor]:
    """The keys of all layers, then the values, at the positions `[start, stop)` of a row's blocks, each `[n * K, D]`."""
    slots = _slots(pool, table, np.arange(start, stop)[None])
    return [ops.gather_rows(buffer, slots) for buffer in (*pool.keys, *pool.values)]


def left_in(cache: KVCache, parts: Rows[tuple[list[Tensor], np.ndarray]], length: int) -> None:
    """Per row of the cache what `taken_from` gave, and the columns int `[n]` that it gets of `length`; the others are padding."""
    before = cache.length
    cache.reserve(length)
    cache.seen[:, before:length] = False
    for row, (tensors, columns) in enumerate(parts):
        rows = _rows(cache, row, columns)
        for buffer, tensor in zip((*cache.keys, *cache.values), tensors, strict=True):
            ops.write_rows(buffer, rows, tensor)
        cache.seen[row, columns] = True
    cache.length = length


def _slots(pool, table, places):
    tables = pool.tables([table], [int(places.max()) + 1])
    return Tensor(pool.slots(tables, places))


def _rows(cache, row, columns):
    """Where they lie in the cache's buffers, int32 `[n * K]`."""
    heads = row * cache.heads[1] + np.arange(cache.heads[1])
    return Tensor((heads * cache.capacity + columns[:, None]).reshape(-1).astype(np.int32))
