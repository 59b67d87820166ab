"""How the matrices of a model are stored in memory: as the folder has them, or quantised while they are read."""

from collections.abc import Iterable, Sequence

from ms_omni.errors import InputError
from ms_omni.notices import caller_level, warn_once
from ms_omni.quantised import Storage

from .plan import Fill
from .reader import CheckpointReader
from .storage import Scheme

SHOWN = 3


def storages(fills: Iterable[Fill], reader: CheckpointReader, scheme: Scheme | None, prefix: str) -> dict[str, Storage]:
    """`{parameter: Storage}` of those that are codes: as their stored tensors are, where those are alike; else by `scheme`, or None.

    A parameter whose tensors are not stored alike gets the numbers that they stand for, which is said in one warning. Raises
    `InputError` for a scheme where the folder is quantised already.
    """
    kinds = {fill.parameter: {reader.storage(stored) for stored, _ in fill.parts} for fill in fills}
    if scheme is not None:
        if any(found != {None} for found in kinds.values()):
            raise InputError(
                f"{reader.folder} is quantised already; leave quantize= out, or take the checkpoint that it was made from"
            )
        shapes = {prefix + fill.parameter: fill.shape for fill in fills}
        return {name.removeprefix(prefix): storage for name, storage in scheme.storages(shapes).items()}
    mixed = [name for name, found in kinds.items() if len(found) > 1]
    if mixed:
        warn_once(f"{reader.folder}: {said_of_mixed(mixed)}", stacklevel=caller_level())
    return {name: storage for name, found in kinds.items() if len(found) == 1 and (storage := next(iter(found)))}


def said_of_mixed(names: Sequence[str]) -> str:
    """Of parameters whose tensors are not stored alike."""
    said = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
    return f"the tensors of {said} are stored in different ways, and are held as the numbers that these stand for"


def held_in(fills: Iterable[Fill], reader: CheckpointReader, dtype: str) -> set[str]:
    """The parameters whose stored tensors are all numbers of this dtype, by its name in the files, or codes of such."""
    return {fill.parameter for fill in fills if all(reader.entries[stored].dtype == dtype for stored, _ in fill.parts)}
