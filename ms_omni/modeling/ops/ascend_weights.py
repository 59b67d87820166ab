"""Weights as the kernels of Ascend want them, made on the host of the parameters that the model has.

MindSpore leaves a parameter on the host until something on the device computes with it: one that is read only here takes no
memory of the card. What is made belongs to no cell, so neither files nor plans know of it.
"""

import itertools
import weakref
from collections.abc import Callable, Iterable

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor

from ...arrays import MODEL_TYPES
from . import dispatch  # which may be importing this very module

_numbers = itertools.count()
_alive: "weakref.WeakSet[Packed]" = weakref.WeakSet()


class Packed:
    """A Parameter made of others. make: of the arrays of the sources, in order, one array; a source None is None. dtype: of the Parameter,
    where it is not that of the array.

    Values that are set and training are noticed; not a value that was assigned in its place, of which nothing is to be seen.
    """

    def __init__(self, make: Callable[..., np.ndarray], *sources: Parameter | None, dtype: ms.Type | None = None):
        self.sources, self._dtype = sources, dtype
        self._make, self._there = make, [source for source in sources if source is not None]
        self._parameter = Parameter(self._made(), name=f"packed{next(_numbers)}", requires_grad=False)
        _alive.add(self)

    def made_of(self, *sources: Parameter | None) -> bool:
        """Whether these are its sources, the same objects."""
        return len(sources) == len(self.sources) and all(a is b for a, b in zip(sources, self.sources))

    def current(self) -> Parameter:
        """Always the same Parameter, with the numbers that the sources have now."""
        if self._state != self._seen():
            self._parameter.set_data(self._made())
        return self._parameter

    def _made(self):
        arrays = [None if source is None else _of_host(source) for source in self.sources]
        made = np.ascontiguousarray(self._make(*arrays))
        made = Tensor.from_numpy(made) if self._dtype is None else Tensor(made, dtype=self._dtype)
        self._state = self._seen()
        self._held = [Tensor(source) for source in self._there]  # the same memory, whose address so stays theirs
        return made

    def _seen(self):
        return [source.data_ptr() for source in self._there], dispatch.Recorded.calls


def _of_host(parameter):
    """Its values; MindSpore 2.10 has no bfloat16 arrays for numpy 2."""
    return np.frombuffer(parameter.get_bytes(), array_type(parameter.dtype)).reshape(parameter.shape)


def array_type(dtype: ms.Type) -> np.dtype:
    """Of arrays of the host."""
    name = str(dtype).lower()
    return MODEL_TYPES[name] if name in MODEL_TYPES else np.dtype(name)


def packed(make: Callable[..., np.ndarray], *sources: Parameter | None, kept: Packed | None = None) -> Packed:
    """kept, where it is made of these sources; else a new one."""
    return kept if kept is not None and kept.made_of(*sources) else Packed(make, *sources)


def place(parameters: Iterable[Parameter]) -> None:
    """See `ops.place`: all but codes, and what something is made of, which stay on the host."""
    sources = {id(source) for packed in _alive for source in packed.sources}
    for parameter in parameters:
        if id(parameter) not in sources and parameter.dtype not in (ms.int8, ms.uint8):
            parameter.reshape(-1)  # no kernel, and yet MindSpore moves it


def rows(*arrays: np.ndarray) -> np.ndarray:
    """For `Packed`: the arrays one below the other."""
    return np.concatenate(arrays)


def rounded(array: np.ndarray, dtype: ms.Type) -> Tensor:
    """A float32 array of the host in a type of the model's."""
    return Tensor.from_numpy(np.ascontiguousarray(array.astype(array_type(dtype))))
