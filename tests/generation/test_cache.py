"""The cache: a prompt read in pieces, grown, padded or continued is the prompt read whole."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from ms_omni.modeling import ops
from ms_omni.modeling.cache import MASKED, KVCache, causal_mask, extend, whole_sequence

HEADS, KV_HEADS, WIDTH = 4, 2, 3


@pytest.fixture
def sequence():
    """`sequence(B, T)`: queries, keys and values of one layer, float32."""
    rng = np.random.default_rng(3)

    def make(batch, tokens):
        heads = (HEADS, KV_HEADS, KV_HEADS)
        return [rng.standard_normal((batch, tokens, n, WIDTH)).astype(np.float32) for n in heads]

    return make


NO_ROPE = (None, None)


def attend(allocated, q, k, v, layer=0):
    (_, _, mask, slots), store = allocated
    k, v = (Tensor(np.ascontiguousarray(x.transpose(0, 2, 1, 3))) for x in (k, v))
    keys, values = extend(store, layer, k, v, mask, slots)
    return ops.attention(Tensor(q), keys, values, mask, 0.6).asnumpy()


def attend_whole(valid, q, k, v):
    return attend(whole_sequence(NO_ROPE, valid), q, k, v)


def in_pieces(cache, sequence, valid, sizes):
    parts, start = [], 0
    for size in sizes:
        piece = slice(start, start + size)
        parts.append(attend(cache.allocate(NO_ROPE, valid[:, piece]), *(x[:, piece] for x in sequence)))
        start += size
    assert start == valid.shape[1]
    return np.concatenate(parts, axis=1)


def new_cache(batch, capacity=4, bucket=4, layers=1):
    return KVCache(layers, batch, KV_HEADS, WIDTH, capacity, bucket=bucket)


@pytest.mark.parametrize("sizes", [[9], [1] * 9, [4, 5], [3, 1, 1, 4], [8, 1], [5, 4]])
@pytest.mark.parametrize("bucket", [2, 4, 16])
def test_pieces_equal_the_whole(sizes, bucket, sequence):
    """Steps, continuations of several tokens, and every way to cross the boundary of a bucket."""
    x, valid = sequence(2, 9), np.ones((2, 9), bool)
    whole = attend_whole(valid, *x)
    assert np.abs(in_pieces(new_cache(2, 1, bucket), x, valid, sizes) - whole).max() < 1e-6


@pytest.mark.parametrize("sizes", [[6, 1, 1, 1], [2, 3, 4], [9]])
def test_padding_on_the_left_has_no_influence(sizes, sequence):
    x, valid = sequence(3, 9), np.ones((3, 9), bool)
    valid[1, :4], valid[2, :1] = False, False
    padded = in_pieces(new_cache(3), x, valid, sizes)
    for row, skip in enumerate((0, 4, 1)):
        own = [a[row : row + 1, skip:] for a in x]
        alone = attend_whole(np.ones((1, 9 - skip), bool), *own)
        assert np.abs(padded[row, skip:] - alone[0]).max() < 1e-6
    assert np.isfinite(padded).all()


def test_layers_do_not_mix(sequence):
    cache, valid = new_cache(1, layers=2), np.ones((1, 6), bool)
    first, second = sequence(1, 6), sequence(1, 6)
    for start, stop in ((0, 4), (4, 5), (5, 6)):
        allocated = cache.allocate(NO_ROPE, valid[:, start:stop])
        got = [attend(allocated, *(a[:, start:stop] for a in x), layer) for layer, x in enumerate((first, second))]
    for x, part in zip((first, second), got):
        assert np.abs(attend_whole(valid, *x)[:, 5:] - part).max() < 1e-6


def test_clear_forgets_and_keeps_the_buffers(sequence):
    cache, valid = new_cache(1), np.ones((1, 6), bool)
    in_pieces(cache, sequence(1, 6), valid, [5, 1])
    buffers, capacity = cache.keys[0], cache.capacity
    cache.clear()
    assert cache.get_seq_length() == 0 and cache.capacity == capacity
    x = sequence(1, 3)
    again = in_pieces(cache, x, valid[:, :3], [2, 1])
    assert cache.keys[0] is buffers
    assert np.abs(again - attend_whole(valid[:, :3], *x)).max() < 1e-6


def test_capacity_is_a_whole_number_of_buckets_and_steps_inside_one_keep_their_shape(sequence):
    cache = new_cache(1, capacity=3, bucket=8)
    assert cache.capacity == 8
    x, shapes = sequence(1, 9), []
    for at in range(9):
        allocated = cache.allocate(NO_ROPE, np.ones((1, 1), bool))
        attend(allocated, *(a[:, at : at + 1] for a in x))
        shapes.append(tuple(allocated[0][2].shape))
    assert shapes == [(1, 1, 8)] * 8 + [(1, 1, 16)]
    assert cache.get_seq_length() == 9 and cache.capacity == 16


def test_reserve_makes_room_once():
    cache = new_cache(2, capacity=1, bucket=4)
    cache.reserve(10)
    keys = cache.keys[0]
    cache.reserve(12)
    assert cache.capacity == 12 and cache.keys[0] is keys
    assert tuple(keys.shape) == (2 * KV_HEADS * 12, WIDTH) and keys.dtype == ms.float32


def test_causal_mask():
    valid = np.array([[False, True, True], [True, True, True]])
    visible = causal_mask(valid, 2) == 0
    assert visible.astype(int).tolist() == [[[0, 1, 0], [0, 1, 1]], [[1, 1, 0], [1, 1, 1]]]
    assert set(np.unique(causal_mask(valid, 3))) == {np.float32(0), np.float32(MASKED)}
    assert causal_mask(valid, 3)[0, 0].tolist() == [0, np.float32(MASKED), np.float32(MASKED)]  # padding sees itself
