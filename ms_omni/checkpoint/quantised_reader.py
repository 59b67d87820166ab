"""Our own quantised folders: parameters `NAME` as codes, with `NAME_scale` and, where there are some, `NAME_offset`."""

import dataclasses
from pathlib import Path

import numpy as np

from ms_omni.errors import InputError
from ms_omni.quantised import Quantised, Storage, dequantised

from .header import DTYPES, Entry
from .reader import CheckpointReader, report
from .storage import OFFSET, SCALE, STACKS, matrix_shape

BITS = {"I8": 8, "U8": 4}
SCALES = ("BF16", "F16", "F32")


class QuantisedReader(CheckpointReader):
    """Shows the matrices that the codes stand for, as float32; see `open.py`.

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

    def _check(self, name, problems):
        """Notes how a matrix is stored, and what is wrong with it; its shape `[..., out, in]`."""
        entry, scales, offsets = (self.tensors.get(name + end) for end in ("", SCALE, OFFSET))
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
            *(None if part is None else DTYPES[part.dtype].name for part in (scales, offsets)),
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
