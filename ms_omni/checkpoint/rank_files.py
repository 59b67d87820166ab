"""A checkpoint that is cut for several ranks: one file of weights per rank. Writing it, mapping a rank's file, putting all together.

config.json, ...                    as in the checkpoint that it was made from
ranks.index.json                    what `RankIndex` holds
rank-00001-of-00004.safetensors     this rank's part of every parameter, under our full names, in the dtype computed in

Which rank holds what is the caller's plan.
"""

import dataclasses
import functools
import hashlib
import json
import mmap
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from ms_omni.config import read_config_json
from ms_omni.errors import CheckpointError
from ms_omni.files import new_folder, read_text
from ms_omni.hub import resolve
from ms_omni.locking import exclusive
from ms_omni.quantised import Quantised, Storage, dequantised

from .convert import ConvertReport, Prepared, coded, copy_other_files, notes_on, outside, prepared, storage_in, write_config
from .load import LoadReport, dtype_of, numpy_dtype, progress_bar
from .matching import HEAD, file_root, gather, plan_loading
from .names import IGNORE, place, sources
from .open import DEQUANTISED, as_published, open_checkpoint
from .parameters import arrays_of, piece_of, read_slice
from .reader import MARKER, RANKS_INDEX, Reader, report
from .safetensors import DTYPES, Entry, Pending, read_header, write_file
from .storage import STACKS

FORMAT = "ms_omni ranks 1"
RANK_MARKER = "ms_omni rank"


@dataclass(frozen=True)
class RankIndex:
    """plan and options: how it was cut; ranks: for how many; dtype: of the files, safetensors' name; geometry: a digest of
    names and shapes per component; whole: names that rank 0's file holds as they are, nobody's parameters.

    For the way back: parameters: their shapes by full name; root: what stood before our names in the source ("" or
    "thinker."); stored: its dtypes by published name, `usual` where nothing is said; shapes: those that a parameter cannot
    show. exact: whether every bit of the source can be had back from the files' dtype, but for what it held or holds as codes.
    storages: the fields of `Storage` of those parameters that the files hold as codes, by full name.
    """

    plan: str
    options: dict
    ranks: int
    dtype: str
    geometry: dict
    whole: list
    parameters: dict
    root: str
    usual: str
    stored: dict
    shapes: dict
    exact: bool
    storages: dict = field(default_factory=dict)

    def file(self, rank: int) -> str:
        """The name of a rank's file."""
        return f"rank-{rank:05d}-of-{self.ranks:05d}.safetensors"

    def write(self, folder: Path) -> None:
        """Writes the index into `folder`."""
        content = {"format": FORMAT, **asdict(self)}
        (folder / RANKS_INDEX).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def fingerprint(self) -> str:
        """Tells indices apart; stands in every rank's file."""
        return hashlib.blake2b(json.dumps(asdict(self), sort_keys=True).encode(), digest_size=16).hexdigest()


def read_rank_index(folder: str | Path) -> RankIndex | None:
    """The index of a folder, or None where it has none. Raises CheckpointError for one that cannot be read."""
    path = Path(folder) / RANKS_INDEX
    if not path.is_file():
        return None
    try:
        content = json.loads(read_text(path))
        if content.pop("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT!r}")
        index = RankIndex(**content)
        for part in fields(index):
            kind: Any = part.type
            if not isinstance(getattr(index, part.name), kind):
                raise ValueError(f"{part.name} is no {kind.__name__}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise CheckpointError(f"{path} is not an index of rank files: {problem}. Convert again.") from None
    return index


def geometry(shapes: dict) -> dict:
    """A digest per component of `{full name: shape}`."""
    states = {}
    for name in sorted(shapes):
        state = states.setdefault(name.split(".", 1)[0], hashlib.blake2b(digest_size=8))
        state.update(f"{name} {list(shapes[name])}\n".encode())
    return {component: state.hexdigest() for component, state in states.items()}


class RankFile:
    """The tensors of one rank's file, mapped: nothing is read before it is used, nothing is copied.

    Raises CheckpointError for a file that is missing, damaged, or another conversion's.
    """

    def __init__(self, folder: str | Path, index: RankIndex, rank: int):
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
    cell: Any,
    folder: str | Path,
    index: RankIndex,
    rank: int,
    shapes: dict,
    slices: dict,
    *,
    prefix: str = "",
    dtype: Any = None,
) -> LoadReport:
    """Gives every parameter of `cell` its part of the rank's file; no copy where the file has the dtype.

    shapes: of the model's parameters, whole and as they are computed with, by full name; slices: `{full name: part}` of this rank, see
    `rank_shapes`. Raises CheckpointError, before anything changes, for files of another model or another plan.
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
    file, held = RankFile(folder, index, rank), rank_shapes(index, shapes, slices)
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


def rank_shapes(index: RankIndex, shapes: dict, slices: dict) -> dict[str, tuple[int, ...]]:
    """Shapes of what a rank holds, by full name: of what is stored as codes those of its arrays.

    slices: parts with `local_shape`; of codes either parts of the matrix or, where a plan cuts arrays, of each array.
    """
    held = {name: part.local_shape for name, part in slices.items()}
    for name, kind in index.storages.items():
        if name in shapes and not slices[name].flat:
            held |= arrays_of(name, tuple(shapes[name]), Storage(**kind), slices[name])
    return held


class AssembledReader(Reader):
    """All rank files as one checkpoint in our names: what `CheckpointReader` is for a converted folder.

    parts: per rank `{full name: part}`, with `shape` and `put(whole, local)`, which writes what the rank holds.
    Raises CheckpointError for files that are missing, damaged, or have lost bits of the source.
    """

    def __init__(self, folder: str | Path, index: RankIndex, parts: list):
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
        self._cached = functools.lru_cache(maxsize=2)(self._assemble)  # the parts of two stacks of experts take turns

    @property
    def is_converted(self) -> bool:
        return True

    def array(self, name: str) -> np.ndarray:
        """The parameter, put together."""
        return self._cached(name)

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


class Cuttable:
    """A checkpoint folder that can be cut: `shapes` of its parameters by full name, and what is left over.

    tied: the output head is the embedding, so that a stored head is nobody's parameter. prepare: what is done to the weights on the
    way, see `convert.prepared`.
    """

    def __init__(self, folder: str | Path, tied: bool = False, prepare: Callable[..., Prepared] = prepared):
        self.folder = resolve(folder)
        if read_rank_index(self.folder) is not None:
            raise CheckpointError(f"{folder} is cut for ranks already; convert it back first, without --shards.")
        self.work = prepare(open_checkpoint(self.folder))
        self.reader = self.work.reader
        self.root = file_root(self.reader.entries)
        self.shapes = {self.root + name: shape for name, shape in parameter_shapes(self.reader).items()}
        self.whole = [name for name in self.shapes if _is_constant(name) or (tied and name == HEAD)]
        for name in self.whole:
            del self.shapes[name]
        self.fills = {fill.parameter: fill for fill in plan_loading(self.shapes, self.reader)[0]}
        found = {name: storage_in(self.reader, fill) for name, fill in self.fills.items()}
        self.storages = {name: storage for name, storage in found.items() if storage is not None}

    @property
    def arrays(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """`{name: {name of an array: shape}}` of the parameters that are codes."""
        return {name: arrays_of(name, self.shapes[name], storage) for name, storage in self.storages.items()}

    def write(
        self, target: str | Path, parts: list[dict[str, Any]], dtype: str, *, plan: str, options: dict, progress: bool = True
    ) -> ConvertReport:
        """Writes the new folder `target`. parts: per rank `{full name: part}`; dtype: safetensors' name."""
        outside(target, self.folder)
        fills, storages = self.fills, self.storages
        stored, shapes = _origin(self.reader)
        usual = Counter(stored.values()).most_common(1)[0][0]
        made_of = {source for name in storages for source in _published_names(self.reader, fills[name], self.root)}
        index = RankIndex(
            plan,
            options,
            len(parts),
            dtype,
            geometry(self.shapes),
            self.whole,
            {name: list(shape) for name, shape in self.shapes.items()},
            self.root,
            usual,
            {name: kind for name, kind in stored.items() if kind != usual},
            shapes,
            all(dtype in ("F32", kind) for name, kind in stored.items() if name not in made_of),
            {name: dataclasses.asdict(storage) for name, storage in storages.items()},
        )
        files = [
            [tensor for name, fill in fills.items() for tensor in self._pending(fill, own, dtype, storages.get(name))]
            for own in parts
        ]
        files[0] += [self._as_it_is(name) for name in self.whole]
        total = sum(tensor.nbytes for group in files for tensor in group)
        metadata = {"format": RANK_MARKER, "index": index.fingerprint()}
        with new_folder(target, total) as folder, progress_bar(total, f"cutting for {len(parts)} ranks", progress) as bar:
            for rank, group in enumerate(files):
                write_file(folder / index.file(rank), group, {**metadata, "rank": str(rank)}, bar.update)
            index.write(folder)
            copy_other_files(self.folder, folder)
            write_config(folder, read_config_json(self.folder)[0], self.work.quantisation)
        names = tuple(index.file(rank) for rank in range(len(parts)))
        notes = (*self.work.notes, *notes_on(self.reader, fills.values()))
        return ConvertReport(f"{plan} for {len(parts)} ranks", sum(map(len, files)), total, names, notes)

    def _pending(self, fill, parts, dtype, storage):
        if storage is not None:
            return coded(self.reader, fill, storage, parts)
        part = parts[fill.parameter]
        return [Pending(fill.parameter, dtype, part.local_shape, lambda: read_slice(self.reader, fill, DTYPES[dtype], part))]

    def _as_it_is(self, name):
        entry = self.reader.entries[name.removeprefix(self.root)]
        return Pending(name, entry.dtype, entry.shape, lambda: np.array(self.reader.array(entry.name)))


def _is_constant(name):
    spot = place(name)
    return spot is not None and spot.transform == IGNORE


def parameter_shapes(reader: Reader) -> dict[str, tuple[int, ...]]:
    """`{name of the parameter: shape}` of a checkpoint in either form, names as stored."""
    if reader.is_converted:
        return {name: entry.shape for name, entry in reader.entries.items()}
    return {fill.parameter: fill.shape for fill in gather(reader)}


def _origin(reader):
    """dtype of every published tensor, and the shapes that parameters do not show, both by stored name."""
    source = as_published(reader)
    kinds = {name: DEQUANTISED if source.storage(name) else entry.dtype for name, entry in source.entries.items()}
    return kinds, {name: list(entry.shape) for name, entry in source.entries.items() if len(entry.shape) == 5}


def _published_names(reader, fill, root):
    """The published names, as stored, of what makes a parameter."""
    if not reader.is_converted:
        return [name for name, _ in fill.parts]
    return [part.name.removeprefix(root) for part in sources(fill.parameter, fill.shape)]
