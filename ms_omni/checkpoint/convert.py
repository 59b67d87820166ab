"""Checkpoints in our parameter names and back: `convert` between folders, `save_checkpoint` from a cell.

A converted folder is again safetensors with config.json and the processor's files, but its tensors are the model's
parameters (experts stacked), so that loading copies them as they are. Its header metadata says `"format": "ms_omni"`.
Converting there and back gives the same tensors bit by bit, each in its original dtype.
"""

import functools
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from ms_omni.config import ConfigSection, read_config_json
from ms_omni.errors import CheckpointError
from ms_omni.files import open_regular, write_text
from ms_omni.folders import new_folder, refuse_foreign, saved_files
from ms_omni.hub import resolve

from .copying import copy_into
from .header import DTYPES
from .load import numpy_dtype, progress_bar
from .names import FLATTEN, IGNORE, KEEP, Source, patch_shape_of, place, slot, sources
from .plan import file_root
from .reader import INDEX_FILE, MARKER, CheckpointReader, report
from .writer import SHARD_BYTES, Pending, dtype_name, write_shards

PUBLISHED_METADATA = {"format": "pt"}
_WEIGHTS = ("*.safetensors", INDEX_FILE)  # what `save_checkpoint` replaces
TEMPLATES = "additional_chat_templates"
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf")


@dataclass(frozen=True)
class ConvertReport:
    """What was written: "ms_omni" or "published" form, number of tensors, bytes, files."""

    form: str
    tensors: int
    nbytes: int
    files: tuple[str, ...]


def convert(
    src: str | Path, dst: str | Path, *, shard_bytes: int = SHARD_BYTES, progress: bool = True, reader=None
) -> ConvertReport:
    """Write the checkpoint `src` to the new folder `dst` in the other form: published or, if it is that, ms_omni.

    reader: what reads `src` where its weights are cut for ranks.

    Raises:
        CheckpointError: for a damaged source, tensors that no rule knows, or a `dst` that is not new or empty.
    """
    source = resolve(src)
    if Path(os.path.realpath(dst)).is_relative_to(source.resolve()):
        raise CheckpointError(f"{dst} lies inside {source}; choose a folder beside it.")
    config, _ = read_config_json(source)
    reader = CheckpointReader(source) if reader is None else reader
    if reader.is_converted:
        form, tensors, metadata = "published", _to_published(reader, config), PUBLISHED_METADATA
    else:
        form, (tensors, metadata) = "ms_omni", to_parameters(reader)
    nbytes = sum(tensor.nbytes for tensor in tensors)
    with new_folder(dst, nbytes) as folder, progress_bar(nbytes, f"converting to {form}", progress) as bar:
        files = write_shards(folder, tensors, metadata, shard_bytes=shard_bytes, written=bar.update)
        copy_other_files(source, folder)
    return ConvertReport(form, len(tensors), nbytes, tuple(files))


def to_parameters(reader: CheckpointReader) -> tuple[list[Pending], dict[str, str]]:
    """Published tensors gathered into parameters; dtypes and shapes that a parameter cannot show go to the metadata."""
    root, gathered, problems = file_root(reader.entries), {}, []
    for name in reader.entries:
        spot = place(root + name)
        if spot is None:
            problems.append(f"{name}: no tensor of this name in Qwen3-Omni")
        else:
            gathered.setdefault(spot.target, []).append((spot, name))
    tensors, dtypes, shapes = [], {}, {}
    for target, parts in gathered.items():
        parts.sort(key=lambda part: (part[0].expert or 0, part[0].transform != "gate"))
        shape = _stacked_shape(target, parts, reader, problems)
        if shape is None:
            continue
        kinds = {reader.entries[name].dtype for _, name in parts}
        dtype = next(iter(kinds)) if len(kinds) == 1 else "F32"  # exact for bf16 and fp16 alike
        dtypes.update({name: reader.entries[name].dtype for _, name in parts if len(kinds) > 1})
        if parts[0][0].transform == FLATTEN:
            shapes[parts[0][1]] = list(reader.entries[parts[0][1]].shape)
        tensors.append(Pending(target[len(root) :], dtype, shape, _gather(reader, parts, shape, dtype)))
    if problems:
        raise report(problems, f"{reader.folder} cannot be converted")
    return tensors, {"format": MARKER, "source_dtypes": json.dumps(dtypes), "source_shapes": json.dumps(shapes)}


def _stacked_shape(target, parts, reader, problems) -> tuple[int, ...] | None:
    """Shape of the parameter that the parts make; None, with a problem noted, when parts are absent or differ."""
    spot, first = parts[0]
    shape = reader.entries[first].shape
    if spot.transform in (KEEP, IGNORE):
        return shape
    if spot.transform == FLATTEN:
        return (shape[0], int(np.prod(shape[1:])))
    per_expert = 2 if target.endswith(".gate_up") else 1
    experts = max(part.expert for part, _ in parts) + 1
    if len(parts) != per_expert * experts:
        problems.append(f"{target}: {len(parts)} expert matrices, expected {per_expert} for each of {experts} experts")
        return None
    if len(shape) != 2 or any(reader.entries[name].shape != shape for _, name in parts):
        problems.append(f"{target}: its expert matrices differ in shape, or have not two axes")
        return None
    return (experts, shape[1], per_expert * shape[0])


def _gather(reader, parts, shape, dtype):
    def read():
        buffer = np.empty(shape, DTYPES[dtype])
        for spot, name in parts:
            source = Source(
                name, reader.entries[name].shape, KEEP if spot.transform == IGNORE else spot.transform, spot.expert
            )
            copy_into(slot(source, buffer), reader.array(name))
            reader.release(name)
        return buffer

    return read


def _to_published(reader: CheckpointReader, config: dict) -> list[Pending]:
    """Parameters taken apart into the tensors they came from, each in its own dtype and shape."""
    root, tensors = file_root(reader.entries), []
    dtypes, shapes = {}, {}
    for metadata in reader.metadata.values():
        dtypes.update(json.loads(metadata.get("source_dtypes", "{}")))
        shapes.update(json.loads(metadata.get("source_shapes", "{}")))
    for name, entry in reader.entries.items():
        for part in sources(root + name, entry.shape):
            stored = part.name[len(root) :]
            part = Source(part.name, tuple(shapes.get(stored, part.shape)), part.transform, part.expert)
            tensors.append(
                Pending(
                    stored,
                    dtypes.get(stored, entry.dtype),
                    part.shape,
                    _extract(reader, name, part, dtypes.get(stored, entry.dtype)),
                )
            )
    return tensors


def _extract(reader, name, part, dtype):
    def read():
        array = np.array(slot(part, reader.array(name)), dtype=DTYPES[dtype], order="C")
        reader.release(name)
        return array

    return read


def copy_other_files(source: Path, target: Path) -> None:
    """Configuration, tokenizer, template and preprocessor files, as they are.

    Raises:
        CheckpointError: one of them is a link to a file elsewhere; those into the hub cache's folder of this model are its own.
    """
    root = source.resolve()
    home = root.parent.parent if root.parent.name == "snapshots" else root
    for item in sorted([*source.iterdir(), *(source / TEMPLATES).glob("*.jinja")]):
        weights = item.name.endswith(_WEIGHT_SUFFIXES) or item.name.endswith(".index.json")
        if weights or item.name.startswith(".") or not item.is_file():
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


def save_checkpoint(
    cell,
    folder: str | Path,
    config: ConfigSection,
    dtype=None,
    *,
    generation_config=None,
    shard_bytes: int = SHARD_BYTES,
    progress: bool = True,
) -> list[str]:
    """Write the cell's parameters under the published names and shapes, with config.json; returns the weight files.

    Whoever loads from `folder` meanwhile, or after a kill, finds the earlier checkpoint, the new one, or an incomplete one
    that is refused; never parts of both.

    Args:
        cell: a loaded model or sub-model.
        folder: made if needed. What was saved there before is replaced, see `saved_files`; foreign files never are.
        config: the configuration of the cell; written to config.json.
        dtype: MindSpore dtype of the file; by default that of the parameters.
        generation_config: written to generation_config.json when it holds anything.

    Raises:
        CheckpointError: `folder` holds weights or settings that we did not write, or cannot be written.
    """
    target = Path(folder)
    tensors = _published(cell, config, dtype)
    total = sum(tensor.nbytes for tensor in tensors)
    with saved_files(target, total, replaces=_WEIGHTS) as fresh, progress_bar(total, "saving weights", progress) as bar:
        _with_dtype(config, {tensor.dtype for tensor in tensors}).save_pretrained(fresh)
        if generation_config is not None and generation_config.to_dict():
            write_text(fresh / "generation_config.json", generation_config.to_json_string())
        refuse_foreign(fresh, target, _WEIGHTS)  # before the long part
        taken = {path.name for path in target.glob("*.safetensors")}
        return write_shards(fresh, tensors, PUBLISHED_METADATA, shard_bytes=shard_bytes, written=bar.update, taken=taken)


def _published(cell, config, dtype) -> list[Pending]:
    """The published tensors of a cell's parameters."""
    thinker = getattr(config, "thinker_config", config)
    patch_shape = patch_shape_of(thinker.vision_config) if hasattr(thinker, "vision_config") else None
    parameters, tensors = dict(cell.parameters_and_names()), []
    values = functools.lru_cache(maxsize=2)(lambda name: _host_values(parameters[name]))  # parts of two stacks take turns
    kept = {name for name, parameter in parameters.items() if getattr(parameter, "keeps_dtype", False)}
    usual = next((parameter.dtype for name, parameter in parameters.items() if name not in kept), None)
    for name, parameter in parameters.items():
        # What is float32 in every model goes into the file as the rest does.
        kind = dtype_name(numpy_dtype(dtype or (usual if name in kept and usual else parameter.dtype)))
        for part in sources(name, tuple(parameter.shape), patch_shape):
            tensors.append(Pending(part.name, kind, part.shape, _cut(values, name, part, kind)))
    return tensors


def _with_dtype(config: ConfigSection, kinds: set[str]) -> ConfigSection:
    """The configuration with `dtype` naming what the files hold, where it is one."""
    config = config.copy()
    config.dtype = DTYPES[next(iter(kinds))].name if len(kinds) == 1 else None
    return config


def _cut(values, name, part, kind):
    return lambda: np.array(slot(part, values(name)), dtype=DTYPES[kind], order="C")


def _host_values(parameter):
    """A parameter's values as a numpy array; bfloat16 by way of float32, since MindSpore 2.10 has none for numpy 2."""
    import mindspore as ms

    if parameter.dtype != ms.bfloat16:
        return parameter.asnumpy()
    return parameter.astype(ms.float32).asnumpy().astype(ml_dtypes.bfloat16)
