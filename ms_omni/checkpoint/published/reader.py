"""A published quantised checkpoint as the tensors of the one that it was made from."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ms_omni.notices import caller_level, warn_once
from ms_omni.quantised import Quantised, Storage

from ..header import DTYPES, Entry
from ..reader import CheckpointReader, report
from .matrix import Layout, Matrix, Misfit
from .mlx import Mlx, axes, published_name
from .modelslim import FILES, ModelSlim

FUSED = re.compile(r"(.*\.experts\.(?:gate_up_proj|down_proj))(?:_(\w+))?")  # a parameter of its own in transformers 5
STACKS = (  # matrices of all experts in one tensor, and which rows of each are whose
    (re.compile(r"(.*\.mlp)\.switch_mlp\.(gate|up|down)_proj"), None),
    (re.compile(r"(.*\.mlp)\.experts\.(gate_up|down)_proj"), ("gate", "up")),
)
ROUNDED = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


@dataclass(frozen=True)
class Part:
    """One logical tensor: the module that holds it, or the stored tensor itself. index: of a stack; rows: of a matrix."""

    module: str | None
    stored: Entry | None = None
    index: int | None = None
    rows: tuple[int, int] | None = None


class PublishedReader(CheckpointReader):
    """Shows quantised matrices as `NAME.weight`, of the shape and dtype that they dequantise to; see `open.py`.

    A warning says once which are kept as they are and which are dequantised.

    layout: how they are written. dtype: of the model, by its configuration: what matrices are dequantised to; those that are kept as
    codes are float32, the numbers that the codes stand for.

    Raises CheckpointError, beside what a `CheckpointReader` does, that lists every matrix whose tensors do not belong together or
    contradict the configuration.
    """

    def __init__(self, folder: str | Path, variant=None, renames=None, *, layout: Layout, dtype: str | None = None):
        self.layout = layout
        super().__init__(folder, variant, renames)
        self.tensors, self.entries = self.entries, {}
        self.dropped: list[str] = []
        self._dtype = ROUNDED.get(str(dtype).rsplit(".", 1)[-1])
        self._parts: dict[str, Part] = {}
        self._modules: dict[str, dict[str, Entry]] = {}
        self._matrices: dict[str, Matrix] = {}
        self._turned: dict[str, tuple[int, ...]] = {}
        problems: list[str] = []
        self._turns = isinstance(layout, Mlx) and layout.wrote(self.tensors, self.metadata)
        for module, found in _modules(self.tensors, self._turns).items():
            self._add(module, found, problems)
        if not problems and not self._matrices:
            problems.append("none of its matrices is quantised, although its configuration says so")
        if problems:
            raise report(problems, f"{self.folder} does not hold what {layout.title} writes")
        warn_once(self.summary(), stacklevel=caller_level())

    def _names(self, variant):
        """msModelSlim calls its files otherwise."""
        single, index = super()._names(variant)
        if isinstance(self.layout, ModelSlim):
            own = sorted(path.name for path in self.folder.glob(FILES))
            indices = sorted(path.name for path in self.folder.glob(f"{FILES}.index.json"))
            return own[0] if own else single, indices[0] if indices else index
        return single, index

    def _add(self, module, found, problems):
        stack = _stack(module, found.get("weight") or next(iter(found.values())))
        parts = {word: _of_one(entry) for word, entry in found.items()} if stack else found
        try:
            if self.layout.holds(parts):
                self._matrices[module] = matrix = self.layout.matrix(module, parts)
                if len(matrix.shape) != 2:
                    raise Misfit(f"is a matrix {list(matrix.shape)}, expected two axes")
                used = self.layout.uses(parts)
                self._modules[module] = {word: found[word] for word in used}
                nbytes = sum(found[word].nbytes for word in used)
                kind = "F32" if matrix.storage is not None else self._dtype or matrix.dtype
                self._enter(Part(module), f"{module}.weight", stack, kind, matrix.shape, nbytes)
                found = {word: entry for word, entry in found.items() if word not in used}
                self.dropped += [found[word].name for word in self.layout.dropped if word in found]
                found = {word: entry for word, entry in found.items() if word not in self.layout.dropped}
        except Misfit as error:
            problems.append(f"{module}: {error}")
            return
        except (TypeError, ValueError, AttributeError, KeyError, re.error) as error:  # fields of a type that nobody writes
            problems.append(f"{module}: the configuration says something that cannot be understood ({error})")
            return
        for word, entry in found.items():
            name = f"{module}.{word}" if module else word
            order = axes(name) if self._turns else None
            shape = entry.shape
            if order is not None and len(order) == len(shape):
                self._turned[name] = order
                shape = tuple(shape[axis] for axis in order)
            if stack and word == "weight":
                self._enter(Part(None, entry), name, stack, entry.dtype, shape[1:], entry.nbytes)
            else:
                self._enter(Part(None, entry), name, None, entry.dtype, shape, entry.nbytes)

    def _enter(self, part: Part, name, stack, dtype, shape, nbytes):
        for logical, index, rows in _slices(name, stack, shape) if stack else ((name, None, None),):
            shape_here = shape if rows is None else (rows[1] - rows[0], *shape[1:])
            self._parts[logical] = Part(part.module, part.stored, index, rows)
            share = nbytes if index is None else nbytes // stack[0] * shape_here[0] // shape[0]
            self.entries[logical] = Entry(logical, dtype, shape_here, "", 0, share)

    def array(self, name: str) -> np.ndarray:
        """The tensor, dequantised where it is stored as codes. Raises CheckpointError for values that contradict the configuration or
        are not finite.
        """
        part, dtype = self._parts[name], self.entries[name].dtype
        if part.module is not None:
            return self._decoded(name, Matrix.array)[_range(part.rows)].astype(DTYPES[dtype], copy=False)
        array = self.view(part.stored)
        array = array if part.index is None else array[part.index]
        return array[_range(part.rows)] if name not in self._turned else array.transpose(self._turned[name])

    def storage(self, name: str) -> Storage | None:
        """How `codes` gives the tensor; None: it is no matrix of codes, or is dequantised."""
        part = self._parts[name]
        return None if part.module is None else self._matrices[part.module].storage

    def codes(self, name: str) -> Quantised:
        """The matrix in our form. Raises CheckpointError, see `array`."""
        stored, rows = self._decoded(name, Matrix.codes), _range(self._parts[name].rows)
        return Quantised(*(None if array is None else array[rows] for array in stored))

    def _decoded(self, name, how):
        part = self._parts[name]
        arrays = {word: self.view(entry) for word, entry in self._modules[part.module].items()}
        if part.index is not None:
            arrays = {word: array[part.index] for word, array in arrays.items()}
        try:
            return how(self._matrices[part.module], arrays)
        except (Misfit, KeyError, IndexError, ValueError) as error:  # the last ones: of shapes that no tool writes
            raise report(
                [f"{part.module}: {error}"], f"{self.folder} does not hold what {self.layout.title} writes"
            ) from None

    def release(self, name: str) -> None:
        part = self._parts[name]
        for entry in [part.stored] if part.module is None else self._modules[part.module].values():
            self.drop(entry)

    @property
    def stored(self) -> dict[str, Entry]:
        return self.tensors

    def summary(self) -> str:
        """What is kept as it is and what is dequantised, and why: a sentence for whoever loads it."""
        kept, widened = Counter(), Counter()
        for name, part in self._parts.items():
            if part.module is not None:
                matrix = self._matrices[part.module]
                if matrix.storage is not None:
                    kept[f"int{matrix.storage.bits}"] += 1
                else:
                    widened[f"{DTYPES[self.entries[name].dtype]} ({matrix.why})"] += 1
        said = [f"{count:,} are kept as {kind}" for kind, count in sorted(kept.items())]
        said += [f"{count:,} are dequantised to {kind}" for kind, count in sorted(widened.items())]
        total = kept.total() + widened.total()
        text = f"{self.folder}: of {total:,} matrices that {self.layout.title} quantised, {', '.join(said)}"
        if self.dropped:
            text += f"; {len(self.dropped):,} tensors that quantise activations are not used, these stay floating point"
        return text


def _range(rows: tuple[int, int] | None) -> slice:
    return slice(None) if rows is None else slice(*rows)


def _modules(entries: dict[str, Entry], renamed: bool) -> dict[str, dict[str, Entry]]:
    """The stored tensors by module and last word of their names."""
    modules: dict[str, dict[str, Entry]] = {}
    for name, entry in entries.items():
        name = published_name(name) if renamed else name
        fused = FUSED.fullmatch(name)
        if fused:
            module, word = fused[1], f"weight_{fused[2]}" if fused[2] else "weight"
        else:
            module, _, word = name.rpartition(".")
        modules.setdefault(module, {})[word] = entry
    return modules


def _stack(module, entry) -> tuple[int, str, tuple[str, ...]] | None:
    """(experts, what stands before their numbers, whose rows) of a stack of experts, None for any other module."""
    for pattern, halves in STACKS:
        hit = pattern.fullmatch(module)
        if hit and len(entry.shape) == 3:
            return entry.shape[0], f"{hit[1]}.experts", halves if hit[2] == "gate_up" else (hit[2],)
    return None


def _of_one(entry: Entry) -> Entry:
    """The header of one expert's slice."""
    return Entry(entry.name, entry.dtype, entry.shape[1:], entry.file, entry.begin, entry.end)


def _slices(name, stack, shape) -> Iterator[tuple[str, int, tuple[int, int]]]:
    """(logical name, index in the stack, rows) of each expert's matrices."""
    experts, prefix, owners = stack
    rows = shape[0] // len(owners)
    for expert in range(experts):
        for place, owner in enumerate(owners):
            yield f"{prefix}.{expert}.{owner}_proj.weight", expert, (place * rows, (place + 1) * rows)
