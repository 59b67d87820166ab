"""Published tensors gathered into our parameters (experts stacked), as numbers or, where they are stored so, as codes with scales."""

import json
import math
from collections.abc import Callable, Iterable

import numpy as np

from ms_omni.arrays import MODEL_TYPES
from ms_omni.quantised import Storage

from .as_published import DEQUANTISED
from .choice import said_of_mixed
from .codes import arrays_of
from .header import DTYPES
from .load import read_parameter, read_stored
from .names import FLATTEN, IGNORE, KEEP, Source, place
from .plan import Fill, file_root
from .reader import MARKER, report
from .storage import OFFSET, SCALE
from .writer import Pending, dtype_name


def gather(reader) -> list[Fill]:
    """Which tensors of a reader of published names make which parameter (named without what `file_root` puts before it).

    Raises:
        CheckpointError: one error that lists all tensors that no rule knows and all stacks that lack experts.
    """
    root, gathered, problems = file_root(reader.entries), {}, []
    for name in reader.entries:
        spot = place(root + name)
        if spot is None:
            problems.append(f"{name}: no tensor of this name in Qwen3-Omni")
        else:
            gathered.setdefault(spot.target, []).append((spot, name))
    fills = []
    for target, parts in gathered.items():
        parts.sort(key=lambda part: (part[0].expert or 0, part[0].transform != "gate"))
        shape = _stacked_shape(target, parts, reader, problems)
        if shape is not None:
            made = tuple((name, _source(reader, spot, name)) for spot, name in parts)
            fills.append(Fill(target.removeprefix(root), shape, made))
    if problems:
        raise report(problems, f"{reader.folder} cannot be converted")
    return fills


def _source(reader, spot, name) -> Source:
    transform = KEEP if spot.transform == IGNORE else spot.transform
    return Source(name, reader.entries[name].shape, transform, spot.expert)


def _stacked_shape(target, parts, reader, problems) -> tuple[int, ...] | None:
    """Shape of the parameter that the parts make; None, with a problem noted, when parts are absent or differ."""
    spot, first = parts[0]
    shape = reader.entries[first].shape
    if spot.transform in (KEEP, IGNORE):
        return shape
    if spot.transform == FLATTEN:
        return (shape[0], math.prod(shape[1:]))
    per_expert = 2 if target.endswith(".gate_up") else 1
    experts = max(part.expert for part, _ in parts) + 1
    if len(parts) != per_expert * experts:
        problems.append(f"{target}: {len(parts)} expert matrices, expected {per_expert} for each of {experts} experts")
        return None
    if len(shape) != 2 or any(reader.entries[name].shape != shape for _, name in parts):
        problems.append(f"{target}: its expert matrices differ in shape, or have not two axes")
        return None
    return (experts, shape[1], per_expert * shape[0])


def to_parameters(reader) -> tuple[list[Pending], dict[str, str], tuple[str, ...]]:
    """What a folder in our form holds: the parameters to write, its metadata, where dtypes and shapes that a parameter cannot show
    are kept, and what there is to say about them. Raises `CheckpointError`, see `gather`.
    """
    tensors, dtypes, shapes, fills = [], {}, {}, gather(reader)
    for fill in fills:
        storage = storage_in(reader, fill)
        if storage is not None:
            tensors += coded(reader, fill, storage)
            continue
        kinds, dtype = kinds_of(reader, fill), dtype_in(reader, fill)
        if len(set(kinds.values())) > 1:
            dtypes.update(kinds)
        if fill.parts[0][1].transform == FLATTEN:
            shapes[fill.parts[0][0]] = list(fill.parts[0][1].shape)
        tensors.append(Pending(fill.parameter, dtype, fill.shape, _reading(reader, fill, dtype)))
    metadata = {"format": MARKER, "source_dtypes": json.dumps(dtypes), "source_shapes": json.dumps(shapes)}
    return tensors, metadata, notes_on(reader, fills)


def notes_on(reader, fills: Iterable[Fill]) -> tuple[str, ...]:
    """What there is to say of parameters whose tensors are not stored alike."""
    mixed = [fill.parameter for fill in fills if len({reader.storage(name) for name, _ in fill.parts}) > 1]
    return (said_of_mixed(mixed),) if mixed else ()


def kinds_of(reader, fill: Fill) -> dict[str, str]:
    """The dtypes of a parameter's stored tensors as numbers; codes get that of the numbers beside them, or of all that is dequantised."""
    names = [name for name, _ in fill.parts]
    beside = {reader.entries[name].dtype for name in names if reader.storage(name) is None}
    dequantised = beside.pop() if len(beside) == 1 else DEQUANTISED
    return {name: reader.entries[name].dtype if reader.storage(name) is None else dequantised for name in names}


def dtype_in(reader, fill: Fill) -> str:
    """What a parameter is written in where it is no codes."""
    kinds = set(kinds_of(reader, fill).values())
    return kinds.pop() if len(kinds) == 1 else "F32"  # exact for bf16 and fp16 alike


def _reading(reader, fill, dtype):
    return lambda: read_parameter(reader, fill, DTYPES[dtype])


def storage_in(reader, fill: Fill) -> Storage | None:
    """How all parts of a parameter are stored if they are codes alike, else None."""
    found = {reader.storage(name) for name, _ in fill.parts}
    return found.pop() if len(found) == 1 else None


def coded(reader, fill: Fill, storage: Storage, parts=None) -> list[Pending]:
    """Codes, scales and offsets of a parameter, or of a rank's part of it (see `read_stored`); they are made together, once."""
    part = parts and parts[fill.parameter]
    shapes = arrays_of(fill.parameter, fill.shape, storage, None if part is None or part.flat else part)
    if part is not None and part.flat:
        shapes = {name: parts[name].local_shape for name in shapes}
    made = _Once(lambda: read_stored(reader, fill, storage, parts))
    kinds = {"": "I8" if storage.bits == 8 else "U8"}
    kinds |= {end: dtype_name(MODEL_TYPES[kind]) for end, kind in ((SCALE, storage.scale), (OFFSET, storage.offset)) if kind}
    return [
        Pending(name, kinds[name.removeprefix(fill.parameter)], shape, made.reading(name)) for name, shape in shapes.items()
    ]


class _Once:
    """Arrays that are made together and fetched one after the other; none is held once it was fetched."""

    def __init__(self, make: Callable[[], dict[str, np.ndarray]]):
        self.make, self.held = make, {}

    def reading(self, which: str) -> Callable[[], np.ndarray]:
        """What fetches one of them."""

        def read():
            if which not in self.held:
                self.held = self.make()
            return self.held.pop(which)

        return read
