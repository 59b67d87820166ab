"""What the emulated primitives share: how a numpy function becomes a primitive, and how they refuse their arguments."""

import inspect

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

HALF = (ms.float16, ms.bfloat16)
FLOATS = (*HALF, ms.float32)


class Kernel(ops.Custom):
    """A numpy function as a primitive: `kernel(tensor, ...)`, in graphs and outside.

    compute: takes the arrays, float16 and bfloat16 widened to float32, and returns the results, which are rounded to their
    types once. `rounded`, where it takes that, rounds to the type of the first tensor, as a kernel that hands intermediate
    values from one unit to the next. shape and dtype infer the results from lists of sizes and from types of elements, and
    may refuse arguments, outside graphs check both of these together; compute may refuse values. A graph computes in float32 only:
    MindSpore hands numpy nothing else.
    """

    def __init__(self, inputs, compute, shape, dtype, check=None):
        def infer_types(*types):
            return dtype(*map(_element, types))

        super().__init__(_with_parameters(compute, inputs), shape, infer_types, "pyfunc")
        self._compute, self._shape, self._types, self._check = compute, shape, dtype, check
        self._rounds = "rounded" in inspect.signature(compute).parameters
        self.called = None  # the primitive that it stands in for, the names of its tensors, its other arguments

    def __call__(self, *tensors):
        """Outside graphs."""
        shapes = self._shape(*(list(tensor.shape) for tensor in tensors))
        types = self._types(*(tensor.dtype for tensor in tensors))
        if self._check is not None:
            self._check([list(tensor.shape) for tensor in tensors], [tensor.dtype for tensor in tensors])
        options = {"rounded": _rounding(tensors[0].dtype)} if self._rounds else {}
        results = self._compute(*map(_array, tensors), **options)
        if not isinstance(results, tuple):
            return _tensor(results, shapes, types)
        return tuple(map(_tensor, results, shapes, types))


def _with_parameters(compute, inputs):
    """compute under a signature of so many parameters: MindSpore counts them, those with a default too."""

    def call(*arrays):
        results = compute(*arrays)  # a graph copies memory as it lies
        return tuple(map(np.ascontiguousarray, results)) if isinstance(results, tuple) else np.ascontiguousarray(results)

    kind = inspect.Parameter.POSITIONAL_ONLY
    call.__signature__ = inspect.Signature([inspect.Parameter(f"input{i}", kind) for i in range(inputs)])
    return call


def _element(dtype):
    """The type of the elements: MindSpore's compiler hands over types of tensors."""
    return dtype.element_type() if isinstance(dtype, ms.TensorType) else dtype


def _array(tensor):
    return (tensor.astype(ms.float32) if tensor.dtype in HALF else tensor).asnumpy()


def _tensor(array, shape, dtype):
    if list(array.shape) != list(shape):
        raise AssertionError(f"computed {array.shape}, inferred {shape}")
    if array.size == 0:
        return ops.zeros(tuple(shape), ms.float32).astype(dtype)
    return Tensor(np.ascontiguousarray(array)).astype(dtype)


def _rounding(dtype):
    return lambda array: _array(Tensor(np.ascontiguousarray(array)).astype(dtype)) if dtype in HALF else array


def require(condition, message):
    """Raises `ValueError` with the message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def same_type(allowed, *types):
    """The one type of all arguments; raises `TypeError` if they differ or it is not allowed."""
    names = sorted({str(item) for item in types})
    if len(names) != 1 or types[0] not in allowed:
        raise TypeError(f"types {', '.join(names)}; expected one of {', '.join(str(item) for item in allowed)}")
    return types[0]
