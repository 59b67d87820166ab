"""Checkpoints in our parameter names and back: `convert` between folders, `save_checkpoint` from a cell.

A converted folder is again safetensors with config.json and the processor's files, but its tensors are the model's
parameters (experts stacked), so that loading copies them as they are. Its header metadata says `"format": "ms_omni"`.
Converting there and back gives the same tensors bit by bit, each in its original dtype.
"""

import functools
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from ms_omni.config import ConfigSection, read_config_json
from ms_omni.files import write_text
from ms_omni.folders import new_folder, refuse_foreign, saved_files
from ms_omni.hub import resolve
from ms_omni.quantised import Quantised, dequantised

from .as_published import DEQUANTISED, as_published
from .header import DTYPES
from .load import numpy_dtype, progress_bar
from .names import patch_shape_of, slot, sources
from .open import open_checkpoint
from .other_files import copy_other_files, outside, write_config
from .parameters import to_parameters
from .prepare import prepared
from .reader import INDEX_FILE
from .scaling import Observed
from .storage import OFFSET, SCALE, STACKS, matrix_shape
from .writer import SHARD_BYTES, Pending, dtype_name, write_shards

PUBLISHED_METADATA = {"format": "pt"}
_WEIGHTS = ("*.safetensors", INDEX_FILE)  # what `save_checkpoint` replaces


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
    reader=None,
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


def published_tensors(reader) -> list[Pending]:
    """The tensors of any reader under their published names, each in its own dtype and shape."""
    source = as_published(reader)
    return [Pending(name, entry.dtype, entry.shape, _reading(source, name)) for name, entry in source.entries.items()]


def _reading(source, name):
    def read():
        array = np.array(source.array(name), order="C")
        source.release(name)
        return array

    return read


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
        dtype: MindSpore dtype of the file; by default that of each parameter, and bfloat16 of those that are codes (codes are
            written by `convert`, which rounds with more care).
        generation_config: written to generation_config.json when it holds anything.

    Raises:
        CheckpointError: `folder` holds weights or settings that we did not write, or cannot be written.
    """
    target = Path(folder)
    tensors = _published(cell, config, dtype)
    total = sum(tensor.nbytes for tensor in tensors)
    with saved_files(target, total, replaces=_WEIGHTS) as fresh, progress_bar(total, "saving weights", progress) as bar:
        config = _with_dtype(config, {tensor.dtype for tensor in tensors})
        config.save_pretrained(fresh)
        write_config(fresh, config.to_dict(), None)  # whatever the model was loaded from, these are numbers
        if generation_config is not None and generation_config.to_dict():
            write_text(fresh / "generation_config.json", generation_config.to_json_string())
        refuse_foreign(fresh, target, _WEIGHTS)  # before the long part
        taken = {path.name for path in target.glob("*.safetensors")}
        return write_shards(fresh, tensors, PUBLISHED_METADATA, shard_bytes=shard_bytes, written=bar.update, taken=taken)


def _published(cell, config, dtype) -> list[Pending]:
    """The published tensors of a cell's parameters; codes become the numbers that they stand for."""
    thinker = getattr(config, "thinker_config", config)
    patch_shape = patch_shape_of(thinker.vision_config) if hasattr(thinker, "vision_config") else None
    parameters, tensors = dict(cell.parameters_and_names()), []
    values = functools.lru_cache(maxsize=2)(lambda name: _host_values(parameters, name))  # parts of two stacks take turns
    coded = {name for name in parameters if name + SCALE in parameters}
    beside = {name + end for name in coded for end in (SCALE, OFFSET)}
    exact = {name for name in parameters if getattr(parameters[name], "keeps_dtype", False)} - coded - beside
    exact -= {name for name in exact if "float32" not in str(parameters[name].dtype).lower()}
    usual = next((parameters[name].dtype for name in parameters if name not in exact | coded | beside), None)
    for name in [name for name in parameters if name not in beside]:
        # What is float32 in every model goes into the file as the rest does.
        own, shape = usual if name in exact and usual else parameters[name].dtype, tuple(parameters[name].shape)
        kind = DEQUANTISED
        if name in coded:
            shape = matrix_shape(name, _stored(parameters, name).shape)
        if name not in coded or dtype is not None:
            kind = dtype_name(numpy_dtype(dtype or own))
        for part in sources(name, shape, patch_shape):
            tensors.append(Pending(part.name, kind, part.shape, _cut(values, name, part, kind)))
    return tensors


def _stored(parameters, name):
    return Quantised(*(parameters.get(name + end) for end in ("", SCALE, OFFSET)))


def _with_dtype(config: ConfigSection, kinds: set[str]) -> ConfigSection:
    """The configuration with `dtype` naming what the files hold, where it is one."""
    config = config.copy()
    config.dtype = DTYPES[next(iter(kinds))].name if len(kinds) == 1 else None
    return config


def _cut(values, name, part, kind):
    return lambda: np.array(slot(part, values(name)), dtype=DTYPES[kind], order="C")


def _host_values(parameters, name):
    """A parameter's values as a numpy array: of codes what they stand for."""
    stored = _stored(parameters, name)
    if stored.scales is None:
        return host_array(stored.codes)
    matrix = dequantised(Quantised(*(None if part is None else host_array(part) for part in stored)))
    return np.swapaxes(matrix, -1, -2) if name.endswith(STACKS) else matrix


def host_array(parameter):
    """A parameter's numbers, bfloat16 by way of float32, since MindSpore 2.10 has none for numpy 2."""
    import mindspore as ms

    if parameter.dtype != ms.bfloat16:
        return parameter.asnumpy()
    return parameter.astype(ms.float32).asnumpy().astype(ml_dtypes.bfloat16)
