"""What a checkpoint holds: parameters and bytes by part of the model, and names that no rule knows."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ms_omni.config import CONFIG_FILE, read_config_json

from .convert import QUANTISATION
from .matching import file_root
from .names import part_of, place
from .open import open_checkpoint
from .storage import stored_bytes


@dataclass(frozen=True)
class PartSize:
    """One part of the model: tensors, their elements, their bytes with scales, tensors per dtype ("int4/128": in groups of 128)."""

    part: str
    tensors: int
    elements: int
    nbytes: int
    dtypes: dict[str, int]


@dataclass(frozen=True)
class Summary:
    """A checkpoint at a glance. `form` is "published" or "ms_omni"; `unmatched` are names that no rule knows; `quantisation` is what
    config.json says of how the weights were quantised, or None.
    """

    folder: str
    form: str
    files: tuple[str, ...]
    parts: tuple[PartSize, ...]
    unmatched: tuple[str, ...]
    quantisation: dict | None = None

    @property
    def elements(self) -> int:
        return sum(part.elements for part in self.parts)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def table(self) -> str:
        """Lines for a terminal, with a total and the unmatched names."""
        rows = [("part", "tensors", "parameters", "bytes", "dtype")]
        for part in self.parts:
            rows.append((part.part, f"{part.tensors:,}", f"{part.elements:,}", f"{part.nbytes:,}", " ".join(part.dtypes)))
        rows.append(("total", f"{sum(part.tensors for part in self.parts):,}", f"{self.elements:,}", f"{self.nbytes:,}", ""))
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        lines = [f"{self.folder}: {self.form} form, {len(self.files)} weight file{'s'[: len(self.files) > 1]}"]
        if self.quantisation:
            lines.append("quantised: " + ", ".join(f"{key} {_formatted(value)}" for key, value in self.quantisation.items()))
        lines += [
            "  ".join(
                [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:4], widths[1:4])), row[4]]
            ).rstrip()
            for row in rows
        ]
        lines += [f"{len(self.unmatched)} unmatched name{'s'[: len(self.unmatched) != 1]}"]
        return "\n".join(lines + [f"  {name}" for name in self.unmatched])


def inspect_checkpoint(folder: str | Path) -> Summary:
    """Read the headers of `folder` and sum up. Raises CheckpointError for damaged files."""
    reader = open_checkpoint(folder)
    root, unmatched, by_part = file_root(reader.entries), [], {}
    for name, entry in reader.entries.items():
        spot = place(root + name)
        part = part_of(root + name) if reader.is_converted else spot and spot.part
        if part is None:
            unmatched.append(name)
            part = "unmatched"
        by_part.setdefault(part, []).append(entry)
    parts = tuple(
        PartSize(
            part,
            len(entries),
            sum(entry.size for entry in entries),
            sum(_nbytes(entry, reader.storage(entry.name)) for entry in entries),
            dict(Counter(_stored(entry, reader.storage(entry.name)) for entry in entries)),
        )
        for part, entries in sorted(by_part.items())
    )
    found = read_config_json(folder)[0].get(QUANTISATION) if (reader.folder / CONFIG_FILE).is_file() else None
    return Summary(str(folder), MARKED[reader.is_converted], tuple(reader.files), parts, tuple(sorted(unmatched)), found)


def _stored(entry, storage) -> str:
    """How a tensor is stored, in a word."""
    if storage is None:
        return entry.dtype
    return f"int{storage.bits}/{storage.group}" if storage.group else f"int{storage.bits}"


def _nbytes(entry, storage) -> int:
    return entry.nbytes if storage is None else stored_bytes(entry.name, entry.shape, storage)


def _formatted(value) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, (dict, list, bool)) else str(value)


MARKED = {True: "ms_omni", False: "published"}
