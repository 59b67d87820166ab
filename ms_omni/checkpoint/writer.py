"""Writing sharded safetensors one tensor at a time."""

import json
import re
import secrets
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .header import DTYPES
from .reader import INDEX_FILE, SINGLE_FILE

SHARD_BYTES = 5_000_000_000
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Pending:
    """A tensor to be written: `read()` is called when its turn comes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * DTYPES[self.dtype].itemsize


def dtype_name(dtype: np.dtype) -> str:
    """The safetensors name of a numpy dtype."""
    return _NAMES[np.dtype(dtype)]


def natural(name: str) -> list:
    """Sort key that puts layer 2 before layer 10."""
    return [int(piece) if piece.isdigit() else piece for piece in re.split(r"(\d+)", name)]


def write_shards(
    folder: Path,
    tensors: list[Pending],
    metadata: dict[str, str],
    *,
    shard_bytes: int = SHARD_BYTES,
    shards: int | None = None,
    written: Callable[[int], None] = lambda nbytes: None,
    taken: Container[str] = (),
) -> list[str]:
    """Write the tensors in natural order of their names and return the file names.

    Args:
        folder: an existing folder.
        metadata: the header's metadata, in every shard.
        shard_bytes: a shard is closed before it would exceed this, unless `shards` asks for that many of even size.
        written: called with the bytes of each tensor once it is written.
        taken: names of shards that stay valid until the index says otherwise; new ones get other names.
    """
    tensors = sorted(tensors, key=lambda tensor: natural(tensor.name))
    total = sum(tensor.nbytes for tensor in tensors)
    groups = _split_by_size(tensors, shard_bytes) if shards is None else _split_evenly(tensors, shards, total)
    files = [SINGLE_FILE] if len(groups) == 1 else _shard_names(len(groups), "model")
    if len(files) > 1 and any(file in taken for file in files):
        files = _shard_names(len(groups), f"model-{secrets.token_hex(3)}")
    for file, group in zip(files, groups):
        write_file(folder / file, group, metadata, written)
    if len(files) > 1:
        table = {tensor.name: file for file, group in zip(files, groups) for tensor in group}
        content = {"metadata": {"total_size": total}, "weight_map": dict(sorted(table.items()))}
        (folder / INDEX_FILE).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return files


def _shard_names(count: int, stem: str) -> list[str]:
    return [f"{stem}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def _split_by_size(tensors, limit) -> list[list[Pending]]:
    groups, filled = [[]], 0
    for tensor in tensors:
        if groups[-1] and filled + tensor.nbytes > limit:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += tensor.nbytes
    return groups


def _split_evenly(tensors, count, total) -> list[list[Pending]]:
    groups, start = [[] for _ in range(count)], 0
    for tensor in tensors:
        groups[min(start * count // max(total, 1), count - 1)].append(tensor)
        start += tensor.nbytes
    return [group for group in groups if group]


def write_file(path, group, metadata, written):
    """One file of the tensors `group`, wider dtypes first, so that every tensor is aligned in it; made in the order of `group`."""
    order, group = group, sorted(group, key=lambda tensor: -DTYPES[tensor.dtype].itemsize)
    header, position = {"__metadata__": metadata}, 0
    for tensor in group:
        end = position + tensor.nbytes
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [position, end]}
        position = end
    raw = json.dumps(header, separators=(",", ":")).encode("utf-8")
    raw += b" " * (-len(raw) % 8)
    with open(path, "wb") as handle:
        handle.write(len(raw).to_bytes(8, "little") + raw)
        for tensor in order:  # codes and their scales, which have other places in the file, are made together
            array = np.ascontiguousarray(tensor.read())
            assert array.shape == tuple(tensor.shape) and array.dtype == DTYPES[tensor.dtype], tensor.name
            handle.seek(8 + len(raw) + header[tensor.name]["data_offsets"][0])
            handle.write(array.reshape(-1).view(np.uint8).data)
            written(tensor.nbytes)
