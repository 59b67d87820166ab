"""Safetensors files: their headers, checked against the file's size, and writing them shard by shard.

A file is `<u64 header length> <JSON header> <data>`; the header gives each tensor's dtype, shape and byte range.
"""

import json
import math
import re
import secrets
from collections.abc import Callable, Container
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
WEIGHT_DTYPES = ("BF16", "F16", "F32")
SHARD_BYTES = 5_000_000_000
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: dtype as in the header, shape, byte range in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        return self.end - self.begin

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def read_header(path: Path, problems: list[str]) -> tuple[list[Entry], dict]:
    """The tensors and the metadata of one file; what is wrong with it goes to `problems` (then both are empty)."""
    try:
        entries, metadata = _parse_header(path)
    except ValueError as error:
        problems.append(f"{path.name}: {error}")
        return [], {}
    except OSError as error:
        problems.append(f"{path.name}: cannot be read ({error.strerror or error})")
        return [], {}
    return entries, metadata


def _parse_header(path: Path) -> tuple[list[Entry], dict]:
    size = path.stat().st_size
    with open(path, "rb") as handle:
        start = handle.read(8)
        if start == b"version ":
            raise ValueError("is a Git LFS pointer, not the weights; run `git lfs pull` in the checkpoint")
        if len(start) < 8:
            raise ValueError(f"is truncated: {size} bytes, not even a header")
        length = int.from_bytes(start, "little")
        if length > MAX_HEADER_BYTES:
            raise ValueError("is corrupt or no safetensors file (impossible header length)")
        if length > size - 8:
            raise ValueError(f"is truncated: {size} bytes, its header alone takes {length + 8}")
        raw = handle.read(length)
    try:
        table = json.loads(raw.decode("utf-8"), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its header is corrupt ({error})") from None
    if not isinstance(table, dict):
        raise ValueError("its header is corrupt (no JSON object)")
    metadata = table.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict):
        raise ValueError("its header is corrupt (metadata is no JSON object)")
    entries = [_parse_entry(name, fields, path.name, 8 + length) for name, fields in table.items()]
    _check_ranges(entries, 8 + length, size)
    return entries, metadata


def _without_repeats(pairs):
    out = dict(pairs)
    if len(out) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError("repeated name " + next(name for name in names if names.count(name) > 1))
    return out


def _parse_entry(name, fields, file, base) -> Entry:
    try:
        dtype, shape, (begin, end) = fields["dtype"], tuple(fields["shape"]), fields["data_offsets"]
        whole = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"its header is corrupt (entry of {name})") from None
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"{name} has dtype {dtype!r:.60}, expected one of {', '.join(WEIGHT_DTYPES)}")
    if not whole or end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
        raise ValueError(f"its header is corrupt ({name}: {dtype} {list(shape)} does not take bytes {begin} to {end})")
    return Entry(name, dtype, shape, file, base + begin, base + end)


def _check_ranges(entries, base, size):
    position = base
    for entry in sorted(entries, key=lambda entry: (entry.begin, entry.end)):
        if entry.begin != position:
            raise ValueError(f"its header is corrupt ({entry.name} begins at byte {entry.begin}, expected {position})")
        position = entry.end
    if size < position:
        raise ValueError(f"is truncated: {size} bytes, its header describes {position}")
    if size > position:
        raise ValueError(f"is corrupt: {size} bytes, its header describes {position}")


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
    return NAMES[np.dtype(dtype)]


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
    written: Callable[[int], object] = lambda nbytes: None,
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


def write_file(path: Path, group: list[Pending], metadata: dict[str, str], written: Callable[[int], object]) -> None:
    """One file of the tensors `group`, wider dtypes first, so that every tensor is aligned in it; made in the order of `group`."""
    order, group = group, sorted(group, key=lambda tensor: -DTYPES[tensor.dtype].itemsize)
    header: dict[str, dict] = {"__metadata__": metadata}
    position = 0
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
