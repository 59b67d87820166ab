"""Kernels of single elements and rows that MindSpore has on Ascend and not on CPU."""

import ctypes
import functools

import mindspore as ms
import numpy as np
from mindspore import ops

from .kernel import FLOATS, Kernel, require, same_type

INDICES = (ms.int32, ms.int64)
_scatter_update = ops.ScatterUpdate()


def _check_index(found, index, size):
    require(
        index.size == 0 or (index.min() >= 0 and index.max() < size), f"{found} {index.min()} or {index.max()} of {size}"
    )


def index_select(tensors, *, dim):
    """input `[..., N, ...]`, index `[M]` -> `[..., M, ...]`."""
    require(tensors == ("input", "index"), f"tensors {tensors}: not emulated")

    def shape(x, index):
        require(len(index) == 1 and 0 <= dim < len(x), f"index {index} along axis {dim} of {x}")
        return [*x[:dim], *index, *x[dim + 1 :]]

    def dtype(x, index):
        require(index in INDICES, f"an index of type {index}")
        return x

    def compute(x, index):
        _check_index("row", index, x.shape[dim])
        return x.take(index, dim)

    return Kernel(2, compute, shape, dtype)


def embedding(tensors, *, norm_type, scale_grad_by_freq):
    """input `[...]`, weight `[V, D]` -> `[..., D]`."""
    require(tensors == ("input", "weight"), f"tensors {tensors}: not emulated")

    def shape(ids, weight):
        require(len(weight) == 2, f"weight {weight}")
        return [*ids, weight[1]]

    def dtype(ids, weight):
        require(ids in INDICES, f"ids of type {ids}")
        return same_type((*FLOATS, ms.int8), weight)

    def compute(ids, weight):
        _check_index("id", ids, len(weight))
        return weight[ids]

    return Kernel(2, compute, shape, dtype)


def arg_max_ext(tensors, *, dim, keepdim):
    """Along the last axis, int64; of equal elements the first."""
    require(tensors == ("input",) and dim == -1, f"tensors {tensors}, axis {dim}: not emulated")

    def compute(x):
        return x.argmax(-1, keepdims=keepdim).astype(np.int64)

    return Kernel(1, compute, lambda x: [*x[:-1], 1] if keepdim else x[:-1], lambda x: (same_type(FLOATS, x), ms.int64)[1])


def cumsum_ext(tensors, *, dim):
    require(tensors == ("input",) and dim == -1, f"tensors {tensors}, axis {dim}: not emulated")
    return Kernel(1, lambda x: np.cumsum(x, -1, dtype=x.dtype), lambda x: x, lambda x: same_type(FLOATS, x))


def split_with_size(tensors, *, split_size, dim):
    """-> pieces of these lengths along an axis; MindSpore 2.7.1 has a kernel for CPU outside graphs only."""
    require(tensors == ("input",), f"tensors {tensors}")

    def shape(x):
        axis = dim % len(x)
        require(sum(split_size) == x[axis], f"{x[axis]} in pieces of {split_size}")
        return tuple([*x[:axis], size, *x[axis + 1 :]] for size in split_size)

    def compute(x):
        return tuple(np.split(x, np.cumsum(split_size)[:-1], dim))

    return Kernel(1, compute, shape, lambda x: (x,) * len(split_size))


def constant_pad_nd(tensors, *, padding, value):
    """Before and after the last axis."""
    before, after = padding
    require(tensors == ("input",) and value == 0, f"tensors {tensors}, {value}")
    width = before + after

    def compute(x):
        return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(before, after)])

    return Kernel(1, compute, lambda x: [*x[:-1], x[-1] + width], lambda x: same_type(FLOATS, x))


def index_add_ext(tensors, *, dim, alpha):
    """input `[N, ...]` and source `[M, ...]` added at index `[M]`; what MindSpore has for CPU writes into its input."""
    require(tensors == ("input", "index", "source") and dim == 0 and alpha == 1, f"tensors {tensors}, axis {dim}, {alpha}")

    def shape(x, index, source):
        require(len(index) == 1 and source == [*index, *x[1:]], f"index {index} and source {source} for {x}")
        return x

    def dtype(x, index, source):
        require(index in INDICES, f"an index of type {index}")
        return same_type(FLOATS, x, source)

    def compute(x, index, source):
        _check_index("row", index, len(x))
        total = x.copy()
        np.add.at(total, index, source)
        return total

    return Kernel(3, compute, shape, dtype)


def clone(tensors):
    return Kernel(1, lambda x: x.copy(), lambda x: x, lambda x: same_type(FLOATS, x))


def arange():
    def call(start, end, step, dtype):
        return ops.arange(start, end, step).astype(dtype)

    return call


@functools.cache
def _places(shape, dim, alike):
    """index and tensor -> index, where a buffer of this shape has room for the rows."""
    require(dim == 0 and len(shape) == 2 and alike, f"axis {dim} of {shape}, rows of another type: {not alike}")

    def infer_shape(index, rows):
        require(len(index) == 1 and rows == [index[0], shape[1]], f"index {index} and rows {rows} for {shape}")
        return index

    def dtype(index, rows):
        require(index in INDICES, f"an index of type {index}")
        return index

    def compute(index, rows):
        _check_index("row", index, shape[0])
        return index

    kernel = Kernel(2, compute, infer_shape, dtype)
    kernel.called = "InplaceIndexCopy", ("index", "tensor"), {"dim": dim}
    return kernel


def inplace_index_copy():
    """`InplaceIndexCopy()`: writes tensor `[M, D]` into input `[N, D]` at index `[M]`; returns input.

    Numpy gets copies, so what writes is a kernel of CPU; of half precision that knows nothing, and the memory is written.
    """

    def call(input, dim, index, tensor):
        index = _places(tuple(input.shape), dim, input.dtype == tensor.dtype)(index, tensor)
        if input.dtype == ms.float32:
            return _scatter_update(input, index, tensor)
        return _overwrite(input, index, tensor)

    return call


@functools.cache
def _slots(cache, alike):
    require(len(cache) == 4 and alike, f"caches {cache}, rows of another type: {not alike}")

    def shape(key, value, slots):
        require(key == value == [*slots, cache[2] * cache[3]], f"keys {key} and values {value} at {slots} of {cache}")
        return slots

    def dtype(key, value, slots):
        require(slots == ms.int32 and key == value, f"slots of type {slots}")
        return slots

    def compute(key, value, slots):
        _check_index("row", slots, cache[0] * cache[1])
        return slots

    kernel = Kernel(3, compute, shape, dtype)
    kernel.called = "ReshapeAndCache", ("key", "value", "slot_mapping"), {"key_cache": cache}
    return kernel


def reshape_and_cache():
    """`ReshapeAndCache()`: writes key and value `[N, K * D]` into caches `[blocks, P, K, D]` at rows slot_mapping `[N]`. Outside graphs."""

    def call(key, value, key_cache, value_cache, slot_mapping):
        alike = key.dtype == key_cache.dtype == value_cache.dtype and key_cache.shape == value_cache.shape
        slots = _slots(tuple(key_cache.shape), alike)(key, value, slot_mapping)
        for cache, rows in ((key_cache, key), (value_cache, value)):
            _overwrite(cache, slots, rows)
        return key

    return call


def _overwrite(buffer, index, rows):
    """Of any shape, whose rows lie one behind the other."""
    bits = np.ascontiguousarray(rows.astype(ms.float32).asnumpy()).view(np.uint32)
    number, bits = (
        (ctypes.c_uint32, bits) if buffer.dtype == ms.float32 else (ctypes.c_uint16, (bits >> 16).astype(np.uint16))
    )
    memory = (number * buffer.size).from_address(buffer.data_ptr())
    np.frombuffer(memory, bits.dtype).reshape(-1, bits.shape[1])[index.asnumpy()] = bits
    return buffer
