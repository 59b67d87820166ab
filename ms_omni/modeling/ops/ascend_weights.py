"""Weights in the layouts of the kernels of Ascend, packed on the host from the parameters of the model.

MindSpore leaves a parameter on the host until something on the device computes with it: one that is only packed takes no
memory of the card. Packed weights belong to no cell, so they are neither saved nor sharded.

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
from . import dispatch  # may be partially initialised, as it imports this module

_numbers = itertools.count()
_alive: "weakref.WeakSet[Packed]" = weakref.WeakSet()


class Packed:
    """A Parameter packed from others. make: one array from the arrays of the sources, in order, None for a source that is None. dtype: of the
    Parameter, where it is not that of the array.

    It follows `set_data` and training of the sources, but not values that are written in place, which cannot be detected.
    """

    def __init__(self, make: Callable[..., np.ndarray], *sources: Parameter | None, dtype: ms.Type | None = None) -> None:
        self.sources, self._dtype = sources, dtype
        self._make, self._present = make, [source for source in sources if source is not None]
        self._parameter = Parameter(self._packed_array(), name=f"packed{next(_numbers)}", requires_grad=False)
        _alive.add(self)

    def is_made_of(self, *sources: Parameter | None) -> bool:
        """Whether these are its sources, the same objects."""
        return len(sources) == len(self.sources) and all(a is b for a, b in zip(sources, self.sources))

    def current(self) -> Parameter:
        """Always the same Parameter, with the current numbers of the sources."""
        if self._state != self._source_state():
            self._parameter.set_data(self._packed_array())
        return self._parameter

    def _packed_array(self):
        arrays = [None if source is None else _of_host(source) for source in self.sources]
        array = np.ascontiguousarray(self._make(*arrays))
        packed = Tensor.from_numpy(array) if self._dtype is None else Tensor(array, dtype=self._dtype)
        self._state = self._source_state()
        self._buffers = [
            Tensor(source) for source in self._present
        ]  # the same memory, which is not reused while these are alive
        return packed

    def _source_state(self):
        return [source.data_ptr() for source in self._present], dispatch.Recorded.calls


def _of_host(parameter):
    """Its values; MindSpore 2.10 has no bfloat16 arrays for numpy 2."""
    return np.frombuffer(parameter.get_bytes(), array_type(parameter.dtype)).reshape(parameter.shape)


def array_type(dtype: ms.Type) -> np.dtype:
    """Of arrays of the host."""
    name = str(dtype).lower()
    return MODEL_TYPES[name] if name in MODEL_TYPES else np.dtype(name)


def packed(make: Callable[..., np.ndarray], *sources: Parameter | None, previous: Packed | None = None) -> Packed:
    """`previous` where it is packed from these sources, else a new one."""
    return previous if previous is not None and previous.is_made_of(*sources) else Packed(make, *sources)


def place(parameters: Iterable[Parameter]) -> None:
    """See `ops.place`: all but codes and the sources of packed weights, which stay on the host."""
    sources = {id(source) for packed in _alive for source in packed.sources}
    for parameter in parameters:
        if id(parameter) not in sources and parameter.dtype not in (ms.int8, ms.uint8):
            parameter.reshape(-1)  # launches no kernel, but MindSpore moves the parameter


def rows(*arrays: np.ndarray) -> np.ndarray:
    """For `Packed`: the arrays one below the other."""
    return np.concatenate(arrays)


def rounded(array: np.ndarray, dtype: ms.Type) -> Tensor:
    """A float32 array of the host in a type of the model's."""
    return Tensor.from_numpy(np.ascontiguousarray(array.astype(array_type(dtype))))


SIGNS = 0x88  # of both codes in a byte: xor converts between codes plus 8 and two's complement


def across(matrix: np.ndarray) -> np.ndarray:
    """`[out, in]` -> `[in, out]`."""
    return matrix.T


def pairs_of_outputs(packed: np.ndarray) -> np.ndarray:
    """uint8 `[out, in/2]` as `ms_omni.quantised` packs codes -> int8 `[in, out/2]`: two's complement, the even output in the low nibble."""
    columns = np.ascontiguousarray(packed.T) ^ SIGNS  # [in/2, out]
    nibbles = [part[:, 0::2] | part[:, 1::2] << 4 for part in (columns & 15, columns >> 4)]
    inputs = np.stack([part.reshape(-1, 16, part.shape[1]) for part in nibbles], 1)  # [in/32, 2, 16, out/2]
    return inputs.reshape(2 * len(columns), -1).view(np.int8)


def of_each(make: Callable[[np.ndarray], np.ndarray], stack: np.ndarray) -> np.ndarray:
    """`make` of every matrix of a stack, one after another, without large temporaries."""
    first = make(stack[0])
    results = np.empty((len(stack), *first.shape), first.dtype)
    for number, matrix in enumerate(stack):
        results[number] = make(matrix)
    return results


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
