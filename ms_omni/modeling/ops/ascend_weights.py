"""Weights as the kernels of Ascend want them, made on the host of the parameters that the model has.

MindSpore leaves a parameter on the host until something on the device computes with it: one that is read only here takes no
memory of the card. What is made belongs to no cell, so neither files nor plans know of it.

Codes have outputs last, but for matrices of 8 bits with a scale per output. A kernel multiplies with `(code + offset) * scale`, where what
is stored is `code * scale + offset` (`ms_omni.quantised`). So a stored zero point, an offset that is a whole number of scales, is exactly
an offset of the kernel's; others are rounded to its type.
"""

import itertools
import weakref
from collections.abc import Callable, Iterable

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor

from ...arrays import MODEL_TYPES
from ...quantised import Quantised, dequantised
from . import dispatch  # which may be importing this very module

_numbers = itertools.count()
_alive: "weakref.WeakSet[Packed]" = weakref.WeakSet()


class Packed:
    """A Parameter made of others. make: of the arrays of the sources, in order, one array; a source None is None. dtype: of the Parameter,
    where it is not that of the array.

    Values that are set and training are noticed; not a value that was assigned in its place, of which nothing is to be seen.
    """

    def __init__(self, make: Callable[..., np.ndarray], *sources: Parameter | None, dtype: ms.Type | None = None) -> None:
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


SIGNS = 0x88  # of both codes in a byte: what adds 8 to them, and makes two's complement of that


def across(matrix: np.ndarray) -> np.ndarray:
    """`[out, in]` -> `[in, out]`."""
    return matrix.T


def pairs_of_outputs(packed: np.ndarray) -> np.ndarray:
    """uint8 `[out, in/2]` as `ms_omni.quantised` packs codes -> int8 `[in, out/2]`: two's complement, the even output in the low half."""
    columns = np.ascontiguousarray(packed.T) ^ SIGNS  # [in/2, out]
    halves = [half[:, 0::2] | half[:, 1::2] << 4 for half in (columns & 15, columns >> 4)]
    inputs = np.stack([half.reshape(-1, 16, half.shape[1]) for half in halves], 1)  # [in/32, 2, 16, out/2]
    return inputs.reshape(2 * len(columns), -1).view(np.int8)


def of_each(make: Callable[[np.ndarray], np.ndarray], stack: np.ndarray) -> np.ndarray:
    """`make` of every matrix of a stack, one after another, so that nothing else large is made on the way."""
    first = make(stack[0])
    made = np.empty((len(stack), *first.shape), first.dtype)
    for number, matrix in enumerate(stack):
        made[number] = make(matrix)
    return made


def outputs_last(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Scales or offsets `[..., out, groups]` -> `[..., groups, out]`, or `[..., out]` where there is one group."""
    values = values.astype(dtype)
    return values[..., 0] if values.shape[-1] == 1 else values.swapaxes(-1, -2)


def in_scales(offsets: np.ndarray | None, scales: np.ndarray) -> np.ndarray:
    """Offsets as numbers of scales: what the kernels add to codes; None for zeros. All float32 `[..., out, groups]`."""
    scales = scales.astype(np.float32)
    zeros = np.zeros_like(scales)
    return zeros if offsets is None else np.divide(offsets.astype(np.float32), scales, out=zeros, where=scales != 0)


def numbers(codes: np.ndarray, scales: np.ndarray, offsets: np.ndarray | None, dtype: np.dtype) -> np.ndarray:
    """The matrix `[out, in]`, or of a stack of them `[E, in, out]`."""
    if codes.ndim == 2:
        return dequantised(Quantised(codes, scales, offsets)).astype(dtype)
    parts = zip(codes, scales, offsets if offsets is not None else itertools.repeat(None))
    return np.stack([dequantised(Quantised(*part)).T.astype(dtype) for part in parts])
