"""Blocks gather when they begin, run ahead in a fixed order, and hold nothing afterwards."""

import numpy as np
import pytest
from mindspore import Parameter, Tensor

from ms_omni.modeling.layer import Cell
from ms_omni.parallel.layers import become
from ms_omni.parallel.plan import BUNDLE_BYTES, Flat, bundles
from ms_omni.parallel.zero3 import Block, Bundle, Gathered

RANKS = 3


class TwinGather:
    """Pretends that all ranks hold what this one does; remembers the order of the calls."""

    def __init__(self):
        self.seen = []

    def __call__(self, part):
        self.seen.append(part.size)
        return Tensor(np.concatenate([part.asnumpy()] * RANKS))


def block_of(gather, *shapes, ahead=None):
    runs = [Flat().slice(shape, 0, RANKS) for shape in shapes]
    parameters = [Parameter(Tensor(np.full(run.local_shape, n + 1, np.float32)), name=f"p{n}") for n, run in enumerate(runs)]
    return Block([Bundle(parameters, runs, gather)], ahead), parameters


class Recorder:
    """An `ahead` that writes down what is started and taken."""

    def __init__(self):
        self.order = []

    def start(self, gather):
        self.order.append("start")
        return gather()

    def take(self, started):
        self.order.append("take")
        return started


class Reading(Cell):
    """A cell that reads a weight."""

    def __init__(self, block, parameter):
        super().__init__()
        self.read = lambda: block.source(parameter).shape

    def construct(self):
        return self.read()


def test_parameters_of_one_bundle_come_out_in_their_shapes():
    gather = TwinGather()
    block, parameters = block_of(gather, (6, 2), (4,), (1,))
    with block.gathered_weights():
        for number, (shape, parameter) in enumerate(zip([(6, 2), (4,), (1,)], parameters)):
            weight = block.source(parameter).asnumpy()
            assert weight.shape == shape and (weight == number + 1).all()
    assert gather.seen == [4 + 2 + 1]


def test_one_gather_for_nested_use_and_none_is_kept():
    gather = TwinGather()
    block, (parameter,) = block_of(gather, (6, 2))
    cell = Reading(block, parameter)
    become(cell, Gathered, gathering=block)
    with cell.gathered_weights():
        assert cell() == (6, 2) and cell() == (6, 2)
    assert gather.seen == [4] and block.weights == {}
    block.source(parameter)
    assert gather.seen == [4, 4] and block.weights == {}


def test_an_error_inside_frees_the_weights_too():
    block, _ = block_of(TwinGather(), (6, 2))
    with pytest.raises(KeyError), block.gathered_weights():
        raise KeyError
    assert block.weights == {} and block.users == 0


def test_what_is_not_sharded_passes():
    block, _ = block_of(TwinGather(), (6, 2))
    other = Parameter(Tensor(np.zeros(3, np.float32)), name="other")
    assert block.source(None) is None and block.source(other) is other


def test_the_next_block_is_gathered_while_one_is_used():
    gather, ahead = TwinGather(), Recorder()
    first, _ = block_of(gather, (6, 2), ahead=ahead)
    second, (parameter,) = block_of(gather, (9, 3), ahead=ahead)
    first.following = second
    for _ in range(2):
        with first.gathered_weights():
            assert second.coming is not None
        with second.gathered_weights():
            assert block_weight(second, parameter) == (9, 3) and second.coming is None
    assert gather.seen == [4, 9] * 2 and ahead.order == ["start", "take"] * 2


def block_weight(block, parameter):
    return block.source(parameter).shape


def test_small_parameters_share_a_gather():
    sizes = {"q": BUNDLE_BYTES + 1, "norm": 8, "k": BUNDLE_BYTES * 3, "bias": BUNDLE_BYTES}
    assert bundles(sizes) == [("q",), ("k",), ("norm", "bias")]
