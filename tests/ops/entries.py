"""The C++ entries without MindSpore's call: what stands in the place of `ops.Custom`, on numpy arrays of their own."""

import ctypes

import numpy as np

from ms_omni.arrays import MODEL_TYPES


def call(function, arrays) -> int:
    """What the entry returns for the arrays: its inputs, and its results behind them."""
    sizes, count = [(ctypes.c_int64 * x.ndim)(*x.shape) for x in arrays], len(arrays)
    return function(
        count,
        (ctypes.c_void_p * count)(*(x.ctypes.data for x in arrays)),
        (ctypes.c_int * count)(*(x.ndim for x in arrays)),
        (ctypes.c_void_p * count)(*map(ctypes.addressof, sizes)),
        (ctypes.c_char_p * count)(*(str(x.dtype).encode() for x in arrays)),
        None,
        None,
    )


class Custom:
    """In the place of `ops.Custom`: the C++ function on copies of the tensors, one `malloc` each."""

    def __init__(self, function, shape, dtype, kind):
        self.path, self.name = function.rsplit(":", 1)
        self.function, self.shape, self.dtype = getattr(ctypes.CDLL(self.path), self.name), shape, dtype

    def __call__(self, *tensors):
        from mindspore import Tensor

        inputs = list(map(_copy, tensors))
        shapes, kinds = self.shape(*(list(x.shape) for x in inputs)), self.dtype(*(x.dtype for x in tensors))
        pairs = zip(shapes, kinds) if isinstance(kinds, tuple) else [(shapes, kinds)]
        results = [np.empty(shape, str(kind).lower()) for shape, kind in pairs]
        returned = call(self.function, [*inputs, *results])
        if returned:
            raise RuntimeError(f"Return value from CPU AOT kernel({self.path})'s function({self.name}) is {returned}.")
        made = tuple(map(Tensor, results))
        return made if isinstance(kinds, tuple) else made[0]


def _copy(tensor):
    """The numbers as they are stored: `asnumpy` widens those of a parameter in bfloat16."""
    if str(tensor.dtype) != "BFloat16":
        return np.array(tensor.asnumpy(), order="C")
    tensor = tensor.contiguous()
    stored = ctypes.string_at(tensor.data_ptr(), tensor.nbytes)
    return np.frombuffer(bytearray(stored), MODEL_TYPES["bfloat16"]).reshape(tensor.shape)
