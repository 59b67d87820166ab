"""Weights that a program holds already, read as a checkpoint is: transformers' `state_dict=`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ms_omni.errors import InputError

from .header import DTYPES, Entry

NAMES = {dtype: name for name, dtype in DTYPES.items()}
STACKED = ".experts.gate_up"  # no published name ends so


class StateReader:
    """What a `CheckpointReader` is for a folder, for arrays by name, in published or in our names.

    state: numpy arrays, tensors or parameters of MindSpore, or tensors of another library that have `numpy()`.
    Raises InputError for what is none of these.
    """

    folder = "the state_dict"

    def __init__(self, state: Mapping[str, Any]):
        if not isinstance(state, Mapping) or not state:
            raise InputError(f"state_dict is a {type(state).__name__}, expected a dict of arrays by name, with at least one")
        self.arrays = {str(name): _array(name, value) for name, value in state.items()}
        self.entries = {
            name: Entry(name, NAMES[array.dtype], array.shape, "", 0, array.nbytes) for name, array in self.arrays.items()
        }

    @property
    def is_converted(self) -> bool:
        """Whether the arrays stand under our parameter names."""
        return any(name.endswith(STACKED) for name in self.arrays)

    def storage(self, name: str) -> None:
        """None: none of them is codes."""

    def array(self, name: str) -> np.ndarray:
        """The array itself."""
        return self.arrays[name]

    def release(self, name: str) -> None:
        """Nothing to do: the arrays are the caller's."""


def _array(name, value) -> np.ndarray:
    if hasattr(value, "detach") and "bfloat16" in str(getattr(value, "dtype", "")):  # numpy does not know PyTorch's
        value = value.detach().float()
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    elif hasattr(value, "asnumpy"):
        value = value.asnumpy()
    array = np.asarray(value)
    if array.dtype not in NAMES:
        raise InputError(f"state_dict[{name!r}] has dtype {array.dtype}, expected one of {', '.join(map(str, NAMES))}")
    return array
