"""Layers whose matrices are stored in bfloat16, or as codes with scales: the numbers that these stand for, and what becomes of them."""

import mindspore as ms
import ml_dtypes
import numpy as np
import pytest
from mindspore import Tensor, nn

from ms_omni.errors import InputError
from ms_omni.modeling.layer import BFLOAT16, filled, widen
from ms_omni.modeling.layers import Embedding, Linear
from ms_omni.modeling.moe import Experts
from ms_omni.modeling.ops.reference import Reference
from ms_omni.quantised import Quantised, Storage, dequantised, pack, quantised

STORAGES = [
    BFLOAT16,
    Storage(8),
    Storage(8, 48, "float16", "float32"),
    Storage(4, 32),
    Storage(4, 96, "float32", "bfloat16"),
]
INPUTS = 96
numbers = np.random.default_rng(0)


def fill(layer, name, storage):
    """Stores a matrix in this way, with random numbers -> the numbers that it stands for, float32 `[..., out, in]`."""
    shape = layer.outputs_first(name)
    layer.store(storage, name)
    if storage == BFLOAT16:
        matrix = numbers.normal(size=shape).astype(ml_dtypes.bfloat16)
        layer.get_parameters()
        own = np.swapaxes(matrix, -1, -2) if len(shape) == 3 else matrix
        setattr(layer, name, filled(getattr(layer, name), np.ascontiguousarray(own)))
        return matrix.astype(np.float32)
    stored = quantised(numbers.normal(size=shape).astype(np.float32), Storage(storage.bits, storage.group, storage.scale))
    if storage.offset:
        stored = stored._replace(offsets=numbers.normal(size=stored.scales.shape).astype(ml_dtypes.bfloat16))
    for end, part in zip(("", "_scale", "_offset"), stored):
        if part is not None:
            parameter = getattr(layer, name + end)
            assert parameter.shape == part.shape
            setattr(layer, name + end, filled(parameter, part))
    return dequantised(stored)


def close(got, expected):
    got = got.asnumpy()
    assert got.dtype == np.float32 and np.abs(got - expected).max() < 2e-5 * max(1, np.abs(expected).max())


@pytest.fixture(params=STORAGES, ids=["bfloat16", "int8", "int8 groups", "int4", "int4 offsets"])
def storage(request):
    return request.param


def test_a_product_is_with_the_numbers_that_are_meant(storage):
    layer = Linear(INPUTS, 10)
    weight, x = fill(layer, "weight", storage), numbers.normal(size=(2, 3, INPUTS)).astype(np.float32)
    assert layer.dtype == ms.float32 and layer.itemsize == 4 and layer.size == 10
    operand, bias = layer.stored()
    assert isinstance(operand, Quantised) == (storage != BFLOAT16) and operand.shape == (10, INPUTS)
    expected = x @ weight.T + bias.asnumpy()
    close(layer(Tensor(x)), expected)
    close(Reference.linear(Tensor(x), operand, bias), expected)
    close(layer.logits(Tensor(x)), x @ weight.T + bias.asnumpy())


def test_rows_of_a_table(storage):
    layer, ids = Embedding(7, INPUTS), np.array([[6, 0, 2], [2, 2, 5]], np.int32)
    weight = fill(layer, "weight", storage)
    close(layer(Tensor(ids)), weight[ids])
    indices, table = layer.rows(Tensor(ids))
    close(Tensor(table.asnumpy()[indices.asnumpy()]), weight[ids])
    part = Reference.embedding_part(Tensor(ids), layer.operands()[0], 1, ms.float32)  # ids 1 to 7
    close(part, np.where((ids >= 1)[..., None], weight[np.maximum(ids - 1, 0)], 0))


@pytest.mark.parametrize("rows, first", [(1, None), (40, None), (3, 2)])
def test_a_mixture(storage, rows, first):
    layer, width = Experts(4, INPUTS, INPUTS), INPUTS
    gate_up, down = fill(layer, "gate_up", storage) / 10, fill(layer, "down", storage)
    layer.first = first
    x = numbers.normal(size=(rows, width)).astype(np.float32) / 10
    weights = numbers.random((rows, 2)).astype(np.float32)
    indices = np.stack([numbers.permutation(5)[:2] for _ in range(rows)]).astype(np.int32) % (4 if first is None else 6)
    expected = np.zeros_like(x)
    for row in range(rows):
        for weight, expert in zip(weights[row], indices[row] - (first or 0)):
            if 0 <= expert < 4:
                gate, up = np.split(gate_up[expert] @ x[row] * 10, 2)
                expected[row] += weight * (down[expert] @ (gate / (1 + np.exp(-gate)) * up))
    arguments = Tensor(x), Tensor(weights), Tensor(indices)
    close(layer(*arguments), expected)
    close(Reference.experts(arguments[0], *layer.operands(), *arguments[1:], first), expected)


class Net(nn.Cell):
    """A head behind a table."""

    def __init__(self, table, head):
        super().__init__()
        self.table, self.head = table, head

    def construct(self, ids):
        return self.head(self.table(ids)).sum()


def test_what_is_trained_is_widened_and_stays_the_same_parameter():
    net, ids = Net(Embedding(7, INPUTS), Linear(INPUTS, 5)), Tensor(np.array([[1, 3]], np.int32))
    fill(net.table, "weight", BFLOAT16)
    weight, parameter = fill(net.head, "weight", BFLOAT16), net.head.weight
    net.table.weight.requires_grad = False
    assert (parameter.asnumpy() == weight).all() and parameter.asnumpy().dtype == np.float32  # also with numpy 2
    before = net(ids).asnumpy()
    (gradient,) = ms.grad(net, None, [parameter])(ids)
    assert gradient.dtype == ms.float32 and np.abs(gradient.asnumpy()).max() > 0
    assert net.head.weight is parameter and parameter.dtype == ms.float32 and (parameter.asnumpy() == weight).all()
    assert net.table.weight.dtype == ms.bfloat16 and net(ids).asnumpy() == pytest.approx(before, rel=1e-5)
    net.table.weight.requires_grad = True
    net.table.trainable_params()
    assert net.table.weight.dtype == ms.float32 and net.table.stored()[0] is net.table.weight
    for learn in (lambda layer: layer.set_train(), lambda layer: widen(layer, {"weight"})):
        layer = Linear(INPUTS, 5)
        fill(layer, "weight", BFLOAT16)
        before = layer.weight
        learn(layer)
        assert layer.weight is before and layer.weight.dtype == ms.float32


def test_codes_have_no_gradient():
    net = Net(Embedding(7, INPUTS), Linear(INPUTS, 5))
    fill(net.head, "weight", Storage(4, 32))
    assert [parameter.name for parameter in net.head.trainable_params()] == ["head.bias"]
    with pytest.raises(InputError, match=r"stored in 4 bits.*quantize="):
        ms.grad(net, None, [net.head.bias])(Tensor(np.array([[1, 3]], np.int32)))
    assert net.head(Tensor(np.ones((1, INPUTS), np.float32))).shape == (1, 5)  # outside of a gradient


def test_a_table_grows_however_it_is_stored(storage):
    layer, ids = Embedding(7, INPUTS), Tensor(np.arange(9, dtype=np.int32))
    weight, kind = fill(layer, "weight", storage), layer.weight.dtype
    layer.resize(9, None)
    grown = layer(ids).asnumpy()
    mean = weight.mean(axis=0)
    assert layer.size == 9 and (grown[:7] == layer(ids[:7]).asnumpy()).all()
    close(Tensor(grown[:7]), weight)
    step = np.abs(mean).max() / (7 if storage != BFLOAT16 and storage.bits == 4 else 100)
    assert np.abs(grown[7:] - mean).max() <= step
    assert layer.weight.dtype == kind
    layer.resize(3, 0.1)
    assert layer(ids[:3]).asnumpy().tolist() == grown[:3].tolist() and len(layer.operands()[0].shape) == 2


def test_groups_that_do_not_divide_are_an_error():
    for storage in (Storage(4, 64), Storage(8, 36), Storage(4, 48)):
        with pytest.raises(InputError, match=r"96 inputs, which are no whole groups of"):
            Linear(INPUTS, 4).store(storage)
    assert pack(np.full((1, 32), -8, np.int8)).tolist() == [[0] * 16]
