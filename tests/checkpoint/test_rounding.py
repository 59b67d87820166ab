"""Rounding of matrices to codes: what is stored is what was searched, and it loses less than rounding by the largest number."""

import ml_dtypes
import numpy as np
import pytest

from ms_omni.checkpoint.rounding import rounded
from ms_omni.errors import InputError
from ms_omni.quantised import Storage, dequantised, quantised, unpack

STORAGES = [Storage(4, 32), Storage(4, 128), Storage(8), Storage(8, 64, "float32")]


def numbers(shape=(70, 256), seed=0, tail=4):
    """Matrices with some large numbers, as trained ones have."""
    return (np.random.default_rng(seed).standard_t(tail, shape) * 0.02).astype(ml_dtypes.bfloat16)


def error(matrix, stored, weights=1.0):
    return float((weights * (dequantised(stored) - matrix.astype(np.float32)) ** 2).sum())


@pytest.mark.parametrize("storage", STORAGES, ids=str)
def test_it_loses_less_than_rounding_by_the_largest_number(storage):
    matrix = numbers()
    found, plain = rounded(matrix, storage), quantised(matrix, storage)
    assert found.codes.shape == plain.codes.shape and found.codes.dtype == plain.codes.dtype
    assert found.scales.shape == plain.scales.shape and found.scales.dtype == plain.scales.dtype
    assert error(matrix, found) <= (0.8 if storage.bits == 4 else 1.00001) * error(matrix, plain)


@pytest.mark.parametrize("storage", STORAGES, ids=str)
def test_codes_are_those_nearest_under_the_scale_that_is_stored(storage):
    matrix = numbers((9, 128))
    stored = rounded(matrix, storage)
    group = storage.group or 128
    scales = stored.scales.astype(np.float32).repeat(group, axis=1)
    end = 2 ** (storage.bits - 1)
    codes = stored.codes if storage.bits == 8 else unpack(stored.codes)
    nearest = np.clip(np.rint(matrix.astype(np.float32) * (1 / scales)), -end, end - 1)
    np.testing.assert_array_equal(codes, nearest)


def test_rows_do_not_depend_on_their_neighbours():
    """So that ranks round their parts as the whole matrix is rounded."""
    matrix = numbers((300, 96))
    whole, part = rounded(matrix, Storage(4, 32)), rounded(matrix[131:150], Storage(4, 32))
    np.testing.assert_array_equal(whole.codes[131:150], part.codes)
    np.testing.assert_array_equal(whole.scales[131:150].view(np.uint16), part.scales.view(np.uint16))


def test_important_inputs_are_kept_better():
    matrix, weights = numbers((64, 64)), np.where(np.arange(64) % 8 == 0, 100.0, 1.0)
    plain, found = rounded(matrix, Storage(4, 32)), rounded(matrix, Storage(4, 32), weights)
    assert error(matrix, found, weights) < 0.9 * error(matrix, plain, weights)


@pytest.mark.parametrize("storage", STORAGES, ids=str)
def test_zeros_and_single_numbers(storage):
    matrix = np.zeros((3, 128), np.float32)
    matrix[1, 5] = 0.75
    matrix[2] = -1e-30
    values = dequantised(rounded(matrix, storage))
    assert not values[0].any()
    np.testing.assert_allclose(values[1], matrix[1], rtol=5e-3)
    np.testing.assert_allclose(values[2], matrix[2], rtol=5e-3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(value):
    matrix = np.ones((3, 64), np.float32)
    matrix[2, 40] = value
    with pytest.raises(InputError, match="holds NaN or infinite numbers"):
        rounded(matrix, Storage(4, 32))


def test_inputs_that_the_group_does_not_divide():
    with pytest.raises(InputError, match="96 inputs, which are no whole groups of 128"):
        rounded(np.ones((2, 96), np.float32), Storage(4, 128))
