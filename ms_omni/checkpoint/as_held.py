"""A cell's parameters written as they are in memory, codes as codes: a folder in our form, which loads as the same model."""

import json
from pathlib import Path

from ms_omni.config import ConfigSection
from ms_omni.folders import new_folder

from .convert import host_array
from .load import numpy_dtype
from .other_files import write_config
from .reader import MARKER
from .storage import METHOD, SCALE
from .writer import Pending, dtype_name, write_shards

CODES = {"int8": "I8", "uint8": "U8"}


def save_as_held(cell, folder: str | Path, config: ConfigSection) -> None:
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
