"""The model in bfloat16 on CPU, outside graphs: kernels that MindSpore does not have for it compute in float32 and round
their results once, as a kernel of Ascend does.
"""

import functools
import sys
from collections.abc import Callable

import mindspore as ms
from mindspore import Tensor, mint, ops

MISSING = ("Select CPU operator", "does not support this kernel data type", "kernel data type", "Unsupported data type")
OPERATORS = (
    *("__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__", "__truediv__", "__rtruediv__", "__neg__"),
    *("__lt__", "__le__", "__gt__", "__ge__", "__eq__", "__getitem__", "sum", "mean"),
)


def install() -> Callable[[], None]:
    """Until what it returns is called. Everything that is computed meanwhile is to be outside graphs."""
    ms.runtime.launch_blocking()  # a missing kernel is reported by the call that wants it
    exchanged = [(Tensor, name, getattr(Tensor, name)) for name in OPERATORS]
    for module_name, module in list(sys.modules.items()):
        if module_name.startswith("ms_omni.modeling.ops."):
            classes = [item for item in vars(module).values() if isinstance(item, type) and item.__module__ == module_name]
            exchanged += [(o, n, v) for o in (module, *classes) for n, v in vars(o).items() if _computes(v)]
    for owner, name, value in exchanged:
        setattr(owner, name, _Namespace(value) if value in (mint, ops) else _widened(value))

    def undo():
        for owner, name, value in exchanged:
            setattr(owner, name, value)

    return undo


def _computes(value):
    return value is mint or value is ops or isinstance(value, ops.Primitive)


class _Namespace:
    """`mint` or `ops` with functions that know bfloat16."""

    def __init__(self, namespace):
        self.namespace = namespace

    def __getattr__(self, name):
        value = getattr(self.namespace, name)
        if isinstance(value, type(sys)):
            return _Namespace(value)
        return _widened(value) if callable(value) else value


@functools.cache
def _widened(function):
    missing = []

    def call(*args, **named):
        if not _knows_bfloat16((*args, *named.values())):
            return function(*args, **named)
        if not missing:
            try:
                return function(*args, **named)
            except (RuntimeError, TypeError) as error:
                if not any(text in str(error) for text in MISSING):
                    raise
                missing.append(function)
        named = {name: _exchanged(value, ms.bfloat16, ms.float32) for name, value in named.items()}
        return _exchanged(function(*_exchanged(args, ms.bfloat16, ms.float32), **named), ms.float32, ms.bfloat16)

    return call


def _knows_bfloat16(values):
    """Whether one of the arguments is of that type, or is that type."""
    return any(
        _knows_bfloat16(value)
        if isinstance(value, (tuple, list))
        else ms.bfloat16 is value or getattr(value, "dtype", None) == ms.bfloat16
        for value in values
    )


def _exchanged(value, old, new):
    if isinstance(value, Tensor):
        return value.astype(new) if value.dtype == old else value
    if isinstance(value, (tuple, list)):
        return type(value)(_exchanged(item, old, new) for item in value)
    return new if value is old else value
