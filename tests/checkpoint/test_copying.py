"""Copies with conversion: the same numbers with and without the compiled kernel."""

import ml_dtypes
import numpy as np
import pytest

from ms_omni.checkpoint import parameters

SHAPES = [(16, 16), (48, 32), (7, 5), (33, 70), (1, 40), (40, 1)]


@pytest.fixture(params=[True, False], ids=["compiled", "numpy"])
def kernels(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr(parameters, "_kernels", dict)
    elif not parameters._kernels():
        pytest.skip("no C++ compiler")


@pytest.mark.parametrize("stored", [ml_dtypes.bfloat16, np.float32, np.float16])
@pytest.mark.parametrize("wanted", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_turned_copy(kernels, shape, stored, wanted):
    source = np.random.default_rng(0).standard_normal(shape).astype(stored)
    whole = np.full((shape[1], shape[0] + 3), 7, wanted)
    parameters.copy_into(whole[:, : shape[0]].T, source)
    assert np.array_equal(whole[:, : shape[0]], source.T.astype(wanted))
    assert (whole[:, shape[0] :] == 7).all()


def test_part_of_a_matrix(kernels):
    source = np.arange(60 * 50, dtype=np.float32).reshape(60, 50).astype(ml_dtypes.bfloat16)
    target = np.zeros((20, 40), np.float32)
    parameters.copy_transposed(target, source[10:50, 7:27])
    assert np.array_equal(target, source[10:50, 7:27].T.astype(np.float32))


def test_infinities_and_nan_keep_their_bits(kernels):
    source = np.full((32, 32), np.nan, ml_dtypes.bfloat16)
    source[0], source[1] = np.inf, -0.0
    target = np.empty((32, 32), np.float32)
    parameters.copy_into(target.T, source)
    assert np.array_equal(target.view(np.uint32), np.ascontiguousarray(source.T).astype(np.float32).view(np.uint32))
