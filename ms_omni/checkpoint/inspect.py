"""What a checkpoint holds: parameters and bytes by part of the model, and names that no rule knows."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from .names import part_of, place
from .plan import file_root
from .reader import CheckpointReader


@dataclass(frozen=True)
class PartSize:
    """One part of the model: tensors in the files, their elements and bytes, tensors per dtype."""

    part: str
    tensors: int
    elements: int
    nbytes: int
    dtypes: dict[str, int]


@dataclass(frozen=True)
class Summary:
    """A checkpoint at a glance. `form` is "published" or "ms_omni"; `unmatched` are names that no rule knows."""

    folder: str
    form: str
    files: tuple[str, ...]
    parts: tuple[PartSize, ...]
    unmatched: tuple[str, ...]

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
    reader = CheckpointReader(folder)
    root, unmatched, held = file_root(reader.entries), [], {}
    for name, entry in reader.entries.items():
        spot = place(root + name)
        part = part_of(root + name) if reader.is_converted else spot and spot.part
        if part is None:
            unmatched.append(name)
            part = "unmatched"
        held.setdefault(part, []).append(entry)
    parts = tuple(
        PartSize(
            part,
            len(entries),
            sum(entry.size for entry in entries),
            sum(entry.nbytes for entry in entries),
            dict(Counter(entry.dtype for entry in entries)),
        )
        for part, entries in sorted(held.items())
    )
    return Summary(str(folder), MARKED[reader.is_converted], tuple(reader.files), parts, tuple(sorted(unmatched)))


MARKED = {True: "ms_omni", False: "published"}
