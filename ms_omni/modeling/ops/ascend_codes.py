"""Codes, scales and offsets as the kernels of Ascend want them, in numpy: outputs last, but for matrices of 8 bits with a scale per output.

A kernel multiplies with `(code + offset) * scale`, where what is stored is `code * scale + offset` (`ms_omni.quantised`). So a stored
zero point, an offset that is a whole number of scales, is exactly an offset of the kernel's; others are rounded to its type.
"""

import itertools
from collections.abc import Callable

import numpy as np

from ...quantised import Quantised, dequantised

SIGNS = 0x88  # of both codes in a byte: what adds 8 to them, and makes two's complement of that


def across(matrix: np.ndarray) -> np.ndarray:
    """`[out, in]` -> `[in, out]`."""
    return matrix.T


def pairs_of_outputs(packed: np.ndarray) -> np.ndarray:
    """uint8 `[out, in/2]` as `ms_omni.quantised` packs codes -> int8 `[in, out/2]`: two's complement, the even output in the low half."""
    columns = np.ascontiguousarray(packed.T) ^ SIGNS  # [in/2, out]
    halves = [half[:, 0::2] | half[:, 1::2] << 4 for half in (columns & 15, columns >> 4)]
    inputs = np.stack([half.reshape(-1, 16, half.shape[1]) for half in halves], 1)  # [in/32, 2, 16, out/2]
    return inputs.reshape(2 * len(columns), -1).view(np.int8)


def of_each(make: Callable[[np.ndarray], np.ndarray], stack: np.ndarray) -> np.ndarray:
    """`make` of every matrix of a stack, one after another, so that nothing else large is made on the way."""
    first = make(stack[0])
    made = np.empty((len(stack), *first.shape), first.dtype)
    for number, matrix in enumerate(stack):
        made[number] = make(matrix)
    return made


def outputs_last(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Scales or offsets `[..., out, groups]` -> `[..., groups, out]`, or `[..., out]` where there is one group."""
    values = values.astype(dtype)
    return values[..., 0] if values.shape[-1] == 1 else values.swapaxes(-1, -2)


def in_scales(offsets: np.ndarray | None, scales: np.ndarray) -> np.ndarray:
    """Offsets as numbers of scales: what the kernels add to codes; None for zeros. All float32 `[..., out, groups]`."""
    scales = scales.astype(np.float32)
    zeros = np.zeros_like(scales)
    return zeros if offsets is None else np.divide(offsets.astype(np.float32), scales, out=zeros, where=scales != 0)


def numbers(codes: np.ndarray, scales: np.ndarray, offsets: np.ndarray | None, dtype: np.dtype) -> np.ndarray:
    """The matrix `[out, in]`, or of a stack of them `[E, in, out]`."""
    if codes.ndim == 2:
        return dequantised(Quantised(codes, scales, offsets)).astype(dtype)
    parts = zip(codes, scales, offsets if offsets is not None else itertools.repeat(None))
    return np.stack([dequantised(Quantised(*part)).T.astype(dtype) for part in parts])
