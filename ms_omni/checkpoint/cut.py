"""Writing a checkpoint cut for several ranks (see `rank_index.py`); which rank holds what is the caller's plan."""

import dataclasses
from collections import Counter
from collections.abc import Callable

import numpy as np

from ms_omni.config import read_config_json
from ms_omni.errors import CheckpointError
from ms_omni.folders import new_folder
from ms_omni.hub import resolve

from .as_published import DEQUANTISED, as_published
from .codes import arrays_of
from .convert import ConvertReport
from .header import DTYPES
from .load import progress_bar, read_slice
from .names import IGNORE, place, sources
from .open import open_checkpoint
from .other_files import copy_other_files, outside, write_config
from .parameters import coded, gather, notes_on, storage_in
from .plan import HEAD, file_root, plan_loading
from .prepare import Prepared, prepared
from .rank_files import RANK_MARKER
from .rank_index import RankIndex, geometry, read_rank_index
from .writer import Pending, write_file


class Cuttable:
    """A checkpoint folder that can be cut: `shapes` of its parameters by full name, and what is left over.

    tied: the output head is the embedding, so that a stored head is nobody's parameter. prepare: what is done to the weights on the
    way, see `prepare.py`.
    """

    def __init__(self, folder, tied=False, prepare: Callable[..., Prepared] = prepared):
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
    def arrays(self):
        """`{name: {name of an array: shape}}` of the parameters that are codes."""
        return {name: arrays_of(name, self.shapes[name], storage) for name, storage in self.storages.items()}

    def write(self, target, parts, dtype, *, plan, options, progress=True) -> ConvertReport:
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


def parameter_shapes(reader) -> dict:
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
