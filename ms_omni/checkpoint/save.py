"""Writing the parameters of a cell: under the published names, or as they are in memory, codes as codes."""

import functools
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ms_omni.config import ConfigSection
from ms_omni.files import new_folder, refuse_foreign, saved_files, write_text
from ms_omni.quantised import Quantised, dequantised

from .convert import PUBLISHED_METADATA, write_config
from .load import numpy_dtype, progress_bar
from .names import patch_shape_of, slot, sources
from .open import DEQUANTISED
from .reader import MARKER
from .safetensors import DTYPES, INDEX_FILE, SHARD_BYTES, Pending, dtype_name, write_shards
from .storage import METHOD, OFFSET, SCALE, STACKS, matrix_shape

_WEIGHTS = ("*.safetensors", INDEX_FILE)  # what `save_checkpoint` replaces
CODES = {"int8": "I8", "uint8": "U8"}


def save_checkpoint(
    cell: Any,
    folder: str | Path,
    config: ConfigSection,
    dtype: Any = None,
    *,
    generation_config: Any = None,
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


def host_array(parameter: Any) -> np.ndarray:
    """A parameter's numbers, bfloat16 by way of float32, since MindSpore 2.10 has none for numpy 2."""
    import mindspore as ms

    if parameter.dtype != ms.bfloat16:
        return parameter.asnumpy()
    return parameter.astype(ms.float32).asnumpy().astype(ml_dtypes.bfloat16)


def save_as_stored(cell: Any, folder: str | Path, config: ConfigSection) -> None:
    """Writes the new folder `folder`, for a cell without the thinker's encoders, whose published shapes our form has to note.

    config: of the cell. Raises `CheckpointError` for a folder that is not new or empty.
    """
    parameters = dict(cell.parameters_and_names())
    tensors = [Pending(name, _kind(held), tuple(held.shape), _reading(held)) for name, held in parameters.items()]
    coded = any(name + SCALE in parameters for name in parameters)
    metadata = {"format": MARKER, "source_dtypes": json.dumps({}), "source_shapes": json.dumps({})}
    with new_folder(folder, sum(tensor.nbytes for tensor in tensors)) as fresh:
        config.save_pretrained(fresh)
        write_config(fresh, config.to_dict(), {"quant_method": METHOD} if coded else None)
        write_shards(fresh, tensors, metadata)


def _kind(held):
    name = str(held.dtype).lower()
    return CODES[name] if name in CODES else dtype_name(numpy_dtype(held.dtype))


def _reading(held):
    return lambda: host_array(held)
