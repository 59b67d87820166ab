"""Attention with grouped heads, masks and packed segments."""

import numpy as np
import pytest

from ms_omni.modeling import ops
from ms_omni.modeling.packing import segments_of
from tests.ops import formulas


@pytest.mark.parametrize(
    "b, s, t, heads, kv_heads, d",
    [
        (1, 1, 1, 1, 1, 1),
        (1, 1, 9, 6, 2, 5),
        (2, 3, 3, 4, 4, 6),
        (3, 5, 11, 6, 3, 4),
        (2, 7, 7, 8, 1, 3),
    ],
)
def test_attention(b, s, t, heads, kv_heads, d, normal, tensors, close):
    q, k, v = normal(b, s, heads, d), normal(b, kv_heads, t, d), normal(b, kv_heads, t, d)
    close(ops.attention(*tensors(q, k, v), None, d**-0.5), formulas.attention(q, k, v, None, d**-0.5))


def test_attention_with_a_mask_of_its_own_per_row(normal, tensors, close):
    q, k, v = normal(2, 3, 4, 5), normal(2, 2, 6, 5), normal(2, 2, 6, 5)
    mask = np.zeros((2, 3, 6), np.float32)
    mask[0, :, 4:] = -1e9
    mask[1, 0, :3] = -1e9
    actual = ops.attention(*tensors(q, k, v, mask), 0.7)
    close(actual, formulas.attention(q, k, v, mask, 0.7))
    v[0, :, 4:] = 1e6  # what is masked has no influence at all
    close(ops.attention(*tensors(q, k, v, mask), 0.7).asnumpy()[0], actual.asnumpy()[0], 1e-7)


def test_a_row_that_is_wholly_masked_stays_finite(normal, tensors):
    q, k, v = normal(1, 2, 2, 4), normal(1, 1, 3, 4), normal(1, 1, 3, 4)
    mask = np.full((1, 2, 3), -1e9, np.float32)
    assert np.isfinite(ops.attention(*tensors(q, k, v, mask), 1.0).asnumpy()).all()


def test_values_may_be_narrower_than_keys(normal, tensors, close):
    q, k, v = normal(1, 3, 4, 6), normal(1, 2, 5, 6), normal(1, 2, 5, 2)
    close(ops.attention(*tensors(q, k, v), None, 0.4), formulas.attention(q, k, v, None, 0.4))


def test_attention_takes_large_scores(normal, tensors, close):
    q, k, v = normal(1, 2, 1, 3) * 100, normal(1, 1, 4, 3) * 100, normal(1, 1, 4, 3)
    close(ops.attention(*tensors(q, k, v), None, 1.0), formulas.attention(q, k, v, None, 1.0), 1e-4)


@pytest.mark.parametrize("lengths", [[6], [1, 1, 1], [4, 4, 4, 2], [3, 5, 5, 1, 3, 3]])
def test_packed_attention_stays_inside_its_segment(lengths, normal, tensors, close):
    n, h, d = sum(lengths), 3, 4
    q, k, v = normal(n, h, d), normal(n, h, d), normal(n, h, d)
    expected, start = [], 0
    for length in lengths:
        part = slice(start, start + length)
        keys, values = (x[part].transpose(1, 0, 2)[None] for x in (k, v))
        expected.append(formulas.attention(q[None, part], keys, values, None, 0.5)[0])
        start += length
    actual = ops.packed_attention(*tensors(q, k, v), segments_of(lengths), 0.5)
    close(actual, np.concatenate(expected))


def test_segments_of_counts_neighbours_and_skips_empty_ones():
    assert segments_of([4, 4, 2, 0, 2, 4]) == ((4, 2), (2, 2), (4, 1))
    assert segments_of(np.array([], np.int64)) == ()
