"""Any checkpoint read under the published names: parameters taken apart into the tensors that they came from."""

import json
from dataclasses import replace

import ml_dtypes
import numpy as np

from ms_omni.quantised import Quantised, dequantised

from .header import DTYPES, Entry
from .names import DOWN, GATE, STACKED, UP, Source, slot, sources
from .plan import file_root
from .reader import check_finite

DEQUANTISED = "BF16"  # what codes become


def as_published(reader):
    """`reader` itself where its names are the published ones, else a view of it under those."""
    return AsPublished(reader) if reader.is_converted else reader


class AsPublished:
    """A reader of a folder in our parameter names, under the published names; each tensor in its original dtype and shape.

    Matrices that are stored as codes are bfloat16 here, one expert at a time.
    """

    is_converted = False

    def __init__(self, reader):
        self.reader, self.folder, self.metadata = reader, reader.folder, {}
        root = file_root(reader.entries)
        dtypes, shapes = {}, {}
        for metadata in reader.metadata.values():
            dtypes.update(json.loads(metadata.get("source_dtypes", "{}")))
            shapes.update(json.loads(metadata.get("source_shapes", "{}")))
        self.entries: dict[str, Entry] = {}
        self.parts: dict[str, tuple[str, Source]] = {}
        for name, entry in reader.entries.items():
            coded = self._storage(name) is not None
            for part in sources(root + name, entry.shape):
                stored = part.name.removeprefix(root)
                part = replace(part, shape=tuple(shapes.get(stored, part.shape)))
                dtype = DEQUANTISED if coded else dtypes.get(stored, entry.dtype)
                size = int(np.prod(part.shape, dtype=np.int64)) * DTYPES[dtype].itemsize
                self.entries[stored] = Entry(stored, dtype, part.shape, entry.file, 0, size)
                self.parts[stored] = name, part

    def storage(self, name: str) -> None:
        """Codes are not handed on under these names."""
        return None

    def array(self, name: str) -> np.ndarray:
        """The tensor as it was published."""
        parameter, part = self.parts[name]
        if self._storage(parameter) is not None:
            matrix = _dequantised(self.reader.codes(parameter), part).astype(ml_dtypes.bfloat16)
            check_finite(matrix, f"{self.folder}: {name}", every=True)
            return matrix
        return slot(part, self.reader.array(parameter)).astype(DTYPES[self.entries[name].dtype], copy=False)

    def release(self, name: str) -> None:
        """Drop the file's pages of the parameter that the tensor is a part of."""
        self.reader.release(self.parts[name][0])

    def _storage(self, name):
        return self.reader.storage(name)


def _dequantised(stored: Quantised, part: Source) -> np.ndarray:
    """One published matrix of a parameter that is stored as codes `[..., out, in]`."""
    if part.transform not in STACKED:
        return dequantised(stored)
    inner = stored.shape[1] // 2
    rows = {GATE: slice(inner), UP: slice(inner, None), DOWN: slice(None)}[part.transform]
    return dequantised(Quantised(*(None if array is None else array[part.expert][rows] for array in stored)))
