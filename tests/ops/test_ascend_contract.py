"""The primitives of Ascend in numpy beside MindSpore itself, and what they refuse.

MindSpore infers the results of a primitive when it compiles a graph, whether or not there is a kernel: that runs here on any
machine, in bfloat16. What stands in for it must have results of that number, of those shapes and types. Much MindSpore
does not look at; the emulation refuses that as well, because the documentation excludes it. `by` says who refuses a wrong
call: both, or the emulation ("documentation") alone.
"""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor
from mindspore.ops.auto_generate import gen_ops_prim

from tests import ascend_emulation


class T:
    """A tensor to be made: a shape of random floats in the dtype under test, or given values and another dtype."""

    def __init__(self, *shape, values=None, dtype=None, buffer=False, zeros=False):
        self.shape, self.values, self.dtype, self.buffer, self.zeros = shape, values, dtype, buffer, zeros

    def tensor(self, dtype):
        if self.values is not None:
            return Tensor(np.array(self.values), self.dtype)
        values = np.random.default_rng(3).uniform(-1, 1, self.shape).astype(np.float32) * (not self.zeros)
        made = Tensor(values).astype(self.dtype or dtype)
        return Parameter(made) if self.buffer else made


class Codes(T):
    """Codes of 8 bits, or two of 4 in a byte."""

    def tensor(self, dtype):
        values = np.random.default_rng(4).integers(-100, 100, self.shape).astype(np.int8)
        return Tensor(values, dtype=self.dtype or ms.int8)


class Call:
    """A primitive, what it is called with, and what it is made with."""

    def __init__(self, primitive, *inputs, **settings):
        self.primitive, self.inputs, self.settings = primitive, inputs, settings

    def made(self, dtype):
        return [_made(item, dtype) for item in self.inputs]


def _made(item, dtype):
    if isinstance(item, list):
        return [_made(value, dtype) for value in item]
    return item.tensor(dtype) if isinstance(item, T) else item


def int32(*values):
    return T(values=values, dtype=ms.int32)


def int64(*values):
    return T(values=values, dtype=ms.int64)


def mask(*shape, at=()):
    values = np.zeros(shape, bool)
    values[at] = True if at else values[at]
    return T(values=values, dtype=ms.bool_)


def infer(q, k, v, *others, layout="BNSD", heads=8, kv_heads=2, scale=0.2, **settings):
    settings |= dict(num_heads=heads, num_key_value_heads=kv_heads, scale_value=scale, input_layout=layout)
    return Call("FusedInferAttentionScore", q, [k], [v], *others, **settings)


def paged(lengths, tables):
    blocks, places = T(6, 2, 16, 32), (*(None,) * 7, tables)
    return infer(STEP, blocks, blocks, None, None, None, lengths, *places, layout="BNSD", block_size=16)


def paged_heads(q, tables, lengths, blocks=(6, 16, 2, 32)):
    caches = T(*blocks), T(*blocks)
    return Call("PagedAttention", q, *caches, tables, lengths, head_num=8, scale_value=0.2, kv_head_num=2)


def rotated(q, table, lengths, cos_format=2):
    return Call("ApplyRotaryPosEmb", q, T(3, 2 * 32), table, table, lengths, cos_format=cos_format)


def cached(rows, slots):
    caches = (T(6, 16, 2, 32, buffer=True) for _ in range(2))
    return Call("ReshapeAndCache", rows, rows, *caches, slots)


def flash(q, k, v, ends, **settings):
    settings = dict(head_num=4, scale_value=0.2, input_layout="TND") | settings
    return Call("FlashAttentionScore", q, k, v, None, None, None, None, None, ends, ends, **settings)


def norm(x, weight, eps=1e-6):
    return Call("RmsNorm", x, weight, epsilon=eps)


def routing(x, indices, experts, flag=2):
    return Call("MoeInitRoutingV2", x, indices, 0, 0, experts, 0, flag, False)


def grouped(x, weight, groups, kind=1):
    return Call("GroupedMatmulV4", x, weight, *(None,) * 6, groups, None, None, None, 3, 0, kind)


def of_codes(x, codes, scales, offsets=None, transposed=False, group=0, **more):
    settings = dict(transpose_x=False, transpose_weight=transposed, antiquant_group_size=group)
    return Call("WeightQuantBatchMatmul", x, codes, scales, offsets, None, None, None, **settings | more)


def grouped_codes(codes, scales, offsets):
    others = None, None, None, 3, 0, 1
    offsets = None if offsets is None else [offsets]
    counts = int64(2, 2, 0, 2)
    return Call("GroupedMatmulV4", [ROWS], [codes], None, None, None, [scales], offsets, None, counts, *others)


def pairs(*shape):
    return Codes(*shape, dtype=ms.qint4x2)


Q, KV, STEP, BLOCKS = T(2, 8, 5, 32), T(2, 2, 9, 32), T(2, 8, 1, 32), T(6, 16, 64)
ZEROS = T(4, 2, 24, zeros=True)
PACKED, ROWS, EXPERTS, BUFFER = T(12, 4, 32), T(6, 32), T(4, 32, 24), T(7, 32, buffer=True)
GRID = [[0, 1], [2, 1], [0, 3]]
PAGES = T(values=[[0, 4], [1, 5]], dtype=ms.int32)

RIGHT = [
    infer(Q, KV, KV, None, mask(2, 1, 5, 9), layout="BNSD_BSND"),
    infer(STEP, KV, KV, None, mask(2, 1, 1, 9)),
    infer(T(3, 7, 4, 32), T(3, 7, 4, 32), T(3, 7, 4, 32), layout="BSND", heads=4, kv_heads=4),
    infer(T(2, 1, 256), BLOCKS, BLOCKS, None, None, None, int64(20, 32), *(None,) * 7, PAGES, layout="BSH", block_size=16),
    paged(int64(20, 32), PAGES),
    flash(PACKED, PACKED, PACKED, (5, 12)),
    flash(PACKED, PACKED, PACKED, (12,)),
    norm(T(2, 3, 32), T(32)),
    Call("AddRmsNorm", T(3, 32), T(3, 32), T(32), 1e-6),
    Call("LayerNormExt", T(2, 3, 32), (32,), T(32), T(32), 1e-5),
    Call("AddLayerNormV2", T(3, 32), T(3, 32), T(32), T(32), 1e-5, True),
    Call("GeluExt", T(3, 4), "none"),
    Call("GeluExt", T(3, 4), "tanh"),
    Call("Swiglu", T(2, 3, 32), -1),
    Call("RotaryPositionEmbedding", T(1, 6, 4, 32), T(1, 6, 1, 32), T(1, 6, 1, 32), 0),
    Call("Dense", T(2, 3, 32), T(8, 32), T(8)),
    Call("Dense", T(2, 32), T(8, 32), None),
    Call("Addmm", T(3, 9), T(3, 4), T(4, 9), 1, 1),
    Call("Baddbmm", T(2, 3, 9), T(2, 3, 4), T(2, 4, 9), 1, 1),
    Call("AddcmulExt", T(3, 9), T(3, 9), T(3, 1), 1),
    Call("AddcdivExt", T(3, 9), T(3, 9), T(3, 9), 1),
    Call("Conv2DExt", T(1, 4, 9, 9), T(6, 4, 3, 3), T(6), (2, 2), (1, 1), (1, 1), 1),
    Call("Conv2DExt", T(1, 4, 1, 9), T(6, 4, 1, 3), T(6), (1, 1), (0, 0), (1, 2), 1),
    Call("TopkExt", T(3, 9), 4, -1),
    routing(T(3, 32), int32(*GRID), 4, flag=1),
    routing(T(3, 32), int32(*GRID), 4, flag=2),
    grouped([ROWS], [EXPERTS], int64(2, 4, 4, 6), kind=0),
    grouped([ROWS], [EXPERTS], int64(2, 2, 0, 2)),
    grouped_codes(Codes(4, 32, 24), T(4, 24), T(4, 24)),
    grouped_codes(pairs(4, 32, 12), T(4, 24), T(4, 24)),
    grouped_codes(pairs(4, 32, 12), T(4, 2, 24), ZEROS),
    of_codes(T(3, 64), Codes(96, 64), T(96), transposed=True),
    of_codes(T(3, 64), Codes(96, 64), T(96), T(96), transposed=True),
    of_codes(T(3, 64), Codes(64, 96), T(2, 96), T(2, 96), group=32),
    of_codes(T(3, 64), pairs(64, 64), T(2, 128), group=32),
    of_codes(T(3, 64), pairs(64, 64), T(128), T(128)),
    Call("MoeTokenUnpermute", ROWS, int32(3, 1, 0, 2, 5, 4), T(3, 2)),
    Call("IndexSelect", ROWS, 0, int32(3, 3, 0)),
    Call("Embedding", int32(GRID, GRID), T(4, 32)),
    Call("ArgMaxExt", T(3, 9), -1),
    Call("CumsumExt", T(3, 9), -1),
    Call("InplaceIndexCopy", BUFFER, 0, int32(3, 1), T(2, 32)),
    Call("IndexAddExt", ROWS, 0, int32(3, 1), T(2, 32), 1),
    Call("SplitWithSize", T(3, 9), (2, 7), -1),
    Call("ConstantPadND", T(3, 9), (0, 7), 0.0),
    Call("Clone", ROWS),
    paged_heads(T(2, 8, 32), int32((0, 3), (2, 1)), int32(17, 3)),
    rotated(T(3, 4 * 32), T(3, 32), int32(1, 2, 3)),
    cached(T(2, 64), int32(3, 40)),
]

BOTH, DOCUMENTATION = "both", "documentation"

WRONG = [
    (infer(Q, KV, KV, layout="BNDS"), BOTH, "a layout that does not exist"),
    (infer(Q, KV, KV, scale="0.2"), BOTH, "a scale that is no number"),
    (infer(Q, KV, KV, kv_heads=8), DOCUMENTATION, "another number of kv heads"),
    (infer(T(2, 7, 5, 32), KV, KV, heads=7), DOCUMENTATION, "heads not in groups"),
    (infer(Q, T(2, 2, 9, 16), T(2, 2, 9, 16)), DOCUMENTATION, "other channels"),
    (infer(Q, KV, T(2, 2, 8, 32)), DOCUMENTATION, "values fewer than keys"),
    (infer(T(2, 8, 5, 24), T(2, 2, 9, 24), T(2, 2, 9, 24)), DOCUMENTATION, "channels no multiple of 16"),
    (infer(Q, KV, KV, None, mask(2, 1, 5, 8)), DOCUMENTATION, "a mask too narrow"),
    (infer(Q, KV, KV, None, T(2, 1, 5, 9)), DOCUMENTATION, "an additive mask"),
    (infer(Q, KV, KV, None, mask(2, 1, 5, 9, at=(0, 0, 3))), DOCUMENTATION, "a query without keys"),
    (infer(STEP, KV, KV, layout="BNSD_BSND"), DOCUMENTATION, "that layout for one query"),
    (infer(Q, KV, KV, None, None, None, int32(9, 9)), DOCUMENTATION, "int32 lengths"),
    (infer(Q, KV, KV, None, None, None, int64(9, 10)), DOCUMENTATION, "lengths past the last key"),
    (paged(int64(20, 33), PAGES), DOCUMENTATION, "lengths past the last block"),
    (paged(int64(20, 0), PAGES), DOCUMENTATION, "a row of no length"),
    (paged(int64(20, 32), T(values=[[0, 4], [-1, 5]], dtype=ms.int32)), DOCUMENTATION, "a block before the first"),
    (paged(int64(20, 32), T(values=[[0, 4], [6, 5]], dtype=ms.int32)), DOCUMENTATION, "a block past the last"),
    (paged(None, PAGES), DOCUMENTATION, "blocks without lengths"),
    (infer(Q, KV, KV, sparse_mode=3), DOCUMENTATION, "a causal mode without its mask"),
    (flash(Q, Q, Q, (5, 12)), DOCUMENTATION, "four axes"),
    (flash(PACKED, PACKED, PACKED, (5, 7)), DOCUMENTATION, "lengths instead of ends"),
    (flash(PACKED, PACKED, PACKED, (5, 5, 12)), DOCUMENTATION, "an empty segment"),
    (flash(PACKED, T(12, 2, 32), T(12, 2, 32), (12,)), DOCUMENTATION, "fewer kv heads"),
    (flash(PACKED, PACKED, PACKED, (12,), head_num=8), DOCUMENTATION, "another number of heads"),
    (norm(T(2, 3, 32), T(31)), BOTH, "a weight too short"),
    (norm(T(2, 3, 32), T(32), "1e-6"), BOTH, "eps that is no number"),
    (norm(T(2, 3, 32), int32(*range(32))), DOCUMENTATION, "an integer weight"),
    (Call("LayerNormExt", T(2, 3, 32), (32,), T(31), T(32), 1e-5), BOTH, "a weight too short"),
    (Call("GeluExt", T(3, 4), "erf"), BOTH, "an approximation that does not exist"),
    (Call("Swiglu", T(2, 31), -1), BOTH, "an odd number of channels"),
    (Call("RotaryPositionEmbedding", T(1, 6, 4, 32), T(1, 6, 1, 16), T(1, 6, 1, 16), 0), DOCUMENTATION, "half a table"),
    (Call("RotaryPositionEmbedding", T(6, 4, 32), T(1, 6, 1, 32), T(1, 6, 1, 32), 0), DOCUMENTATION, "three axes"),
    (Call("RotaryPositionEmbedding", T(1, 6, 4, 32), None, T(1, 6, 1, 32), 0), BOTH, "no cosines"),
    (Call("TopkExt", T(3, 9), 10, -1), BOTH, "more than there are"),
    (routing(T(2, 32), int32(*GRID), 4), BOTH, "other numbers of rows"),
    (routing(T(3, 32), int64(*GRID), 4), BOTH, "int64 indices"),
    (routing(T(32), int32(*GRID), 4), BOTH, "one axis"),
    (routing(T(3, 32), int32(*GRID), 3), DOCUMENTATION, "an expert that does not exist"),
    (Call("MoeInitRoutingV2", T(3, 32), int32(*GRID), 0, 0, 4, 0), BOTH, "too few arguments"),
    (grouped([ROWS], [T(4, 31, 24)], int64(2, 2, 1, 1)), BOTH, "other inner sizes"),
    (grouped([ROWS], [T(32, 24)], int64(2, 2, 1, 1)), BOTH, "weights of one expert"),
    (grouped(ROWS, EXPERTS, int64(2, 2, 1, 1)), BOTH, "tensors that are in no list"),
    (grouped([ROWS], [EXPERTS], None), BOTH, "no groups"),
    (grouped([ROWS], [EXPERTS], int64(2, 4)), DOCUMENTATION, "fewer groups than experts"),
    (grouped([ROWS], [EXPERTS], int32(2, 2, 1, 1)), DOCUMENTATION, "int32 counts"),
    (grouped([ROWS], [EXPERTS], int64(2, 2, 1, 1), kind=0), DOCUMENTATION, "counts for ends"),
    (grouped([ROWS], [EXPERTS], int64(2, 4, 5, 6)), DOCUMENTATION, "ends for counts"),
    (grouped([ROWS], [EXPERTS], int64(2, 4, 5, 7), kind=0), DOCUMENTATION, "ends past the last row"),
    (grouped_codes(Codes(4, 32, 24), T(4, 2, 24), ZEROS), DOCUMENTATION, "codes of 8 bits in groups"),
    (grouped_codes(pairs(4, 32, 12), T(4, 2, 24), T(4, 2, 24)), DOCUMENTATION, "offsets of groups"),
    (grouped_codes(pairs(4, 32, 12), T(4, 3, 24), T(4, 3, 24)), DOCUMENTATION, "groups that do not divide"),
    (grouped_codes(Codes(4, 32, 24), T(4, 24), None), DOCUMENTATION, "codes without offsets"),
    (grouped_codes(Codes(4, 32, 24), T(4, 24, dtype=ms.float32), T(4, 24)), DOCUMENTATION, "scales in another type"),
    (grouped_codes(Codes(4, 32, 12), T(4, 24), T(4, 24)), DOCUMENTATION, "codes of 8 bits that are half as many"),
    (of_codes(T(3, 64), Codes(96, 64), T(96)), BOTH, "codes that are not transposed"),
    (of_codes(T(3, 64), Codes(96, 64), T(96, dtype=ms.float16), transposed=True), BOTH, "scales in another type"),
    (of_codes(T(3, 64), Codes(96, 64), T(96), T(1), transposed=True), DOCUMENTATION, "one offset for all"),
    (of_codes(T(3, 64), Codes(64, 96), T(2, 96)), DOCUMENTATION, "groups that are not announced"),
    (of_codes(T(3, 64), Codes(64, 96), T(4, 96), group=16), DOCUMENTATION, "groups of 16"),
    (of_codes(T(3, 64), Codes(40, 64), T(40), transposed=True), DOCUMENTATION, "outputs that fill no lines"),
    (of_codes(T(3, 64), Codes(64, 64), T(2, 128), group=32), DOCUMENTATION, "codes of 8 bits that are half as many"),
    (of_codes(T(3, 64), T(96, 64), T(96), transposed=True), BOTH, "numbers instead of codes"),
    (Call("MoeTokenUnpermute", ROWS, int64(*range(6)), T(3, 2)), DOCUMENTATION, "int64 indices"),
    (Call("MoeTokenUnpermute", ROWS, int32(*range(6)), T(2, 2)), DOCUMENTATION, "too few probabilities"),
    (Call("MoeTokenUnpermute", ROWS, int32(0, 0, 1, 2, 3, 4), T(3, 2)), DOCUMENTATION, "a repeated index"),
    (Call("Dense", T(2, 32), T(8, 31), None), BOTH, "other inner sizes"),
    (Call("Addmm", T(3, 9), T(3, 4), T(5, 9), 1, 1), BOTH, "other inner sizes"),
    (Call("Baddbmm", T(2, 3, 9), T(2, 3, 4), T(2, 5, 9), 1, 1), BOTH, "other inner sizes"),
    (Call("AddcmulExt", T(3, 9), T(3, 9), T(3, 2), 1), BOTH, "sizes that do not broadcast"),
    (Call("AddcdivExt", T(3, 9), T(3, 9), int32(*range(9)), 1), DOCUMENTATION, "integers"),
    (Call("Conv2DExt", T(1, 4, 9, 9), T(6, 5, 3, 3), T(6), (2, 2), (1, 1), (1, 1), 1), BOTH, "other channels"),
    (Call("Conv2DExt", T(1, 4, 2, 2), T(6, 4, 7, 7), T(6), (2, 2), (1, 1), (1, 1), 1), BOTH, "smaller than the kernel"),
    (Call("IndexSelect", ROWS, 0, int32(6)), DOCUMENTATION, "a row past the last"),
    (Call("Embedding", int32(-1), T(4, 32)), DOCUMENTATION, "a negative id"),
    (Call("InplaceIndexCopy", BUFFER, 0, int32(3, 1), T(2, 31)), DOCUMENTATION, "rows too short"),
    (Call("IndexAddExt", ROWS, 0, int32(6), T(1, 32), 1), DOCUMENTATION, "a row past the last"),
    (Call("SplitWithSize", T(3, 9), (2, 6), -1), BOTH, "pieces that leave some over"),
    (Call("InplaceIndexCopy", BUFFER, 0, int32(3, 7), T(2, 32)), DOCUMENTATION, "an index out of range"),
    (paged_heads(T(2, 8 * 32), int32((0, 3), (2, 1)), int32(17, 3)), DOCUMENTATION, "two axes"),
    (paged_heads(T(2, 4, 32), int32((0, 3), (2, 1)), int32(17, 3)), DOCUMENTATION, "other heads"),
    (paged_heads(T(2, 8, 32), int32((0, 6), (2, 1)), int32(17, 3)), DOCUMENTATION, "a block past the last"),
    (paged_heads(T(2, 8, 32), int32((0, 3), (2, 1)), int32(33, 3)), DOCUMENTATION, "longer than the tables"),
    (paged_heads(T(2, 8, 32), int32((0, 3), (2, 1)), int64(17, 3)), DOCUMENTATION, "int64 lengths"),
    (paged_heads(T(2, 8, 32), int32((0, 3), (2, 1)), int32(17, 3), (6, 8, 2, 32)), DOCUMENTATION, "blocks of 8"),
    (rotated(T(3, 4 * 32), T(3, 24), int32(1, 2, 3)), DOCUMENTATION, "tables that fit no head"),
    (rotated(T(3, 4 * 32), T(3, 32), int32(1, 2, 3), 0), DOCUMENTATION, "pairs of neighbours"),
    (rotated(T(3, 4 * 32), T(3, 32), int32(1, 2)), DOCUMENTATION, "lengths of other rows"),
    (cached(T(2, 64), int32(3, 96)), DOCUMENTATION, "a slot past the last"),
    (cached(T(2, 63), int32(3, 40)), DOCUMENTATION, "rows too short"),
    (cached(T(2, 64), int64(3, 40)), DOCUMENTATION, "int64 slots"),
]


def described(results):
    """[(shape, type), ...] of one tensor or of several."""
    several = results if isinstance(results, (tuple, list)) else (results,)
    return [(tuple(result.shape), result.dtype) for result in several]


def inferred(call):
    """What MindSpore infers of the results in bfloat16; None where it must run the kernel, since that has side effects."""
    kernel = getattr(gen_ops_prim, call.primitive)(**call.settings)

    @ms.jit
    def run(*inputs):
        results = kernel(*inputs)
        several = results if isinstance(results, (tuple, list)) else (results,)
        return [(result.shape, result.dtype) for result in several]

    try:
        return [(tuple(shape), dtype) for shape, dtype in run(*call.made(ms.bfloat16))]
    except RuntimeError as error:
        if f"Unsupported op [{call.primitive}] on CPU" not in str(error):
            raise
        return None


def computed(call, dtype):
    return ascend_emulation.STAND_INS[call.primitive](**call.settings)(*call.made(dtype))


REFUSALS = (ValueError, TypeError, RuntimeError)


def test_every_primitive_has_a_contract():
    covered = {call.primitive for call in RIGHT}
    assert covered == ascend_emulation.STAND_INS.keys() - {"Arange"}  # which takes no tensor


@pytest.mark.parametrize("call", RIGHT, ids=lambda call: call.primitive)
def test_results_are_those_that_mindspore_infers(call):
    actual = described(computed(call, ms.bfloat16))
    expected = inferred(call) or actual
    assert actual == expected
    expected = [(shape, ms.float32 if dtype == ms.bfloat16 else dtype) for shape, dtype in expected]
    assert described(computed(call, ms.float32)) == expected


@pytest.mark.parametrize("call, by, what", WRONG, ids=[f"{row[0].primitive}-{row[2]}" for row in WRONG])
def test_wrong_calls_are_refused(call, by, what):
    with pytest.raises(REFUSALS):
        computed(call, ms.bfloat16)
    if by == BOTH:
        with pytest.raises(REFUSALS):
            inferred(call)
