"""What the emulated kernels share: how a numpy function becomes a primitive, and how they refuse their arguments."""

import mindspore as ms
from mindspore import ops

FLOATS = (ms.float16, ms.bfloat16, ms.float32)


def primitive(function, shape, dtype):
    """A MindSpore primitive around a numpy function; `shape` and `dtype` infer its results and may refuse arguments."""
    return ops.Custom(function, shape, lambda *types: dtype(*map(_element, types)), "pyfunc")


def _element(dtype):
    """The type of the elements: outside graphs MindSpore hands over types of tensors."""
    return dtype.element_type() if isinstance(dtype, ms.TensorType) else dtype


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
