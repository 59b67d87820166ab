"""A C++ kernel as an operator of MindSpore: its results by its own signature (`signature.h`), its refusals in words."""

import ctypes
import functools
import re
from collections.abc import Callable

import mindspore as ms
from mindspore import Tensor, mint, ops

from ...errors import InputError
from . import build
from .cpu_table import Struct

_ROOM = 64  # numbers that describe the shapes of a kernel's results, more than there are
_RETURNED = re.compile(r"AOT kernel\((.+?)\)'s function\(ms_omni_\w+\) is 1\.")


def kernel(file: str, name: str, dtype: Callable = lambda x, *_: x, shape: Callable | None = None) -> Callable:
    """The kernel `name` of `<file>.cpp`; dtype: of the results, from those of the inputs; shape: as well, where the
    signature does not say. Calling it with arrays that do not fit one another raises `InputError`.
    """
    path = _path(file)
    return ops.Custom(f"{path}:ms_omni_{name}", shape or _results(ctypes.CDLL(path), name), dtype, "aot")


def structs(file: str, *names: str) -> list[Struct]:
    """Those of `<file>.cpp`."""
    return [Struct(ctypes.CDLL(_path(file)), name) for name in names]


@functools.cache
def lengths(*values: int) -> Tensor:
    """An array whose lengths are settings of a kernel that shapes depend on: MindSpore remembers the shape of a result by the shapes of
    the inputs.
    """
    return mint.zeros(values, dtype=ms.int32)


@functools.cache
def _path(file):
    return build.library(file)


def _results(library, name):
    function = getattr(library, f"ms_omni_{name}_results")
    function.restype = ctypes.c_int64

    @functools.lru_cache(maxsize=1024)
    def of(inputs):
        shapes = [(ctypes.c_int64 * len(shape))(*shape) for shape in inputs]
        ranks = (ctypes.c_int * len(shapes))(*map(len, shapes))
        described = (ctypes.c_int64 * _ROOM)()
        size = function(len(shapes), ranks, (ctypes.c_void_p * len(shapes))(*map(ctypes.addressof, shapes)), described)
        if size < 0:
            raise InputError(_reason(library))
        numbers, results = iter(described[:size]), []
        for rank in numbers:
            results.append([next(numbers) for _ in range(rank)])
        return results[0] if len(results) == 1 else tuple(results)

    return lambda *inputs: of(tuple(map(tuple, inputs)))


def refusal(error: BaseException) -> str | None:
    """Why a kernel refused its arguments while it ran, of the error that MindSpore makes of that; None for another error."""
    hit = _RETURNED.search(str(error))
    return hit and _reason(ctypes.CDLL(hit[1]))


def _reason(library):
    library.ms_omni_refusal.restype = ctypes.c_char_p
    return library.ms_omni_refusal().decode()
