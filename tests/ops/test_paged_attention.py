"""Attention to keys and values in blocks: what it computes, and that nothing but a row's own positions leaves a trace in it."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from ms_omni.errors import InputError
from ms_omni.modeling import ops
from ms_omni.modeling.layer import Cell
from ms_omni.modeling.ops import ascend_kernels
from ms_omni.modeling.ops.reference import Reference
from tests.ops import formulas

HEADS, KV_HEADS, D, P = 6, 2, 34, 16
LENGTHS = [1, 15, 16, 17, 40, 150, 300, 513]
RNG = np.random.default_rng(41)
needs_kernels = pytest.mark.skipif(ops.implementation() is Reference, reason="no C++ compiler")


class Row:
    """Keys and values `[K, T, D]` of one sequence, and queries `[S, H, D]`, the first of them at `first`."""

    def __init__(self, length, queries=1, first=None, d=D):
        self.length, self.first = length, length - queries if first is None else first
        self.k, self.v = (RNG.standard_normal((KV_HEADS, length, d)).astype(np.float32) for _ in range(2))
        self.q = RNG.standard_normal((queries, HEADS, d)).astype(np.float32)

    def expected(self):
        """float64."""
        last = np.minimum(self.first + np.arange(len(self.q)), self.length - 1)
        mask = np.where(np.arange(self.length) <= last[:, None], 0.0, -np.inf)
        return formulas.attention(self.q[None], self.k[None], self.v[None], mask[None], 0.2)[0]


def pooled(rows, block=P, width=None, spare=2):
    """The arguments of `ops.paged_attention` up to the scale: blocks in any order, NaN in free positions."""
    used = [-(-row.length // block) for row in rows]
    numbers = iter(RNG.permutation(sum(used) + spare))
    tables = np.zeros((len(rows), width or max(used)), np.int32)
    pools = [np.full((sum(used) + spare, KV_HEADS, block, row.k.shape[-1]), np.nan, np.float32) for row in rows[:1] * 2]
    for row, table, count in zip(rows, tables, used):
        table[:count] = [next(numbers) for _ in range(count)]
        for pool, x in zip(pools, (row.k, row.v)):
            for position in range(row.length):
                pool[table[position // block], :, position % block] = x[:, position]
    arrays = np.stack([row.q for row in rows]), *pools, tables
    columns = ([getattr(row, name) for row in rows] for name in ("first", "length"))
    return [Tensor(x) for x in (*arrays, *(np.array(x, np.int32) for x in columns))]


def attended(rows, function=None, **settings):
    return (function or ops.paged_attention)(*pooled(rows, **settings), 0.2).asnumpy()


PROMPTS = [[Row(40, 40)], [Row(300, 30, 270), Row(30, 30)], [Row(560, 48, 512), Row(513, 48, 512), Row(20, 48, 3)]]
STEPS = [[Row(length) for length in LENGTHS], [Row(1)]]


@pytest.mark.parametrize("rows", PROMPTS + STEPS)
def test_it_is_attention(rows, close):
    for function in (ops.paged_attention, Reference.paged_attention):
        close(attended(rows, function), np.stack([row.expected() for row in rows]), 3e-6)


@pytest.mark.parametrize("rows", PROMPTS[1:2] + STEPS[:1])
def test_on_ascend(rows, ascend, close):
    for row in rows:  # sizes as the kernels want them
        row.k, row.v, row.q = (x[..., :32] for x in (row.k, row.v, row.q))
    for form in (ascend.paged_attention, *ascend.OTHER_FORMS["paged_attention"]):
        close(attended(rows, form, width=64), np.stack([row.expected() for row in rows]), 3e-6)


def test_types_without_a_kernel_on_ascend(ascend, monkeypatch, close):
    monkeypatch.setattr(ascend_kernels, "ATTENTION_TYPES", ())
    for rows in (PROMPTS[1], STEPS[0]):
        close(attended(rows, ascend.paged_attention, width=64), np.stack([row.expected() for row in rows]), 3e-6)


def test_a_graph_of_ascend(ascend, close):
    rows = [Row(20, d=32), Row(33, d=32)]

    @ms.jit
    def step(q, keys, values, tables, first, lengths):
        return ascend.paged_attention(q, keys, values, tables, first, lengths, 0.2)

    close(step(*pooled(rows)), np.stack([row.expected() for row in rows]), 3e-6)


@needs_kernels
@pytest.mark.parametrize("queries", [1, 30])
def test_every_row_has_the_bits_of_its_lone_run(queries):
    """Beside any others, wherever its blocks are, however wide the tables, however large the pool and the blocks."""
    rows = [Row(length + queries - 1, queries) for length in LENGTHS]
    alone = [attended([row], block=128)[0] for row in rows]
    for block, width, spare in ((16, 64, 2), (32, 33, 9), (48, 40, 1), (256, 3, 2), (640, 1, 0)):
        for batch in (rows, rows[::-1], rows[2:5]):
            result = attended(batch, block=block, width=width, spare=spare)
            for row, own in zip(batch, result):
                assert np.array_equal(own, alone[rows.index(row)])


@needs_kernels
def test_a_query_has_the_bits_that_it_has_in_any_run_of_queries():
    row = Row(600, 90, 510)
    whole = attended([row])[0]
    for first, last in ((0, 16), (7, 60), (80, 90)):
        part = Row(row.length, last - first, row.first + first)
        part.k, part.v, part.q = row.k, row.v, row.q[first:last]
        assert np.array_equal(attended([part])[0], whole[first:last])


@needs_kernels
def test_keys_in_one_piece_give_the_same_bits():
    """The kernels of contiguous keys, which see what a mask leaves."""
    from ms_omni.modeling.ops import cpu

    for queries, kernel in ((1, cpu._attention), (30, cpu._attention_tiles)):
        for length in (30, 129, 300, 700):
            row = Row(length, queries)
            q, k, v = (Tensor(x[None]) for x in (row.q, row.k, row.v))
            visible = np.arange(length) <= row.first + np.arange(queries)[:, None]
            mask = np.where(visible, np.float32(0), np.float32(-1e9))[None]
            result = kernel(q, k, v, Tensor(np.array([0.2], np.float32)), Tensor(mask))
            assert np.array_equal(result.asnumpy(), attended([row]))


class Attend(Cell):
    def construct(self, *arguments):
        return ops.paged_attention(*arguments, 0.2)


@needs_kernels
def test_tables_that_lead_outside_are_an_error():
    q, keys, values, tables, first, lengths = pooled([Row(20)])
    wrong = Tensor(np.array([[0, 99]], np.int32))
    with pytest.raises(InputError, match="tables hold 99, expected 0 to 3"):
        Attend()(q, keys, values, wrong, first, lengths)
    with pytest.raises(InputError, match="lengths hold 33, expected 1 to 32"):
        Attend()(q, keys, values, tables, first, lengths + 13)
