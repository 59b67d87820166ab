"""Checkpoints in our parameter names and back, and what is done to weights on the way: an adapter merged, inputs scaled, matrices rounded.

A converted folder is again safetensors with config.json and the processor's files, but its tensors are the model's
parameters (experts stacked), so that loading copies them as they are. Its header metadata says `"format": "ms_omni"`.
Converting there and back gives the same tensors bit by bit, each in its original dtype.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ms_omni.arrays import MODEL_TYPES
from ms_omni.config import CONFIG_FILE, read_config_json
from ms_omni.errors import CheckpointError
from ms_omni.files import new_folder, open_regular, write_text
from ms_omni.hub import resolve
from ms_omni.quantised import Storage

from .adapter import Merging
from .load import progress_bar
from .matching import Fill, file_root, gather
from .names import FLATTEN
from .open import DEQUANTISED, as_published, open_checkpoint
from .parameters import arrays_of, read_parameter, read_stored
from .published import quantisation
from .quantise import Observed, Quantising
from .reader import MARKER, Reader
from .safetensors import DTYPES, SHARD_BYTES, Pending, dtype_name, write_shards
from .storage import METHOD, OFFSET, OPTION, SCALE, Scheme, mixed_note, row_of

PUBLISHED_METADATA = {"format": "pt"}
_NOT_TWICE = (
    "{folder} is quantised already, and what is rounded twice loses more. Quantise the checkpoint that it was made from, or convert "
    "it to bfloat16 first (`ms-omni convert` without --quantize)."
)
_NOT_MERGED = (
    "{folder} is quantised, and an adapter is merged into weights before they are rounded. Merge it into the checkpoint that this "
    "one was made from, or convert this one to bfloat16 first."
)
TEMPLATES = "additional_chat_templates"
QUANTISATION = "quantization_config"  # in config.json, or in one of its sections
_OF_WEIGHTS = (QUANTISATION, "compression_config", "quantization")  # the last is MLX's
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf")
# They say how a tool stored the weights, and nothing that we write is stored so.
_DESCRIPTIONS = ("quant*_config.json", "hf_quant_config.json", "quant_model_description*.json", "recipe.yaml")


@dataclass(frozen=True)
class ConvertReport:
    """What was written: "ms_omni" or "published" form, number of tensors, bytes, files; notes: what else there is to say."""

    form: str
    tensors: int
    nbytes: int
    files: tuple[str, ...]
    notes: tuple[str, ...] = ()


def convert(
    src: str | Path,
    dst: str | Path,
    *,
    quantize: str | None = None,
    group: int | None = None,
    embeddings: bool = False,
    adapter: str | Path | None = None,
    observed: Observed | None = None,
    shard_bytes: int = SHARD_BYTES,
    progress: bool = True,
    reader: Reader | None = None,
) -> ConvertReport:
    """Write the checkpoint `src` to the new folder `dst`.

    Without more it takes the other form: published or, if it is that, ms_omni; codes that `src` holds in our form become
    bfloat16. Quantised weights have our form. An adapter that is merged leaves the form as it is.

    Args:
        quantize: "int8" or "int4"; group, embeddings: see `storage.scheme`.
        adapter: folder of a LoRA adapter in PEFT's layout, see `adapter.py`.
        observed: what the matrices get to see (`ms_omni.calibration`), by which their inputs are scaled before they are rounded.
        reader: what reads `src` where its weights are cut for ranks.

    Raises:
        CheckpointError: for a damaged source, tensors that no rule knows, a quantised one that is to be quantised, an adapter
            that does not fit, or a `dst` that is not new or empty.
        InputError: see `storage.scheme`.
    """
    source = resolve(src)
    outside(dst, source)
    config, _ = read_config_json(source)
    reader = open_checkpoint(source) if reader is None else reader
    work = prepared(reader, quantize, group, embeddings, adapter, observed)
    same_form = adapter is not None and quantize is None
    if quantize is None and reader.is_converted != same_form:
        form, tensors, metadata, notes = "published", published_tensors(work.reader), PUBLISHED_METADATA, ()
    else:
        form, (tensors, metadata, notes) = "ms_omni", to_parameters(work.reader)
    nbytes = sum(tensor.nbytes for tensor in tensors)
    with new_folder(dst, nbytes) as folder, progress_bar(nbytes, f"converting to {form}", progress) as bar:
        files = write_shards(folder, tensors, metadata, shard_bytes=shard_bytes, written=bar.update)
        copy_other_files(source, folder)
        write_config(folder, config, work.quantisation if form == "ms_omni" else None)
    return ConvertReport(form, len(tensors), nbytes, tuple(files), (*work.notes, *notes))


def published_tensors(reader: Reader) -> list[Pending]:
    """The tensors of any reader under their published names, each in its own dtype and shape."""
    source = as_published(reader)
    return [Pending(name, entry.dtype, entry.shape, _reading(source, name)) for name, entry in source.entries.items()]


def _reading(source, name):
    def read():
        array = np.array(source.array(name), order="C")
        source.release(name)
        return array

    return read


@dataclass(frozen=True)
class Prepared:
    """reader: of what is to be written. quantisation: config.json's entry where the folder keeps codes, or None. notes: what
    there is to say about it.
    """

    reader: Reader
    quantisation: dict | None = None
    notes: tuple[str, ...] = ()


def prepared(
    reader: Reader,
    quantize: str | None = None,
    group: int | None = None,
    embeddings: bool = False,
    adapter: str | Path | None = None,
    observed: Observed | None = None,
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
        notes.append(work.note)
    if not quantize:
        return Prepared(work, None, tuple(notes))
    if observed is not None:
        how["calibration"] = observed.description
    work = Quantising(work, quantize, group, embeddings, observed)
    return Prepared(work, work.describe(**how), (*notes, *work.notes()))


def is_coded(reader: Reader) -> bool:
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


def to_parameters(reader: Reader) -> tuple[list[Pending], dict[str, str], tuple[str, ...]]:
    """What a folder in our form holds: the parameters to write, its metadata, where dtypes and shapes that a parameter cannot show
    are kept, and what there is to say about them. Raises `CheckpointError`, see `gather`.
    """
    tensors, dtypes, shapes, fills = [], {}, {}, gather(reader)
    for fill in fills:
        storage = storage_in(reader, fill)
        if storage is not None:
            tensors += coded(reader, fill, storage)
            continue
        kinds, dtype = kinds_of(reader, fill), dtype_in(reader, fill)
        if len(set(kinds.values())) > 1:
            dtypes.update(kinds)
        if fill.parts[0][1].transform == FLATTEN:
            shapes[fill.parts[0][0]] = list(fill.parts[0][1].shape)
        tensors.append(Pending(fill.parameter, dtype, fill.shape, partial(read_parameter, reader, fill, DTYPES[dtype])))
    metadata = {"format": MARKER, "source_dtypes": json.dumps(dtypes), "source_shapes": json.dumps(shapes)}
    return tensors, metadata, notes_on(reader, fills)


def notes_on(reader: Reader, fills: Iterable[Fill]) -> tuple[str, ...]:
    """What there is to say of parameters whose tensors are not stored alike."""
    mixed = [fill.parameter for fill in fills if len({reader.storage(name) for name, _ in fill.parts}) > 1]
    return (mixed_note(mixed),) if mixed else ()


def kinds_of(reader: Reader, fill: Fill) -> dict[str, str]:
    """The dtypes of a parameter's stored tensors as numbers; codes get that of the numbers beside them, or of all that is dequantised."""
    names = [name for name, _ in fill.parts]
    beside = {reader.entries[name].dtype for name in names if reader.storage(name) is None}
    dequantised = beside.pop() if len(beside) == 1 else DEQUANTISED
    return {name: reader.entries[name].dtype if reader.storage(name) is None else dequantised for name in names}


def dtype_in(reader: Reader, fill: Fill) -> str:
    """What a parameter is written in where it is no codes."""
    kinds = set(kinds_of(reader, fill).values())
    return kinds.pop() if len(kinds) == 1 else "F32"  # exact for bf16 and fp16 alike


def storage_in(reader: Reader, fill: Fill) -> Storage | None:
    """How all parts of a parameter are stored if they are codes alike, else None."""
    found = {reader.storage(name) for name, _ in fill.parts}
    return found.pop() if len(found) == 1 else None


def coded(reader: Reader, fill: Fill, storage: Storage, parts: Mapping[str, Any] | None = None) -> list[Pending]:
    """Codes, scales and offsets of a parameter, or of a rank's part of it (see `read_stored`); they are made together, once."""
    part = parts[fill.parameter] if parts else None
    shapes = arrays_of(fill.parameter, fill.shape, storage, None if part is None or part.flat else part)
    if parts and part is not None and part.flat:
        shapes = {name: parts[name].local_shape for name in shapes}
    made = _Once(lambda: read_stored(reader, fill, storage, parts))
    kinds = {"": "I8" if storage.bits == 8 else "U8"}
    kinds |= {end: dtype_name(MODEL_TYPES[kind]) for end, kind in ((SCALE, storage.scale), (OFFSET, storage.offset)) if kind}
    return [
        Pending(name, kinds[name.removeprefix(fill.parameter)], shape, made.reading(name)) for name, shape in shapes.items()
    ]


class _Once:
    """Arrays that are made together and fetched one after the other; none is held once it was fetched."""

    def __init__(self, make: Callable[[], dict[str, np.ndarray]]):
        self.make, self.held = make, {}

    def reading(self, which: str) -> Callable[[], np.ndarray]:
        """What fetches one of them."""

        def read():
            if which not in self.held:
                self.held = self.make()
            return self.held.pop(which)

        return read


def outside(target: str | Path, source: Path) -> None:
    """Raises CheckpointError for a target inside the folder that is read."""
    if Path(os.path.realpath(target)).is_relative_to(source.resolve()):
        raise CheckpointError(f"{target} lies inside {source}; choose a folder beside it.")


def write_config(folder: Path, content: dict, quantisation: dict | None) -> None:
    """Changes the config.json in `folder` where it is to say something else of how its weights are stored.

    content: what it holds; quantisation: what the new one says, None for nothing.
    """
    plain = _without(content)
    if quantisation is None and plain == content:
        return
    if quantisation is not None:
        plain[QUANTISATION] = quantisation
    write_text(folder / CONFIG_FILE, json.dumps(plain, indent=2, ensure_ascii=False) + "\n")


def _without(content: dict) -> dict:
    """A configuration that says nothing of quantised weights, in any section."""
    kept = {key: value for key, value in content.items() if key not in _OF_WEIGHTS}
    return {key: _without(value) if isinstance(value, dict) else value for key, value in kept.items()}


def copy_other_files(source: Path, target: Path) -> None:
    """Configuration, tokenizer, template and preprocessor files, as they are; not what tools say of how they stored the weights.

    Raises:
        CheckpointError: one of them is a link to a file elsewhere; those into the hub cache's folder of this model are its own.
    """
    root = source.resolve()
    home = root.parent.parent if root.parent.name == "snapshots" else root
    for item in sorted([*source.iterdir(), *(source / TEMPLATES).glob("*.jinja")]):
        weights = item.name.endswith(_WEIGHT_SUFFIXES) or item.name.endswith(".index.json")
        described = any(fnmatch(item.name, pattern) for pattern in _DESCRIPTIONS)
        if weights or described or item.name.startswith(".") or not item.is_file():
            continue
        if not item.resolve().is_relative_to(home):
            raise CheckpointError(
                f"{item} is a link to {item.resolve()}, outside the checkpoint; links are not followed out of it. Remove "
                "the link, or put the file itself there."
            )
        copy = target / item.relative_to(source)
        copy.parent.mkdir(exist_ok=True)
        with open_regular(item) as file, open(copy, "wb") as written:
            shutil.copyfileobj(file, written)
        shutil.copystat(item, copy)
