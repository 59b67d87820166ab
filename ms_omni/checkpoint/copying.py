"""Copies from stored tensors into parameters, with conversion: what takes the time of loading.

Experts stand `[out, in]` in a file and `[in, out]` in memory. numpy turns and widens a matrix in two passes, at a tenth of
the speed of `ops/turn.cpp`, which is used where there is a compiler; the numbers are the same.
"""

import ctypes
import functools
import math
import mmap

import ml_dtypes
import numpy as np

STORED = {np.dtype(ml_dtypes.bfloat16): "bfloat16", np.dtype(np.float32): "float32"}


SMALL_BYTES = 1 << 22  # below this numpy asks for no huge pages


def fresh(shape, dtype) -> np.ndarray:
    """An array that is to be written, in memory of ordinary pages.

    numpy asks for huge pages, and a virtual machine may have to fetch each of them from its host: 10 s for 4 GB here,
    where ordinary ones took 2. Weights are read in long runs, which are as fast in either.
    """
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    if nbytes < SMALL_BYTES or not hasattr(mmap, "MAP_ANONYMOUS"):
        return np.empty(shape, dtype)
    return np.ndarray(shape, dtype, mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


def copy_into(target: np.ndarray, source: np.ndarray) -> None:
    """`target[...] = source` with conversion; the target may be a transposed view."""
    if target.ndim == 2 and not target.flags.c_contiguous and source.size:
        copy_turned(target.T, source)
    else:
        np.copyto(target, source, casting="unsafe")


def copy_turned(target: np.ndarray, source: np.ndarray) -> None:
    """`target[...] = source.T` for two matrices."""
    assert target.shape == source.shape[::-1], (target.shape, source.shape)
    plain = target.strides[1] == target.itemsize and source.strides[1] == source.itemsize
    kernel = _kernels().get(source.dtype) if plain and target.dtype == np.float32 else None
    if kernel is not None:
        steps = (matrix.strides[0] // matrix.itemsize for matrix in (source, target))
        kernel(source.ctypes.data, next(steps), target.ctypes.data, next(steps), *source.shape)
    elif target.dtype != source.dtype:  # converting while turning is slow
        np.copyto(target, np.ascontiguousarray(source.T), casting="unsafe")
    else:
        np.copyto(target, source.T)


@functools.cache
def _kernels():
    """{stored dtype: function}; none without MindSpore, which conversion does not need, or without a compiler."""
    try:
        from ..modeling.ops import build

        library = ctypes.CDLL(build.library("turn"))
    except (ImportError, OSError):
        return {}
    kernels = {}
    for dtype, name in STORED.items():
        kernels[dtype] = kernel = getattr(library, f"ms_omni_turn_{name}")
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        kernel.argtypes, kernel.restype = [pointer, number, pointer, number, number, number], None
    return kernels
