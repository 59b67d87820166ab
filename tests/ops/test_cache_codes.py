"""Keys and values as codes of 8 bits with a scale per token and head: what is written, and what attention makes of it."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor

from ms_omni.modeling import ops
from ms_omni.modeling.ops.reference import Reference
from ms_omni.quantised import Quantised, Storage, dequantised, quantised
from tests.ops.test_paged_attention import LENGTHS, PROMPTS, RNG, STEPS, Row, needs_kernels, pooled

D = 34
CODES = Storage(8, scale="float32")


def buffer(rows, d=D):
    """A `Quantised` of Parameters in which nothing is known yet."""
    codes = Parameter(Tensor(np.full((rows, d), 77, np.int8)), name="codes")
    return Quantised(codes, Parameter(Tensor(np.full((rows, 1), np.nan, np.float32)), name="scales"))


def arrays(stored):
    return Quantised(stored.codes.asnumpy(), stored.scales.asnumpy())


ROWS = RNG.standard_normal((9, D)).astype(np.float32) * np.float32(10) ** np.arange(-4, 5, dtype=np.float32)[:, None]
ROWS[3] = 0
ROWS[4] *= np.float32(1e-30)
ROWS[5, :2] = 127, 0.5  # half way between two codes: the even one


@pytest.mark.parametrize("function", [ops.write_rows, Reference.write_rows])
def test_each_row_is_rounded_by_its_own_scale(function):
    pool, index = buffer(20), np.array([3, 19, 0, 7, 8, 9, 1, 2, 4], np.int32)
    function(pool, Tensor(index), Tensor(ROWS))
    result, expected = arrays(pool), quantised(ROWS, CODES)
    assert np.array_equal(result.codes[index], expected.codes) and np.array_equal(result.scales[index], expected.scales)
    assert np.isnan(np.delete(result.scales, index, 0)).all() and (np.delete(result.codes, index, 0) == 77).all()
    read = ops.gather_rows(pool, Tensor(index)).asnumpy()
    assert np.array_equal(read, dequantised(expected))
    assert (np.abs(read - ROWS) <= expected.scales * 0.5001).all()


@pytest.mark.parametrize("function", [ops.write_rows, Reference.write_rows])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_so(function, wrong):
    """Else an answer of a broken model would look like any other."""
    pool, rows = buffer(4), ROWS[6:8].copy()
    rows[1, 5] = wrong
    function(pool, Tensor(np.array([0, 1], np.int32)), Tensor(rows))
    read = ops.gather_rows(pool, Tensor(np.array([0, 1], np.int32))).asnumpy()
    assert np.isfinite(read[0]).all() and not np.isfinite(read[1]).any()


def as_codes(arguments):
    """The arguments of `ops.paged_attention` with keys and values as codes; where nobody has anything scales are NaN."""
    q, *pools, tables, first, lengths = arguments
    stored = []
    for pool in pools:
        numbers = pool.asnumpy()
        codes, scales, _ = quantised(np.nan_to_num(numbers), CODES)
        scales[np.isnan(numbers[..., :1])] = np.nan
        stored.append(Quantised(Tensor(codes), Tensor(scales)))
    return q, *stored, tables, first, lengths


def attended(rows, function=None, **settings):
    return (function or ops.paged_attention)(*as_codes(pooled(rows, **settings)), 0.2).asnumpy()


def rounded(row):
    """The same row with the keys and values that are read back."""
    other = Row(row.length, len(row.q), row.first, row.k.shape[-1])
    other.q, other.k, other.v = row.q, *(dequantised(quantised(x, CODES)) for x in (row.k, row.v))
    return other


@pytest.mark.parametrize("rows", PROMPTS + STEPS)
def test_it_is_attention_to_what_is_read_back(rows, close):
    for function in (ops.paged_attention, Reference.paged_attention):
        close(attended(rows, function), np.stack([rounded(row).expected() for row in rows]), 3e-6)


@pytest.mark.parametrize("rows", PROMPTS + STEPS)
def test_it_is_near_attention_to_what_was_written(rows):
    """Of the largest of each answer 1.5 % at most; numbers of a normal distribution have a step of about 2 % of their deviation."""
    result, expected = attended(rows), np.stack([row.expected() for row in rows])
    assert np.abs(result - expected).max() < 0.015 * np.abs(expected).max()


@needs_kernels
@pytest.mark.parametrize("queries", [1, 30])
@pytest.mark.parametrize("d", [D, 128])
def test_every_row_has_the_bits_of_its_lone_run(queries, d):
    rows = [Row(length + queries - 1, queries, d=d) for length in LENGTHS]
    alone = [attended([row], block=128)[0] for row in rows]
    for block, width, spare in ((16, 64, 2), (48, 40, 1), (640, 1, 0)):
        for batch in (rows[::-1], rows[2:5]):
            result = attended(batch, block=block, width=width, spare=spare)
            assert all(np.array_equal(own, alone[rows.index(row)]) for row, own in zip(batch, result, strict=True))


def test_other_types_read_the_same_pool():
    """A model that computes in bfloat16 has the same codes, and answers of its own type."""
    q, *rest = as_codes(pooled([Row(40)]))
    result = Reference.paged_attention(q.astype(ms.float16), *rest, 0.2)
    assert result.dtype == ms.float16
    assert np.abs(result.asnumpy() - ops.paged_attention(q, *rest, 0.2).asnumpy()).max() < 2e-3
