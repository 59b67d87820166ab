"""One parameter read from its stored tensors: as numbers or as codes, all of it or a rank's part.

Experts stand `[out, in]` in a file and `[in, out]` in memory. numpy transposes and widens a matrix in two passes, at a tenth of
the speed of `ops/turn.cpp`, which is used where there is a compiler; the numbers are the same.
"""

import ctypes
import functools
import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np

from ms_omni.arrays import MODEL_TYPES
from ms_omni.errors import CheckpointError, InputError
from ms_omni.quantised import BLOCK, Quantised, Storage

from .matching import Fill
from .names import DOWN, GATE, STACKED, UP, region, slot
from .reader import Reader, check_finite
from .rounding import rounded
from .storage import OFFSET, SCALE, STACKS, matrix_shape

Span = tuple[int, int]
STORED = {np.dtype(ml_dtypes.bfloat16): "bfloat16", np.dtype(np.float32): "float32"}
SMALL_BYTES = 1 << 22  # below this numpy asks for no huge pages


def read_parameter(reader: Reader, fill: Fill, dtype: np.dtype) -> np.ndarray:
    """One parameter as an array of its own: allocated once in the target dtype, each stored tensor written in place."""
    buffer = fresh(fill.shape, dtype)
    for stored, source in fill.parts:
        copy_into(slot(source, buffer), reader.array(stored))
        reader.release(stored)
    return buffer


def read_slice(reader: Reader, fill: Fill, dtype: np.dtype, part: Any) -> np.ndarray:
    """A rank's part of one parameter; stored tensors that it does not touch are not opened, others read where it does.

    part: a `ms_omni.parallel.Slice` or `Run`, or None for the whole parameter.
    """
    if part is None or part.is_whole:
        return read_parameter(reader, fill, dtype)
    if part.flat:
        return read_run(reader, fill, dtype, part)
    buffer = np.zeros(part.local_shape, dtype)
    for stored, source in fill.parts:
        box = region(source, fill.shape)
        first, last = box[part.axis]
        low, high = max(first, part.start), min(last, part.stop)
        if low >= high:
            continue
        target = [slice(*bounds) for bounds in box]
        target[part.axis] = slice(low - part.start, high - part.start)
        wanted = [slice(None)] * len(box)
        wanted[part.axis] = slice(low - first, high - first)
        if source.transform in STACKED:  # [out, in] in the file, one [in, out] of the stack here
            copy_transposed(buffer[tuple(target)][0], reader.array(stored)[wanted[2], wanted[1]])
        else:
            copy_into(buffer[tuple(target)], reader.array(stored).reshape(fill.shape)[tuple(wanted)])
        reader.release(stored)
    return buffer


def read_stored(
    reader: Reader, fill: Fill, storage: Storage, parts: Mapping[str, Any] | None = None
) -> dict[str, np.ndarray]:
    """The arrays of a parameter that is kept as codes, by the names of their own parameters. Raises `CheckpointError` for scales and
    offsets that are not finite.

    parts: what this process holds of each parameter by name; where that is runs of elements, of each array.
    """
    part = parts[fill.parameter] if parts else None
    stored = read_codes(reader, fill, storage, None if part is None or part.flat else part)
    arrays = {fill.parameter + end: array for end, array in zip(("", SCALE, OFFSET), stored) if array is not None}
    for name in arrays.keys() - {fill.parameter}:
        check_finite(arrays[name], f"{reader.folder}: {name}", every=True)  # each stands for many numbers
    if not parts or part is None or not part.flat:
        return arrays
    return {name: parts[name].cut(array) for name, array in arrays.items()}


@dataclass(frozen=True)
class Piece:
    """The part of a matrix `[..., out, in]` (start, stop per axis) that is wanted, and how all of it is stored."""

    storage: Storage
    shape: tuple[int, ...]
    spans: tuple[Span, ...]

    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of its codes, and of its scales and offsets. Raises `InputError` where it would cut a group, or what lies together."""
        codes, scales = self.storage.shapes(self.shape)
        inputs, (start, stop) = self.shape[-1], self.spans[-1]
        unit = max(self.storage.group or 1, BLOCK if self.storage.bits == 4 else 1)
        if (start, stop) != (0, inputs) and (start % unit or stop % unit):
            raise InputError(
                f"inputs {start} to {stop} of {inputs} do not begin and end with groups of {unit}, which are stored together; "
                "take another number of ranks, or smaller groups"
            )
        outer = tuple(stop - start for start, stop in self.spans[:-1])
        ends = [self._inputs(stored[-1]) for stored in (codes, scales)]
        return (*outer, ends[0].stop - ends[0].start), (*outer, ends[1].stop - ends[1].start)

    def cut(self, whole: Quantised) -> Quantised:
        """Its inputs of codes that have all of them."""
        return Quantised(*(part if part is None else part[..., self._inputs(part.shape[-1])] for part in whole))

    def put(self, whole: np.ndarray, part: np.ndarray) -> None:
        """Writes codes, scales or offsets of it to where they belong in those of all."""
        whole[(*(slice(*span) for span in self.spans[:-1]), self._inputs(whole.shape[-1]))] = part

    def _inputs(self, length: int) -> slice:
        """Its inputs in an array that has `length` of what stands for all of them: codes, or scales."""
        inputs, (start, stop) = self.shape[-1], self.spans[-1]
        return slice(0, 1) if length == 1 else slice(start * length // inputs, stop * length // inputs)


def piece_of(parameter: str, shape: tuple[int, ...], storage: Storage, part: Any = None) -> Piece:
    """What a process holds of a parameter of `shape`; part: a `ms_omni.parallel.Slice`, or None for all of it."""
    spans = [(0, length) for length in shape]
    if part is not None and not part.is_whole:
        spans[part.axis] = (part.start, part.stop)
    return Piece(storage, matrix_shape(parameter, shape), matrix_shape(parameter, spans))


def arrays_of(parameter: str, shape: tuple[int, ...], storage: Storage, part: Any = None) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the arrays that a parameter is as codes, or a rank's piece of it."""
    codes, scales = piece_of(parameter, shape, storage, part).shapes()
    ends = (SCALE, OFFSET) if storage.offset else (SCALE,)
    return {parameter: codes, **{parameter + end: scales for end in ends}}


def read_codes(reader: Reader, fill: Fill, storage: Storage, part: Any = None) -> Quantised:
    """One parameter as codes, in arrays of its own, or the piece of it that `part` says; stored tensors beside it are not opened."""
    piece = piece_of(fill.parameter, fill.shape, storage, part)
    codes, scales = piece.shapes()
    buffers = [fresh(codes, np.int8 if storage.bits == 8 else np.uint8)]
    buffers += [fresh(scales, MODEL_TYPES[dtype]) if dtype else None for dtype in (storage.scale, storage.offset)]
    for stored, source in fill.parts:
        box = _region(source, piece.shape)
        wanted = [(max(a, low), min(b, high)) for (a, b), (low, high) in zip(box[:-1], piece.spans)]
        if any(low >= high for low, high in wanted):
            continue
        target = tuple(slice(low - begin, high - begin) for (low, high), (begin, _) in zip(wanted, piece.spans))
        rows = [slice(low - begin, high - begin) for (low, high), (begin, _) in zip(wanted, box)]
        for index, part_codes in _stored(reader, stored, rows, fill.parameter, storage):
            for buffer, values in zip(buffers, piece.cut(part_codes)):
                if buffer is not None:
                    np.copyto(buffer[target][index], values, casting="unsafe")
        reader.release(stored)
    return Quantised(*buffers)


def _region(source, shape) -> list[Span]:
    """Which part of a matrix, or a stack `[E, out, in]`, a stored tensor is: (start, stop) per axis."""
    box = [(0, length) for length in shape]
    if source.transform in (GATE, UP, DOWN):
        box[0] = (source.expert, source.expert + 1)
    if source.transform in (GATE, UP):
        half = shape[1] // 2
        box[1] = (0, half) if source.transform == GATE else (half, 2 * half)
    return box


def _stored(reader, stored, rows, parameter, storage):
    """Yields (where in the rows that are wanted, codes of all their inputs): those of the file, or one expert's after the other made of
    numbers. rows: slices of what the tensor fills, over all axes but the last; a matrix among a stack has one less itself.
    """
    if reader.storage(stored) is not None:
        found = reader.codes(stored)
        rows = rows[-(found.codes.ndim - 1) :]
        yield ..., Quantised(*(part if part is None else part[tuple(rows)] for part in found))
        return
    array = reader.array(stored)
    try:
        if array.ndim == 2:
            yield ..., rounded(array[rows[-1]], storage)
            return
        stack = np.swapaxes(array, 1, 2) if parameter.endswith(STACKS) else array
        for index, expert in enumerate(range(rows[0].start, rows[0].stop)):
            yield index, rounded(stack[expert][rows[1]], storage)
    except InputError as error:
        raise CheckpointError(f"{reader.folder}: {stored} {error}: the checkpoint is damaged; fetch it again.") from None


def read_run(reader: Reader, fill: Fill, dtype: np.dtype, run: Any) -> np.ndarray:
    """The elements of a parameter that a `ms_omni.parallel.Run` names, in its local shape, padded with zeros."""
    buffer = np.zeros(run.length, dtype)
    wanted = buffer[: run.stop - run.start]
    if fill.parts[0][1].transform in STACKED:
        _read_experts(reader, fill, wanted, run.start)
    else:
        stored, _ = fill.parts[0]
        np.copyto(wanted, reader.array(stored).reshape(-1)[run.start : run.stop], casting="unsafe")
        reader.release(stored)
    return buffer.reshape(run.local_shape)


def _read_experts(reader, fill, wanted, start):
    """Fills `wanted`, the elements from `start` on, expert by expert."""
    shape = fill.shape[1:]
    size = math.prod(shape)
    parts = {}
    for stored, source in fill.parts:
        parts.setdefault(source.expert, []).append((stored, source))
    for expert in range(start // size, -(-(start + len(wanted)) // size)):
        low, high = max(expert * size, start), min((expert + 1) * size, start + len(wanted))
        piece = wanted[low - start : high - start]
        whole = len(piece) == size
        stack = (piece if whole else np.empty(size, wanted.dtype)).reshape(1, *shape)
        for stored, source in parts[expert]:
            copy_into(slot(replace(source, expert=0), stack), reader.array(stored))
            reader.release(stored)
        if not whole:
            np.copyto(piece, stack.reshape(-1)[low - expert * size : high - expert * size])


def fresh(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array that is to be written, in huge pages where the system has them (Linux: "always" or "madvise" in
    /sys/kernel/mm/transparent_hugepage/enabled).

    Weights pass by once a token, and with ordinary pages a processor has to look up each of them: on a virtual machine of two cores that
    is 26 GB/s instead of 34.
    """
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    if nbytes < SMALL_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        return np.empty(shape, dtype)
    memory = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    try:
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:  # a kernel that was built without them
        pass
    return np.ndarray(shape, dtype, memory)


def copy_into(target: np.ndarray, source: np.ndarray) -> None:
    """`target[...] = source` with conversion; the target may be a transposed view."""
    if target.ndim == 2 and not target.flags.c_contiguous and source.size:
        copy_transposed(target.T, source)
    else:
        np.copyto(target, source, casting="unsafe")


def copy_transposed(target: np.ndarray, source: np.ndarray) -> None:
    """`target[...] = source.T` for two matrices."""
    assert target.shape == source.shape[::-1], (target.shape, source.shape)
    plain = target.strides[1] == target.itemsize and source.strides[1] == source.itemsize
    kernel = _kernels().get(source.dtype) if plain and target.dtype == np.float32 else None
    if kernel is not None:
        steps = (matrix.strides[0] // matrix.itemsize for matrix in (source, target))
        kernel(source.ctypes.data, next(steps), target.ctypes.data, next(steps), *source.shape)
    elif target.dtype != source.dtype:  # converting while transposing is slow
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
