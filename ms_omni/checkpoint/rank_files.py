"""Reading a checkpoint that is cut for several ranks: a rank maps its file, or all files are put together again."""

import functools
import json
import mmap
import time
from pathlib import Path

import numpy as np

from ms_omni.errors import CheckpointError
from ms_omni.locking import exclusive

from .header import DTYPES, Entry, read_header
from .load import LoadReport, dtype_of, numpy_dtype
from .names import sources
from .rank_index import RankIndex, geometry
from .reader import MARKER, report

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


def load_rank_file(cell, folder, index: RankIndex, rank: int, slices: dict, *, prefix: str = "", dtype=None) -> LoadReport:
    """Gives every parameter of `cell` its part of the rank's file; no copy where the file has the dtype.

    slices: `{full name: part}` of this rank, with `shape` and `local_shape`.
    Raises CheckpointError, before anything changes, for files of another model or another plan.
    """
    from mindspore import Tensor

    started = time.monotonic()
    parameters = {prefix + name: parameter for name, parameter in cell.parameters_and_names()}
    known = geometry({name: slices[name].shape for name in parameters})
    other = sorted(part for part, digest in known.items() if index.geometry.get(part) != digest)
    if other:
        raise CheckpointError(
            f"{folder}: its config.json describes another {' and '.join(other)} than the rank files hold. "
            "Convert the checkpoint again."
        )
    file = RankFile(folder, index, rank)
    problems = [
        f"{name}: the file has {list(file.entries[name].shape) if name in file.entries else 'none'}, rank {rank} "
        f"holds {list(slices[name].local_shape)}"
        for name in parameters
        if name not in file.entries or file.entries[name].shape != slices[name].local_shape
    ]
    if problems:
        raise report(problems, f"{file.path} does not fit the plan {index.plan!r}")
    nbytes = elements = 0
    for name, parameter in parameters.items():
        array = file.array(name)
        wanted = numpy_dtype(dtype_of(parameter, dtype))
        array = array if array.dtype == wanted else array.astype(wanted)
        with exclusive:
            if parameter.dtype != dtype_of(parameter, dtype):
                parameter.set_dtype(dtype)
            parameter.set_data(Tensor.from_numpy(array), slice_shape=True)
        elements, nbytes = elements + array.size, nbytes + array.nbytes
    return LoadReport(len(parameters), elements, nbytes, time.monotonic() - started, ())


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
        self.entries = {name: Entry(name, index.dtype, tuple(part.shape), "", 0, 0) for name, part in self.parts[0].items()}
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
        full = self.index.root + name
        if full in self.index.whole:
            return self.files[0].array(full)
        whole = np.empty(self.entries[name].shape, DTYPES[self.index.dtype])
        for file, own in zip(self.files, self.parts):
            own[name].put(whole, file.array(full))
        return whole

    def storage(self, name: str) -> None:
        """None: none of them is codes."""

    def release(self, name: str) -> None:
        """Nothing to do: pages of mapped files are the system's to drop."""
