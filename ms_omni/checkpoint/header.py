"""The header of a safetensors file, checked against the file's size.

A file is `<u64 header length> <JSON header> <data>`; the header gives each tensor's dtype, shape and byte range.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

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
