"""Random arrays, their tensors, and the comparison that all operator tests use."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.fixture
def normal(rng):
    """`normal(*shape)`: float32 array of unit normals."""
    return lambda *shape: rng.standard_normal(shape).astype(np.float32)


@pytest.fixture
def close():
    """`close(actual, expected, relative)`: same shape, and the largest difference within `relative` of the scale."""

    def check(actual, expected, relative=2e-6):
        actual = actual.asnumpy() if hasattr(actual, "asnumpy") else np.asarray(actual)
        expected = np.asarray(expected)
        assert actual.shape == expected.shape
        gap = np.abs(actual.astype(np.float64) - expected).max(initial=0)
        scale = max(np.abs(expected).max(initial=0), 1e-3)
        assert gap <= relative * scale, f"off by {gap:.3g} at scale {scale:.3g}"

    return check


@pytest.fixture
def tensors():
    """`tensors(a, b, ...)`: the arrays as MindSpore tensors, None as None."""
    return lambda *arrays: [None if array is None else Tensor(array) for array in arrays]


@pytest.fixture
def parameter():
    return lambda array: Parameter(Tensor(array, ms.float32))
