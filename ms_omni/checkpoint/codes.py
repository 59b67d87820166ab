"""Parameters that are stored as codes: read from a file's codes, or quantised while they are read; all of one, or a rank's part."""

from dataclasses import dataclass

import numpy as np

from ms_omni.arrays import MODEL_TYPES
from ms_omni.errors import CheckpointError, InputError
from ms_omni.quantised import BLOCK, Quantised, Storage

from .copying import fresh
from .names import DOWN, GATE, UP
from .plan import Fill
from .reader import CheckpointReader
from .rounding import rounded
from .storage import OFFSET, SCALE, STACKS, matrix_shape

Span = tuple[int, int]


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


def piece_of(parameter: str, shape: tuple[int, ...], storage: Storage, part=None) -> Piece:
    """What a process holds of a parameter of `shape`; part: a `ms_omni.parallel.Slice`, or None for all of it."""
    spans = [(0, length) for length in shape]
    if part is not None and not part.is_whole:
        spans[part.axis] = (part.start, part.stop)
    return Piece(storage, matrix_shape(parameter, shape), matrix_shape(parameter, tuple(spans)))


def arrays_of(parameter: str, shape: tuple[int, ...], storage: Storage, part=None) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the arrays that a parameter is as codes, or a rank's piece of it."""
    codes, scales = piece_of(parameter, shape, storage, part).shapes()
    ends = (SCALE, OFFSET) if storage.offset else (SCALE,)
    return {parameter: codes, **{parameter + end: scales for end in ends}}


def read_codes(reader: CheckpointReader, fill: Fill, storage: Storage, part=None) -> Quantised:
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
        for place, found in _stored(reader, stored, rows, fill.parameter, storage):
            for buffer, values in zip(buffers, piece.cut(found)):
                if buffer is not None:
                    np.copyto(buffer[target][place], values, casting="unsafe")
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
        turned = np.swapaxes(array, 1, 2) if parameter.endswith(STACKS) else array
        for place, expert in enumerate(range(rows[0].start, rows[0].stop)):
            yield place, rounded(turned[expert][rows[1]], storage)
    except InputError as error:
        raise CheckpointError(f"{reader.folder}: {stored} {error}: the checkpoint is damaged; fetch it again.") from None
