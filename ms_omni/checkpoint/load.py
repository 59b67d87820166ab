"""Filling a lazily built cell from a checkpoint folder, tensor by tensor."""

import math
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ms_omni.arrays import MODEL_TYPES
from ms_omni.errors import CheckpointError
from ms_omni.locking import exclusive
from ms_omni.quantised import Storage
from ms_omni.runtime import processors

from .matching import Fill, plan_loading
from .open import open_checkpoint
from .parameters import read_slice, read_stored
from .reader import Reader, check_finite

READERS = 8  # threads that read at a time, at most: more than that no memory feeds
PROGRESS_DELAY_S = 1.0  # a load that is done sooner shows no bar


@dataclass(frozen=True)
class LoadReport:
    """What was loaded: number of parameters (tensors), their elements and bytes, time, and stored names not used."""

    tensors: int
    elements: int
    nbytes: int
    seconds: float
    unused: tuple[str, ...] = field(repr=False)


def numpy_dtype(dtype: Any) -> np.dtype:
    """The numpy dtype of a MindSpore float dtype (or its name). Raises CheckpointError for any other dtype."""
    name = str(dtype).lower().rsplit(".", 1)[-1]
    if name not in MODEL_TYPES:
        raise CheckpointError(f"got dtype {dtype}, expected float32, float16 or bfloat16.")
    return MODEL_TYPES[name]


def progress_bar(total: int, title: str, shown: bool = True) -> Any:
    """A bar over bytes on a terminal's standard error; elsewhere, or for short work, nothing is printed."""
    from tqdm import tqdm

    return tqdm(
        total=total,
        desc=title,
        unit="B",
        unit_scale=True,
        unit_divisor=1024,
        file=sys.stderr,
        leave=False,
        disable=not (shown and sys.stderr.isatty()),
        delay=PROGRESS_DELAY_S,
    )


def dtype_of(parameter: Any, dtype: Any) -> Any:
    """What a parameter is to hold where a caller wants `dtype` (None: as it is); some are float32 always (`exact_parameters`)."""
    return parameter.dtype if dtype is None or getattr(parameter, "keeps_dtype", False) else dtype


def load_checkpoint(
    cell: Any,
    folder: str | Path,
    *,
    prefix: str = "",
    dtype: Any = None,
    progress: bool = True,
    slices: Mapping[str, Any] | None = None,
) -> LoadReport:
    """Fill every parameter of `cell` from `folder` (published form or the converted one).

    Names and shapes are compared first; nothing is allocated when they do not fit. Peak memory is the weights in the
    target dtype plus one stored tensor per thread.

    Args:
        cell: built under `no_init_parameters`, so that its parameters own no memory yet.
        folder: the checkpoint; one of the thinker alone will do for a thinker.
        prefix: what stands before the cell's names in a full checkpoint, such as "thinker."; other components are left
            aside.
        dtype: MindSpore dtype of the loaded weights; by default each parameter keeps its own.
        progress: whether a long load shows a bar on a terminal.
        slices: {full parameter name: `ms_omni.parallel.Slice`} of what this process holds, for one among several.

    Raises:
        CheckpointError: one error that lists all that is wrong with the files, or all that does not fit.
    """
    reader = open_checkpoint(folder)
    shapes = {name: tuple(value.shape) for name, value in cell.parameters_and_names()}
    fills, unused = plan_loading(shapes, reader, prefix)
    return fill_cell(cell, reader, fills, unused, prefix=prefix, dtype=dtype, progress=progress, slices=slices)


def fill_cell(
    cell: Any,
    reader: Reader,
    fills: list[Fill],
    unused: Sequence[str] = (),
    *,
    prefix: str = "",
    dtype: Any = None,
    progress: bool = True,
    slices: Mapping[str, Any] | None = None,
    storages: Mapping[str, Storage] | None = None,
) -> LoadReport:
    """The second half of `load_checkpoint`: what `plan_loading` has planned is read into the parameters of `cell`.

    storages: of those parameters that the cell stores as codes.
    """
    from mindspore import Tensor

    started = time.monotonic()
    parameters = dict(cell.parameters_and_names())
    elements = nbytes = 0
    with progress_bar(
        sum(reader.entries[stored].nbytes for fill in fills for stored, _ in fill.parts), "loading weights", progress
    ) as bar:
        for fill, arrays in zip(fills, _read_all(reader, fills, parameters, prefix, dtype, slices, storages or {})):
            for name, array in arrays.items():
                parameter = parameters[name]
                with exclusive:
                    if parameter.dtype != dtype_of(parameter, dtype):
                        parameter.set_dtype(dtype)
                    parameter.set_data(Tensor.from_numpy(array), slice_shape=slices is not None)
                nbytes += array.nbytes
            elements += math.prod(fill.shape)
            bar.update(sum(reader.entries[stored].nbytes for stored, _ in fill.parts))
    return LoadReport(len(fills), elements, nbytes, time.monotonic() - started, tuple(unused))


def _read_all(reader, fills, parameters, prefix, dtype, slices, storages):
    """The arrays of all fills, by the names of the parameters that they are for, in order; several fills are read at a time."""

    parts = slices and {name.removeprefix(prefix): part for name, part in slices.items()}

    def read(fill):
        name = fill.parameter
        if name in storages:
            return read_stored(reader, fill, storages[name], parts)
        array = read_slice(reader, fill, numpy_dtype(dtype_of(parameters[name], dtype)), parts and parts[name])
        return {name: array}

    def checked(fill):
        arrays = read(fill)
        for name, array in arrays.items():
            check_finite(array, f"{reader.folder}: {prefix}{name}")
        return arrays

    with ThreadPoolExecutor(min(processors(), READERS)) as pool:
        try:
            yield from pool.map(checked, fills)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
