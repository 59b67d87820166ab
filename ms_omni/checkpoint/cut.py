"""Writing a checkpoint cut for several ranks (see `rank_index.py`); which rank holds what is the caller's plan."""

import json
import os
from collections import Counter
from pathlib import Path

import numpy as np

from ms_omni.errors import CheckpointError
from ms_omni.folders import new_folder
from ms_omni.hub import resolve

from .convert import ConvertReport, copy_other_files, to_parameters
from .header import DTYPES
from .load import progress_bar, read_slice
from .names import IGNORE, place, sources
from .plan import HEAD, file_root, plan_loading
from .rank_files import RANK_MARKER
from .rank_index import RankIndex, geometry, read_rank_index
from .reader import CheckpointReader
from .writer import Pending, write_file


class Cuttable:
    """A checkpoint folder that can be cut: `shapes` of its parameters by full name, and what is left over.

    tied: the output head is the embedding, so that a stored head is nobody's parameter.
    """

    def __init__(self, folder, tied=False):
        self.folder = resolve(folder)
        if read_rank_index(self.folder) is not None:
            raise CheckpointError(f"{folder} is cut for ranks already; convert it back first, without --shards.")
        self.reader = CheckpointReader(self.folder)
        self.root = file_root(self.reader.entries)
        self.shapes = {self.root + name: shape for name, shape in parameter_shapes(self.reader).items()}
        self.whole = [name for name in self.shapes if _is_constant(name) or (tied and name == HEAD)]
        for name in self.whole:
            del self.shapes[name]

    def write(self, target, parts, dtype, *, plan, options, progress=True) -> ConvertReport:
        """Writes the new folder `target`. parts: per rank `{full name: part}`; dtype: safetensors' name."""
        if Path(os.path.realpath(target)).is_relative_to(self.folder.resolve()):
            raise CheckpointError(f"{target} lies inside {self.folder}; choose a folder beside it.")
        fills = {fill.parameter: fill for fill in plan_loading(self.shapes, self.reader)[0]}
        stored, shapes = _origin(self.reader)
        usual = Counter(stored.values()).most_common(1)[0][0]
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
            all(dtype in ("F32", kind) for kind in stored.values()),
        )
        files = [[self._pending(fills[name], part, dtype) for name, part in own.items()] for own in parts]
        files[0] += [self._as_it_is(name) for name in self.whole]
        total = sum(tensor.nbytes for group in files for tensor in group)
        metadata = {"format": RANK_MARKER, "index": index.fingerprint()}
        with new_folder(target, total) as folder, progress_bar(total, f"cutting for {len(parts)} ranks", progress) as bar:
            for rank, group in enumerate(files):
                write_file(folder / index.file(rank), group, {**metadata, "rank": str(rank)}, bar.update)
            index.write(folder)
            copy_other_files(self.folder, folder)
        names = tuple(index.file(rank) for rank in range(len(parts)))
        return ConvertReport(f"{plan} for {len(parts)} ranks", sum(map(len, files)), total, names)

    def _pending(self, fill, part, dtype):
        return Pending(fill.parameter, dtype, part.local_shape, lambda: read_slice(self.reader, fill, DTYPES[dtype], part))

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
    return {tensor.name: tensor.shape for tensor in to_parameters(reader)[0]}


def _origin(reader):
    """dtype of every published tensor, and the shapes that parameters do not show, both by stored name."""
    if not reader.is_converted:
        shapes = {name: list(entry.shape) for name, entry in reader.entries.items() if len(entry.shape) == 5}
        return {name: entry.dtype for name, entry in reader.entries.items()}, shapes
    root, dtypes, shapes = file_root(reader.entries), {}, {}
    for metadata in reader.metadata.values():
        dtypes.update(json.loads(metadata.get("source_dtypes", "{}")))
        shapes.update(json.loads(metadata.get("source_shapes", "{}")))
    stored = {}
    for name, entry in reader.entries.items():
        for part in sources(root + name, entry.shape):
            published = part.name.removeprefix(root)
            stored[published] = dtypes.get(published, entry.dtype)
    return stored, shapes
