"""What is done to weights on their way from one folder to another: an adapter merged, inputs scaled, matrices rounded."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ms_omni.config import read_config_json
from ms_omni.errors import CheckpointError

from .adapter import Merging
from .as_published import as_published
from .plan import file_root
from .published.methods import quantisation
from .quantise import Quantising
from .storage import METHOD, OPTION, Scheme, row_of

_NOT_TWICE = (
    "{folder} is quantised already, and what is rounded twice loses more. Quantise the checkpoint that it was made from, or convert "
    "it to bfloat16 first (`ms-omni convert` without --quantize)."
)
_NOT_MERGED = (
    "{folder} is quantised, and an adapter is merged into weights before they are rounded. Merge it into the checkpoint that this "
    "one was made from, or convert this one to bfloat16 first."
)


@dataclass(frozen=True)
class Prepared:
    """reader: of what is to be written. quantisation: config.json's entry where the folder keeps codes, or None. notes: what
    there is to say about it.
    """

    reader: Any
    quantisation: dict | None = None
    notes: tuple[str, ...] = ()


def prepared(
    reader, quantize: str | None = None, group: int | None = None, embeddings: bool = False, adapter=None, observed=None
) -> Prepared:
    """A reader as it is to be written, see `convert` for the arguments and for what is raised."""
    coded = is_coded(reader)
    if coded and quantize:
        raise CheckpointError(_NOT_TWICE.format(folder=reader.folder))
    if coded and adapter is not None:
        raise CheckpointError(_NOT_MERGED.format(folder=reader.folder))
    if not (quantize or adapter is not None):
        return Prepared(reader, _kept(reader) if coded else None)
    work, how, notes = as_published(reader), {}, []
    if adapter is not None:
        work = Merging(work, adapter)
        how["adapter"] = Path(adapter).name
        notes.append(work.said)
    if not quantize:
        return Prepared(work, None, tuple(notes))
    if observed is not None:
        how["calibration"] = observed.said
    work = Quantising(work, quantize, group, embeddings, observed)
    return Prepared(work, work.describe(**how), (*notes, *work.notes()))


def is_coded(reader) -> bool:
    """Whether some of a reader's tensors are stored as codes."""
    return any(reader.storage(name) is not None for name in reader.entries)


def _kept(reader) -> dict:
    """The description of codes that are taken over as they are."""
    found, _ = quantisation(reader.folder, read_config_json(reader.folder)[0])
    if found is not None and found.get("quant_method") == METHOD:
        return dict(found)
    root = file_root(reader.entries)
    coded = {root + name: storage for name in reader.entries if (storage := reader.storage(name)) is not None}
    storages = Counter(coded.values())
    bits = min(storage.bits for storage in storages)
    most = max((storage for storage in storages if storage.bits == bits), key=storages.__getitem__)
    table = any(row_of(name).stored == OPTION for name in coded)
    return Scheme(bits, most.group, table).describe(scale_dtype=most.scale, converted_from=found)
