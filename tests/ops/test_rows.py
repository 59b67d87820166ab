"""Reading, replacing, adding and writing rows."""

import numpy as np
import pytest

from ms_omni.modeling import ops
from tests.ops import formulas


def test_scatter_rows_copies(normal, tensors, close):
    x, rows, index = normal(6, 3), normal(2, 3), np.array([4, 1], np.int32)
    expected = x.copy()
    expected[index] = rows
    source = tensors(x)[0]
    close(ops.scatter_rows(source, *tensors(index, rows)), expected, 0)
    close(source, x, 0)


def test_add_rows_counts_an_index_that_comes_twice(normal, tensors, close):
    x, rows, index = normal(5, 3), normal(3, 3), np.array([2, 0, 2], np.int32)
    expected = formulas.f64(x)
    np.add.at(expected, index, rows)
    source = tensors(x)[0]
    close(ops.add_rows(source, *tensors(index, rows)), expected)
    close(source, x, 0)


def test_write_rows_writes_in_place(normal, tensors, parameter, close):
    buffer, rows, index = parameter(np.zeros((7, 3))), normal(2, 3), np.array([6, 2], np.int32)
    expected = np.zeros((7, 3), np.float32)
    expected[index] = rows
    ops.write_rows(buffer, *tensors(index, rows))
    close(buffer, expected, 0)
    ops.write_rows(buffer, *tensors(index[:1], rows[1:]))
    expected[6] = rows[1]
    close(buffer, expected, 0)


@pytest.mark.parametrize("shape", [(5, 3), (5, 2, 3), (5,)])
def test_gather_rows(shape, normal, tensors, close):
    x, index = normal(*shape), np.array([4, 4, 0], np.int32)
    close(ops.gather_rows(*tensors(x, index)), x[index], 0)


@pytest.mark.parametrize("taps", [1, 3])
def test_weighted_sum_rows(taps, rng, normal, tensors, close):
    x, weights = normal(9, 5), normal(4, taps)
    index = rng.integers(0, 9, (4, taps)).astype(np.int32)
    expected = np.einsum("nt,ntd->nd", formulas.f64(weights), formulas.f64(x)[index])
    close(ops.weighted_sum_rows(*tensors(x, index, weights)), expected)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_embedding_parts_add_up_to_the_table(dtype, normal, tensors):
    """Exactly: the rows of other parts are zeros, not small."""
    table, ids = normal(9, 4), np.array([[0, 8, 3], [4, 5, 4]], dtype)
    parts = [ops.embedding_part(*tensors(ids, table[first:last]), first).asnumpy() for first, last in ((0, 4), (4, 9))]
    assert parts[0].shape == (2, 3, 4) and not parts[0][0, 1].any() and not parts[1][0, 0].any()
    assert (parts[0] + parts[1] == table[ids]).all()
