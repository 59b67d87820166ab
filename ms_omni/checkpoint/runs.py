"""Reading a run of elements of a parameter: what one rank holds under a plan that cuts parameters into equal runs.

stored tensor as it is      elements [start, stop) of the file, nothing else is touched
stacked experts             whole experts are written in place; of the first and the last only a piece may be wanted,
                            and those pass through a buffer of one expert
"""

import math
from dataclasses import replace

import numpy as np

from .copying import copy_into
from .names import STACKED, slot
from .plan import Fill
from .reader import CheckpointReader


def read_run(reader: CheckpointReader, fill: Fill, dtype: np.dtype, run) -> np.ndarray:
    """The elements of a parameter that a `ms_omni.parallel.Run` names, in its local shape, padded with zeros."""
    buffer = np.zeros(run.length, dtype)
    wanted = buffer[: run.stop - run.start]
    if fill.parts[0][1].transform in STACKED:
        _read_experts(reader, fill, wanted, run.start)
    else:
        stored, _ = fill.parts[0]
        np.copyto(wanted, reader.array(stored).reshape(-1)[run.start : run.stop], casting="unsafe")
        reader.release(stored)
    return buffer.reshape(run.local_shape)


def _read_experts(reader, fill, wanted, start):
    """Fills `wanted`, the elements from `start` on, expert by expert."""
    shape = fill.shape[1:]
    size = math.prod(shape)
    parts = {}
    for stored, source in fill.parts:
        parts.setdefault(source.expert, []).append((stored, source))
    for expert in range(start // size, -(-(start + len(wanted)) // size)):
        low, high = max(expert * size, start), min((expert + 1) * size, start + len(wanted))
        piece = wanted[low - start : high - start]
        whole = len(piece) == size
        stack = (piece if whole else np.empty(size, wanted.dtype)).reshape(1, *shape)
        for stored, source in parts[expert]:
            copy_into(slot(replace(source, expert=0), stack), reader.array(stored))
            reader.release(stored)
        if not whole:
            np.copyto(piece, stack.reshape(-1)[low - expert * size : high - expert * size])
