"""Products and look-ups with matrices in bfloat16 and in codes: the bits of the same product with the dequantised matrix; its numbers
within float32's rounding on matrix units, which sum in another order, and on processors that round a product before they add to it."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from ms_omni.errors import InputError
from ms_omni.quantised import Quantised, Storage, dequantised, quantised

try:
    from ms_omni.modeling.ops.cpu import Cpu
except OSError as error:
    pytest.skip(f"no kernels here: {error}", allow_module_level=True)

RNG = np.random.default_rng(23)
ROUNDED = "SSE" in Cpu.VECTORS
"""Whether a product is rounded before something is added to it, so that codes are widened with other last bits."""
STORAGES = {
    "int8 per row": Storage(8),
    "int8 in groups": Storage(8, 8, "float32"),
    "int8 with offsets": Storage(8, 32, "float16", "float32"),
    "int4": Storage(4, 32),
    "int4 in large groups": Storage(4, 96, "float32"),
    "int4 with offsets": Storage(4, 32, "bfloat16", "bfloat16"),
}


def same(result, expected, size):
    """size: of the terms that are added up; of a few sums all may be small."""
    if "AMX" not in Cpu.VECTORS and not ROUNDED:
        return np.array_equal(result, expected)
    return np.abs(result - expected).max() <= 3e-6 * max(np.abs(expected).max(), size)


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def tensor(array):
    """bfloat16 arrays are no arrays of numpy's own."""
    return Tensor(array) if array.dtype.name != "bfloat16" else Tensor(array.astype(np.float32)).astype(ms.bfloat16)


def stored(matrix, how):
    """(the operand, its numbers) of a matrix `[..., out, in]`."""
    if how == "bfloat16":
        half = Tensor(matrix).astype(ms.bfloat16)
        return half, half.astype(ms.float32).asnumpy()
    coded = quantised(matrix, STORAGES[how])
    if STORAGES[how].offset:
        coded = coded._replace(offsets=normal(*coded.scales.shape).astype(coded.scales.dtype))
    return Quantised(*(part if part is None else tensor(part) for part in coded)), dequantised(coded)


def all_storages(inputs):
    return [
        how
        for how, storage in STORAGES.items()
        if inputs % (storage.group or 1) == 0 and (storage.bits == 8 or inputs % 32 == 0)
    ]


CASES = [(how, inputs) for inputs in (1, 7, 96, 288, 800) for how in ("bfloat16", *all_storages(inputs))]


@pytest.mark.parametrize("how, inputs", CASES)
@pytest.mark.parametrize("rows, outputs, biased", [(1, 3, True), (5, 37, False), (31, 130, True)])
def test_linear(how, inputs, rows, outputs, biased):
    weight, numbers = stored(normal(outputs, inputs), how)
    x, bias = Tensor(normal(rows, inputs)), Tensor(normal(outputs)) if biased else None
    result = Cpu.linear(x, weight, bias).asnumpy()
    size = np.sqrt(np.square(x.asnumpy()).sum(-1).max() * np.square(numbers).sum(-1).max())
    assert same(result, Cpu.linear(x, Tensor(numbers), bias).asnumpy(), size)
    assert np.array_equal(Cpu.linear(x[-1:], weight, bias).asnumpy(), result[-1:])  # alone as in company


@pytest.mark.parametrize("how, inputs", CASES)
def test_embedding(how, inputs):
    weight, numbers = stored(normal(9, inputs), how)
    ids = np.array([[8, 0, 3], [3, 5, 1]], np.int64)
    whole = Cpu.embedding(Tensor(ids), weight, ms.float32).asnumpy()
    assert np.abs(whole - numbers[ids]).max() <= (3e-7 * np.abs(numbers).max() if ROUNDED else 0)
    part = Cpu.embedding_part(Tensor(ids), weight, 4, ms.float32).asnumpy()  # ids 4 to 12 are here
    rows = Cpu.embedding(Tensor(np.maximum(ids - 4, 0)), weight, ms.float32).asnumpy()
    assert np.array_equal(part, np.where((ids >= 4)[..., None], rows, 0))


def test_an_id_that_the_table_has_no_row_for():
    weight, _ = stored(normal(9, 32), "int4")
    with pytest.raises(RuntimeError) as raised:
        Cpu.embedding(Tensor(np.array([9], np.int32)), weight).asnumpy()
    assert Cpu.refusal(raised.value) == "embedding_coded: ids hold 9, but there are 9 rows"


@pytest.mark.parametrize("how", ["bfloat16", *all_storages(96)])
@pytest.mark.parametrize("n, e, k, inner", [(1, 2, 1, 96), (60, 3, 2, 96), (300, 2, 1, 192)])
def test_experts(how, n, e, k, inner):
    gate_up, down = normal(e, 2 * inner, 96), normal(e, 96, inner)
    if how == "bfloat16":
        gate_up, down = (np.ascontiguousarray(part.swapaxes(1, 2)) for part in (gate_up, down))
    (gate_up, wide), (down, narrow) = stored(gate_up, how), stored(down, how)
    if how != "bfloat16":
        wide, narrow = (np.ascontiguousarray(part.swapaxes(1, 2)) for part in (wide, narrow))
    index = np.stack([RNG.permutation(e)[:k] for _ in range(n)]).astype(np.int32)
    x, weights, index = map(Tensor, (normal(n, 96), normal(n, k), index))
    result = Cpu.experts(x, gate_up, down, weights, index).asnumpy()
    assert same(result, Cpu.experts(x, Tensor(wide), Tensor(narrow), weights, index).asnumpy(), 0)
    alone = Cpu.experts(x[-1:], gate_up, down, weights[-1:], index[-1:]).asnumpy()
    assert np.array_equal(alone, result[-1:])


@pytest.mark.parametrize(
    "codes, scales, offsets, reason",
    [
        ((5, 33), (5, 1), None, "codes are int8 [5, 33], expected 32 bytes a row beside 32 inputs"),
        ((5, 32), (5, 3), None, "scales are float32 [5, 3], expected whole groups beside 32 inputs"),
        ((5, 32), (4, 1), None, "scales is [4, 1], expected float32, bfloat16 or float16 [M, G], where M is 5"),
        ((5, 32), (5, 2), (5, 1), "offsets are float32 [5, 1], expected the shape of the scales beside 32 inputs"),
    ],
)
def test_parts_that_do_not_fit(codes, scales, offsets, reason):
    parts = np.zeros(codes, np.int8), normal(*scales), None if offsets is None else normal(*offsets)
    weight = Quantised(*(part if part is None else Tensor(part) for part in parts))
    with pytest.raises((RuntimeError, InputError)) as raised:
        Cpu.linear(Tensor(normal(2, 32)), weight).asnumpy()
    assert reason in (Cpu.refusal(raised.value) or str(raised.value))
