"""Reading a checkpoint that is cut for several ranks: a rank maps its file, or all files are put together again."""

import functools
import json
import mmap
import time
from pathlib import Path

import numpy as np

from ms_omni.errors import CheckpointError
from ms_omni.locking import exclusive
from ms_omni.quantised import Quantised, Storage, dequantised

from .codes import arrays_of, piece_of
from .header import DTYPES, Entry, read_header
from .load import LoadReport, dtype_of, numpy_dtype
from .names import sources
from .rank_index import RankIndex, geometry
from .reader import MARKER, report
from .storage import STACKS

RANK_MARKER = "ms_omni rank"


class RankFile:
    """The tensors of one rank's file, mapped: nothing is read before it is used, nothing is copied.

    Raises CheckpointError for a file that is missing, damaged, or another conversion's.
    """

    def __init__(self, folder: Path, index: RankIndex, rank: int):
        self.path = Path(folder) / index.file(rank)
        if not self.path.is_file():
            raise CheckpointError(f"{self.path} is missing; {folder} was cut for {index.ranks} ranks. Convert again.")
        problems = []
        entries, metadata = read_header(self.path, problems)
        if not problems and (metadata.get("format"), metadata.get("index")) != (RANK_MARKER, index.fingerprint()):
            problems.append(f"{self.path.name}: belongs to another conversion than the index")
        if problems:
            raise report(problems, f"{folder} is damaged or incomplete")
        self.entries = {entry.name: entry for entry in entries}
        with open(self.path, "rb") as handle:  # private pages: writing to a parameter must not reach the file
            self._map = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY)

    def array(self, name: str) -> np.ndarray:
        """The tensor, in the file's pages."""
        entry = self.entries[name]
        flat = np.frombuffer(self._map, np.uint8, entry.nbytes, entry.begin)
        return flat.view(DTYPES[entry.dtype]).reshape(entry.shape)


def load_rank_file(
    cell, folder, index: RankIndex, rank: int, shapes: dict, slices: dict, *, prefix: str = "", dtype=None
) -> LoadReport:
    """Gives every parameter of `cell` its part of the rank's file; no copy where the file has the dtype.

    shapes: of the model's parameters, whole and as they are computed with, by full name; slices: `{full name: part}` of this rank, see
    `held_shapes`. Raises CheckpointError, before anything changes, for files of another model or another plan.
    """
    from mindspore import Tensor

    started = time.monotonic()
    parameters = {prefix + name: parameter for name, parameter in cell.parameters_and_names()}
    known = geometry(shapes)
    other = sorted(part for part, digest in known.items() if index.geometry.get(part) != digest)
    if other:
        raise CheckpointError(
            f"{folder}: its config.json describes another {' and '.join(other)} than the rank files hold. "
            "Convert the checkpoint again."
        )
    file, held = RankFile(folder, index, rank), held_shapes(index, shapes, slices)
    problems = [
        f"{name}: the file has {list(file.entries[name].shape) if name in file.entries else 'none'}, rank {rank} "
        f"holds {list(held[name])}"
        for name in parameters
        if name not in file.entries or file.entries[name].shape != held[name]
    ]
    if problems:
        raise report(problems, f"{file.path} does not fit the plan {index.plan!r}")
    nbytes = elements = 0
    for name, parameter in parameters.items():
        array = file.array(name)
        if array.dtype.kind not in "iu":  # codes are nothing else
            wanted = numpy_dtype(dtype_of(parameter, dtype))
            array = array if array.dtype == wanted else array.astype(wanted)
        with exclusive:
            if parameter.dtype != dtype_of(parameter, dtype):
                parameter.set_dtype(dtype)
            parameter.set_data(Tensor.from_numpy(array), slice_shape=True)
        elements, nbytes = elements + array.size, nbytes + array.nbytes
    return LoadReport(len(parameters), elements, nbytes, time.monotonic() - started, ())


def held_shapes(index: RankIndex, shapes: dict, slices: dict) -> dict[str, tuple[int, ...]]:
    """Shapes of what a rank holds, by full name: of what is stored as codes those of its arrays.

    slices: parts with `local_shape`; of codes either parts of the matrix or, where a plan cuts arrays, of each array.
    """
    held = {name: part.local_shape for name, part in slices.items()}
    for name, kind in index.storages.items():
        if name in shapes and not slices[name].flat:
            held |= arrays_of(name, tuple(shapes[name]), Storage(**kind), slices[name])
    return held


class AssembledReader:
    """All rank files as one checkpoint in our names: what `CheckpointReader` is for a converted folder.

    parts: per rank `{full name: part}`, with `shape` and `put(whole, local)`, which writes what the rank holds.
    Raises CheckpointError for files that are missing, damaged, or have lost bits of the source.
    """

    is_converted = True

    def __init__(self, folder, index: RankIndex, parts: list):
        if not index.exact:
            raise CheckpointError(
                f"{folder} was rounded to {index.dtype} when it was cut, so the checkpoint that it was made "
                "from cannot be had back from it"
            )
        self.folder, self.index = Path(folder), index
        self.files = [RankFile(self.folder, index, rank) for rank in range(index.ranks)]
        self.parts = [{name.removeprefix(index.root): part for name, part in own.items()} for own in parts]
        self.storages = {name.removeprefix(index.root): Storage(**kind) for name, kind in index.storages.items()}
        shapes = {name.removeprefix(index.root): tuple(shape) for name, shape in index.parameters.items()}
        self.entries = {
            name: Entry(name, "F32" if name in self.storages else index.dtype, shape, "", 0, 0)
            for name, shape in shapes.items()
        }
        for full in index.whole:
            entry, name = self.files[0].entries[full], full.removeprefix(index.root)
            self.entries[name] = Entry(name, entry.dtype, entry.shape, "", 0, 0)
        published = [part.name for name, entry in self.entries.items() for part in sources(index.root + name, entry.shape)]
        dtypes = {
            name: index.stored.get(name, index.usual) for name in (name.removeprefix(index.root) for name in published)
        }
        self.metadata = {
            "": {"format": MARKER, "source_dtypes": json.dumps(dtypes), "source_shapes": json.dumps(index.shapes)}
        }
        self.array = functools.lru_cache(maxsize=2)(self._assemble)  # the parts of two stacks of experts take turns

    def _assemble(self, name: str) -> np.ndarray:
        if name in self.storages:
            matrix = dequantised(self.codes(name))
            return np.swapaxes(matrix, -1, -2) if name.endswith(STACKS) else matrix
        full = self.index.root + name
        if full in self.index.whole:
            return self.files[0].array(full)
        whole = np.empty(self.entries[name].shape, DTYPES[self.index.dtype])
        for file, own in zip(self.files, self.parts):
            own[name].put(whole, file.array(full))
        return whole

    def storage(self, name: str) -> Storage | None:
        """How a parameter is stored if it is codes with scales."""
        return self.storages.get(name)

    def codes(self, name: str) -> Quantised:
        """The codes of all ranks behind one another."""
        storage, shape = self.storages[name], self.entries[name].shape
        found = []
        for stored, of_all in arrays_of(name, shape, storage).items():
            whole = np.empty(of_all, self.files[0].array(self.index.root + stored).dtype)
            for file, own in zip(self.files, self.parts):
                part = own[name]
                put = own[stored].put if part.flat else piece_of(name, shape, storage, part).put
                put(whole, file.array(self.index.root + stored))
            found.append(whole)
        return Quantised(*found)

    def release(self, name: str) -> None:
        """Nothing to do: pages of mapped files are the system's to drop."""
