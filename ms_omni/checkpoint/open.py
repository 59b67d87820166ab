"""Opening a checkpoint folder with the reader that its config.json asks for: of plain tensors, or of codes with scales, ours or others'.

A reader of codes shows the matrices that they stand for. Beside what a `CheckpointReader` has (`entries`, `array`, `release`) it tells
how a tensor is stored: `storage(name)`, a `Storage` or None, and gives `codes(name)`, a `Quantised` of arrays `[..., out, in]`.
Our own quantised folders hold parameters `NAME` as codes, with `NAME_scale` and, where there are some, `NAME_offset`.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ms_omni.config import CONFIG_FILE, read_config_json
from ms_omni.errors import InputError
from ms_omni.hub import resolve
from ms_omni.quantised import Quantised, Storage, dequantised

from .matching import file_root
from .names import DOWN, GATE, STACKED, UP, Source, slot, sources
from .published import PublishedReader, dtype_of, layout_of
from .reader import CheckpointReader, Reader, check_finite, report
from .safetensors import DTYPES, Entry
from .storage import METHOD, OFFSET, SCALE, STACKS, matrix_shape

BITS = {"I8": 8, "U8": 4}
SCALES = ("BF16", "F16", "F32")
DEQUANTISED = "BF16"  # what codes become


def reader_of(folder: str | Path) -> Callable[..., CheckpointReader]:
    """What reads a folder, by its settings alone. Raises `CheckpointError` for weights that are quantised by a method that nobody reads."""
    folder = Path(folder)
    content = read_config_json(folder)[0] if (folder / CONFIG_FILE).is_file() else {}
    found = content.get("quantization_config")
    if isinstance(found, Mapping) and found.get("quant_method") == METHOD:
        return QuantisedReader
    layout = layout_of(folder, content)
    return CheckpointReader if layout is None else partial(PublishedReader, layout=layout, dtype=dtype_of(content))


def open_checkpoint(
    folder: str | Path, variant: str | None = None, renames: dict[str, str] | None = None
) -> CheckpointReader:
    """The reader of a folder; see `CheckpointReader` for the arguments and for what is raised, and `reader_of`."""
    folder = resolve(folder)
    return reader_of(folder)(folder, variant, renames)


class QuantisedReader(CheckpointReader):
    """Shows the matrices that the codes stand for, as float32; see above.

    Raises CheckpointError, beside what a `CheckpointReader` does, with all codes that have no scales, and all scales and offsets of
    another shape or dtype.
    """

    def __init__(self, folder: str | Path, variant: str | None = None, renames: dict[str, str] | None = None):
        super().__init__(folder, variant, renames)
        self.tensors, self.storages, problems = self.entries, {}, []
        self.entries = {}
        taken = {name + end for name, entry in self.tensors.items() if entry.dtype in BITS for end in (SCALE, OFFSET)}
        for name, entry in self.tensors.items():
            if entry.dtype in BITS:
                shape = self._check(name, problems)
                self.entries[name] = dataclasses.replace(entry, dtype="F32", shape=matrix_shape(name, shape))
            elif name not in taken:
                self.entries[name] = entry
        if problems:
            raise report(problems, f"{self.folder} is damaged or incomplete")

    def _check(self, name: str, problems: list[str]) -> tuple[int, ...]:
        """Notes how a matrix is stored, and what is wrong with it; its shape `[..., out, in]`."""
        entry, scales, offsets = self.tensors[name], self.tensors.get(name + SCALE), self.tensors.get(name + OFFSET)
        bits = BITS[entry.dtype]
        shape = (*entry.shape[:-1], entry.shape[-1] * 8 // bits) if entry.shape else (0,)
        if scales is None:
            problems.append(f"{name}: is stored in {bits} bits, but there is no {name}{SCALE}")
            return shape
        others = [part for part in (scales, offsets) if part is not None]
        wrong = [part for part in others if part.dtype not in SCALES or part.shape != scales.shape]
        groups = scales.shape[-1] if scales.shape and scales.shape[:-1] == shape[:-1] else 0
        if wrong or not groups or shape[-1] % groups:
            found = ", ".join(f"{part.name} {part.dtype} {list(part.shape)}" for part in others)
            problems.append(
                f"{name}: is {entry.dtype} {list(entry.shape)} with {found}; expected {list(shape[:-1])} and a number of "
                f"groups that divides {shape[-1]}, in {', '.join(SCALES)}"
            )
            return shape
        storage = Storage(
            bits,
            None if groups == 1 else shape[-1] // groups,
            DTYPES[scales.dtype].name,
            None if offsets is None else DTYPES[offsets.dtype].name,
        )
        try:
            storage.shapes(shape)
        except InputError as error:
            problems.append(f"{name}: {error}")
        self.storages[name] = storage
        return shape

    def storage(self, name: str) -> Storage | None:
        return self.storages.get(name)

    def codes(self, name: str) -> Quantised:
        return Quantised(*(self._tensor(name + end) if name + end in self.tensors else None for end in ("", SCALE, OFFSET)))

    def _tensor(self, name: str) -> np.ndarray:
        return self.view(self.tensors[name])

    def array(self, name: str) -> np.ndarray:
        """The numbers that the codes stand for, or the tensor in the file."""
        if name not in self.storages:
            return self._tensor(name)
        matrix = dequantised(self.codes(name))
        return np.swapaxes(matrix, -1, -2) if name.endswith(STACKS) else matrix

    def release(self, name: str) -> None:
        for stored in (name, name + SCALE, name + OFFSET) if name in self.storages else (name,):
            if stored in self.tensors:
                self.drop(self.tensors[stored])

    @property
    def stored(self) -> dict[str, Entry]:
        return self.tensors


def as_published(reader: Reader) -> Reader:
    """`reader` itself where its names are the published ones, else a view of it under those."""
    return AsPublished(reader) if reader.is_converted else reader


class AsPublished(Reader):
    """A reader of a folder in our parameter names, under the published names; each tensor in its original dtype and shape.

    Matrices that are stored as codes are bfloat16 here, one expert at a time.
    """

    def __init__(self, reader: Any):
        self.reader, self.folder = reader, reader.folder
        root = file_root(reader.entries)
        dtypes, shapes = {}, {}
        for metadata in reader.metadata.values():
            dtypes.update(json.loads(metadata.get("source_dtypes", "{}")))
            shapes.update(json.loads(metadata.get("source_shapes", "{}")))
        self.entries: dict[str, Entry] = {}
        self.parts: dict[str, tuple[str, Source]] = {}
        for name, entry in reader.entries.items():
            coded = self.reader.storage(name) is not None
            for part in sources(root + name, entry.shape):
                stored = part.name.removeprefix(root)
                part = replace(part, shape=tuple(shapes.get(stored, part.shape)))
                dtype = DEQUANTISED if coded else dtypes.get(stored, entry.dtype)
                size = int(np.prod(part.shape, dtype=np.int64)) * DTYPES[dtype].itemsize
                self.entries[stored] = Entry(stored, dtype, part.shape, entry.file, 0, size)
                self.parts[stored] = name, part

    def array(self, name: str) -> np.ndarray:
        """The tensor as it was published."""
        parameter, part = self.parts[name]
        if self.reader.storage(parameter) is not None:
            matrix = _dequantised(self.reader.codes(parameter), part).astype(ml_dtypes.bfloat16)
            check_finite(matrix, f"{self.folder}: {name}", every=True)
            return matrix
        return slot(part, self.reader.array(parameter)).astype(DTYPES[self.entries[name].dtype], copy=False)

    def release(self, name: str) -> None:
        """Drop the file's pages of the parameter that the tensor is a part of."""
        self.reader.release(self.parts[name][0])


def _dequantised(stored: Quantised, part: Source) -> np.ndarray:
    """One published matrix of a parameter that is stored as codes `[..., out, in]`."""
    if part.transform not in STACKED:
        return dequantised(stored)
    inner = stored.shape[1] // 2
    rows = {GATE: slice(inner), UP: slice(inner, None), DOWN: slice(None)}[part.transform]
    return dequantised(Quantised(*(None if array is None else array[part.expert][rows] for array in stored)))
