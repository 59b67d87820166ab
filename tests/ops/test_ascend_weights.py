"""Weights that are made of the model's parameters."""

import mindspore as ms
import ml_dtypes
import numpy as np
import pytest
from mindspore import Parameter, Tensor

from ms_omni.modeling.ops import ascend_weights
from ms_omni.modeling.ops.dispatch import Recorded


@pytest.fixture
def parts():
    arrays = [np.arange(12).reshape(rows, 2).astype(ml_dtypes.bfloat16) for rows in (6, 6)]
    return [Parameter(Tensor.from_numpy(array), name=f"part{i}") for i, array in enumerate(arrays)]


def stacked(parts):
    return np.concatenate([part.astype(ms.float32).asnumpy() for part in parts])


def test_rows_below_one_another(parts):
    packed = ascend_weights.Packed(ascend_weights.rows, *parts)
    made = packed.current()
    assert made.dtype == ms.bfloat16 and (made.astype(ms.float32).asnumpy() == stacked(parts)).all()
    assert packed.current() is made and packed.is_made_of(*parts) and not packed.is_made_of(*parts[::-1])


def test_values_that_are_set_are_noticed(parts):
    """Twice, too: the second time the memory of the first values could be taken for the new ones."""
    packed = ascend_weights.Packed(ascend_weights.rows, *parts)
    made = packed.current()
    for number in (1, 2):
        parts[1].set_data(Tensor.from_numpy(np.full((6, 2), number, ml_dtypes.bfloat16)))
    assert packed.current() is made and (made.astype(ms.float32).asnumpy() == stacked(parts)).all()


def test_training_is_noticed(parts):
    made = []
    packed = ascend_weights.Packed(lambda *arrays: made.append(1) or arrays[0], parts[0])
    packed.current()
    Recorded.calls += 1
    packed.current(), packed.current()
    assert len(made) == 2
