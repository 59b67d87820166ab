"""Numpy arrays that also answer to what scripts for PyTorch and MindSpore call on a tensor."""

# pyright: reportReturnType=false, reportAttributeAccessIssue=false, reportAssignmentType=false
# (numpy's hints say ndarray of what `__array_function__` keeps in this class; `_define` adds methods)

from __future__ import annotations

import operator
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from .errors import InputError

DTYPES = {
    "half": "float16",
    "bfloat16": "float32",  # numpy has no bfloat16; the model rounds to its own dtype itself
    "float": "float32",
    "double": "float64",
    "char": "int8",
    "short": "int16",
    "int": "int32",
    "long": "int64",
    "bool": "bool",
}
MODEL_TYPES = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
"""Of parameters, by their names at MindSpore's."""
DEVICES = ("cpu", "cuda", "gpu", "npu", "xpu", "mps", "ascend", "meta")
Selected = namedtuple("Selected", ("values", "indices"))


def as_dtype(kind: Any) -> np.dtype:
    """The numpy dtype that a dtype of numpy, MindSpore or PyTorch, or its name, stands for; bfloat16 becomes float32.

    Raises:
        InputError: what is no dtype.
    """
    name = str(kind).lower().rpartition(".")[2].removesuffix("tensor") if not isinstance(kind, (type, np.dtype)) else None
    try:
        return np.dtype(DTYPES.get(name, name) if name is not None else kind)
    except TypeError:
        raise InputError(
            f"{kind!r} is no dtype; expected a dtype of numpy or MindSpore, or a name such as 'float32'"
        ) from None


def host_array(x: Any) -> np.ndarray:
    """A plain numpy array of an array-like; reads a MindSpore tensor back from the device."""
    return x.asnumpy() if hasattr(x, "asnumpy") else np.asarray(x)


def to_array(value: Any) -> np.ndarray | None:
    """Numpy view of an array or of a tensor (PyTorch's and MindSpore's, recognised by their methods), else None."""
    if isinstance(value, np.ndarray):
        return np.asarray(value)  # subclasses may give methods another meaning
    if hasattr(value, "detach") and hasattr(value, "numpy"):  # PyTorch: off the graph and the device first
        return value.detach().cpu().numpy()
    if hasattr(value, "asnumpy"):  # MindSpore
        return value.asnumpy()
    return None


class Size(int):
    """Number of elements, as numpy's `x.size`; called, the shape or one of its lengths, as PyTorch's `x.size(1)`."""

    shape: tuple[int, ...]

    def __call__(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def __reduce__(self) -> tuple:
        return int, (int(self),)


class Device(str):
    """Where an array lies, as text and with PyTorch's `.type` and `.index`."""

    type = "cpu"
    index = None  # of an accelerator; hides the search of str


class HostArray(np.ndarray):
    """A numpy array in the computer's memory with the methods of tensors: `.to`, `.cpu()`, `.size(1)`, `.float()`, ...

    Where numpy and PyTorch differ under one name, arguments decide: `x.size` is a number and `x.size(1)` a length,
    `view(2, -1)` reshapes and `view(np.int32)` reinterprets, `transpose(0, 1)` swaps two axes, `repeat(2, 1)` tiles,
    `squeeze(1)` leaves an axis that is longer, and a reduction given `dim=` is PyTorch's (`max(dim=1)` has values and
    indices, `std(dim=1)` is unbiased); numpy's own functions, and its keywords (`axis=`, `keepdims=`), are numpy's.
    Devices are taken and change nothing; there is no gradient; `bfloat16` is float32. `mindspore.Tensor(x)` makes a tensor.
    """

    requires_grad, grad, is_cuda, is_leaf = False, None, False, True

    @classmethod
    def of(cls, array: Any) -> HostArray:
        """The same data as an array of this class, without a copy."""
        return np.asarray(array).view(cls)

    def __array_function__(self, func: Callable, types: Any, args: Any, kwargs: Any) -> Any:
        return _own(func(*_plain(args), **_plain(kwargs)))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"'{type(self).__name__}' object has no attribute {name!r}: it is a numpy array with the usual methods of "
            "tensors; use numpy's functions, or mindspore.Tensor(x)"
        )

    # -- what and where ----------------------------------------------------------------------------------------------

    @property
    def size(self) -> Size:
        size = Size(super().size)
        size.shape = self.shape
        return size

    @property
    def device(self) -> Device:
        return Device("cpu")

    @property
    def data(self) -> HostArray:
        """Itself, as in `x.data.cpu()`; the buffer is `memoryview(x)`."""
        return self

    def dim(self) -> int:
        return self.ndim

    def numel(self) -> int:
        return int(self.size)

    def element_size(self) -> int:
        return self.itemsize

    def is_floating_point(self) -> bool:
        return self.dtype.kind == "f"

    # -- conversions -------------------------------------------------------------------------------------------------

    def asnumpy(self) -> np.ndarray:
        """The plain numpy array."""
        return self.view(np.ndarray)

    def numpy(self, *, force: bool = False) -> np.ndarray:
        """The plain numpy array."""
        return self.asnumpy()

    def detach(self, *_: Any, **__: Any) -> HostArray:
        """Itself: it lies in the computer's memory, in one piece or not, and carries no gradient."""
        return self

    cpu = cuda = npu = pin_memory = requires_grad_ = detach_ = detach

    def to(self, *targets: Any, dtype: Any = None, **_: Any) -> HostArray:
        """In the dtype that is named, or that the array or tensor given has; devices and other options change nothing.

        Raises:
            InputError: what is neither a device nor a dtype.
        """
        for target in (*targets, dtype):
            if target is None or isinstance(target, (bool, int)) or is_device(target):
                continue
            self = self.type(target if isinstance(target, type) else getattr(target, "dtype", target))
        return self

    def type(self, dtype: Any = None) -> Any:
        """In another dtype (itself if it has that one); without an argument the dtype's name."""
        return str(self.dtype) if dtype is None else self.astype(as_dtype(dtype), copy=False)

    def type_as(self, other: Any) -> HostArray:
        return self.to(other)

    def contiguous(self, *_: Any, **__: Any) -> HostArray:
        return self if self.flags.c_contiguous else self.clone()

    def clone(self, *_: Any, **__: Any) -> HostArray:
        return self.copy(order="C")

    def new_full(self, size: Any, fill_value: Any, dtype: Any = None, **_: Any) -> HostArray:
        return HostArray.of(np.full(size, fill_value, self.dtype if dtype is None else as_dtype(dtype)))

    def new_zeros(self, *size: Any, **kwargs: Any) -> HostArray:
        return self.new_full(size[0] if isinstance(size[0], (tuple, list)) else size, 0, **kwargs)

    def new_ones(self, *size: Any, **kwargs: Any) -> HostArray:
        return self.new_zeros(*size, **kwargs) + 1

    def copy_(self, other: Any, *_: Any) -> HostArray:
        self[...] = other
        return self

    def fill_(self, value: Any) -> HostArray:
        return self.copy_(value)

    def zero_(self) -> HostArray:
        return self.copy_(0)

    # -- shape -------------------------------------------------------------------------------------------------------

    def view(self, *shape: Any, **kwargs: Any) -> Any:
        if shape and isinstance(shape[0], (int, np.integer, tuple, list)):
            return self.reshape(*shape)
        if shape and not isinstance(shape[0], (type, np.dtype)):
            shape = (as_dtype(shape[0]), *shape[1:])
        return super().view(*shape, **kwargs)

    def unsqueeze(self, dim: int) -> HostArray:
        return np.expand_dims(self, dim)

    def squeeze(self, *dim: Any, axis: Any = None) -> HostArray:
        if not dim:
            return super().squeeze(axis)
        chosen = dim[0] if isinstance(dim[0], (tuple, list)) else dim
        return super().squeeze(tuple(d for d in chosen if self.shape[d] == 1))

    def flatten(self, start_dim: Any = 0, end_dim: int = -1, order: Any = "C") -> HostArray:
        if isinstance(start_dim, str) or not self.ndim:
            return super().flatten(start_dim or order)  # pyright: ignore[reportArgumentType]
        start, end = start_dim % self.ndim, end_dim % self.ndim
        if (start, end) == (0, self.ndim - 1):
            return super().flatten(order)
        return self.reshape(*self.shape[:start], -1, *self.shape[end + 1 :])

    def permute(self, *dims: Any) -> HostArray:
        return super().transpose(*dims)

    def transpose(self, *axes: Any) -> HostArray:
        return self.swapaxes(*axes) if len(axes) == 2 else super().transpose(*axes)

    def t(self) -> HostArray:
        return self.T

    def expand(self, *sizes: Any) -> HostArray:
        sizes = sizes[0] if sizes and isinstance(sizes[0], (tuple, list)) else sizes
        known = (1,) * (len(sizes) - self.ndim) + self.shape
        return np.broadcast_to(self, [old if new == -1 else new for old, new in zip(known, sizes)], subok=True)

    def expand_as(self, other: Any) -> HostArray:
        return self.expand(*other.shape)

    def repeat(self, *counts: Any, **kwargs: Any) -> HostArray:
        if kwargs:  # numpy's function, or a script that writes `axis=`
            return super().repeat(*counts, **kwargs)
        counts = counts[0] if isinstance(counts[0], (tuple, list)) else counts
        return np.tile(self, counts)

    def repeat_interleave(self, repeats: Any, dim: int | None = None) -> HostArray:
        return super().repeat(repeats, dim)

    def split(self, size: Any, dim: int = 0) -> tuple:
        """Parts of `size` entries (the last may be shorter), or of the sizes given."""
        length = self.shape[dim]
        bounds = range(size, length, size) if isinstance(size, (int, np.integer)) else np.cumsum(size)[:-1]
        return tuple(np.split(self, list(bounds), axis=dim))

    def chunk(self, chunks: int, dim: int = 0) -> tuple:
        return self.split(-(-self.shape[dim] // chunks), dim)

    def unbind(self, dim: int = 0) -> tuple:
        return tuple(np.moveaxis(self, dim, 0))

    def select(self, dim: int, index: int) -> HostArray:
        return self.take(index, axis=dim)

    def narrow(self, dim: int, start: int, length: int) -> HostArray:
        return self.take(range(start, start + length), axis=dim)

    def flip(self, *dims: Any, **kwargs: Any) -> HostArray:
        dims = kwargs.get("dims", dims)
        return np.flip(self, tuple(dims[0] if isinstance(dims[0], (tuple, list)) else dims))

    # -- values ------------------------------------------------------------------------------------------------------

    def std(self, *args: Any, **kwargs: Any) -> Any:
        return _reduce(super().std, args, _unbiased(kwargs))

    def var(self, *args: Any, **kwargs: Any) -> Any:
        return _reduce(super().var, args, _unbiased(kwargs))

    def max(self, *args: Any, **kwargs: Any) -> Any:
        return self._extreme(super().max, self.argmax, args, kwargs)

    def min(self, *args: Any, **kwargs: Any) -> Any:
        return self._extreme(super().min, self.argmin, args, kwargs)

    def _extreme(self, values: Callable, indices: Callable, args: Any, kwargs: Any) -> Any:
        if len(args) == 1 and hasattr(args[0], "shape"):  # x.max(other)
            return (np.maximum if values.__name__ == "max" else np.minimum)(self, args[0])
        if "dim" not in kwargs:
            return _reduce(values, args, kwargs)
        return Selected(_reduce(values, args, kwargs), indices(**kwargs))

    def softmax(self, dim: int = -1, **_: Any) -> HostArray:
        weights = np.exp(self - self.max(axis=dim, keepdims=True))
        return weights / weights.sum(axis=dim, keepdims=True)

    def log_softmax(self, dim: int = -1, **_: Any) -> HostArray:
        moved = self - self.max(axis=dim, keepdims=True)
        return moved - np.log(np.exp(moved).sum(axis=dim, keepdims=True))

    def sort(self, *args: Any, **kwargs: Any) -> Any:
        """In place, as numpy's; given dim= or descending=, PyTorch's values and indices."""
        if not kwargs.keys() & {"dim", "descending"}:
            return super().sort(*args, **kwargs)
        order = self.argsort(*args, **kwargs)
        return Selected(np.take_along_axis(self, order, kwargs.get("dim", -1)), order)

    def argsort(self, *args: Any, **kwargs: Any) -> HostArray:
        if not kwargs.keys() & {"dim", "descending"}:
            return super().argsort(*args, **kwargs)
        keys = -self if kwargs.get("descending") else self
        return np.argsort(keys, axis=kwargs.get("dim", -1), kind="stable")

    def nonzero(self, *, as_tuple: bool = True) -> Any:
        """Indices of what is not 0: one array per axis as numpy's, or with as_tuple=False `[n, ndim]`."""
        found = _own(super().nonzero())
        return found if as_tuple else np.stack(found, -1)

    def equal(self, other: Any) -> bool:
        return np.array_equal(self, other)

    def topk(self, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Selected:
        order = np.argsort(-self if largest else self, axis=dim, kind="stable").take(range(k), axis=dim)
        return Selected(np.take_along_axis(self, order, dim), order)

    def clamp(self, min: Any = None, max: Any = None) -> HostArray:
        return np.clip(self, min, max)

    def masked_fill(self, mask: Any, value: Any) -> HostArray:
        filled = self.clone()
        filled[np.broadcast_to(np.asarray(mask, bool), self.shape)] = value
        return filled

    def gather(self, dim: int, index: Any) -> HostArray:
        return np.take_along_axis(self, np.asarray(index), dim)

    def index_select(self, dim: int, index: Any) -> HostArray:
        return self.take(np.asarray(index), axis=dim)


def _plain(value: Any) -> Any:
    """Arguments of numpy's functions as numpy knows them: it calls methods of its own by position."""
    if type(value) is dict:
        return {name: _plain(item) for name, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_plain(item) for item in value)
    return value.asnumpy() if isinstance(value, HostArray) else value


def _own(result: Any) -> Any:
    """Results of numpy's functions stay of the class."""
    if type(result) in (tuple, list):
        return type(result)(_own(item) for item in result)
    return result.view(HostArray) if type(result) is np.ndarray else result


def is_device(target: Any) -> bool:
    """Whether this is what PyTorch or MindSpore call a device: "cuda:0", "cpu", ..."""
    return str(target).lower().partition(":")[0] in DEVICES


def _reduce(method: Callable, args: tuple, kwargs: dict) -> Any:
    """numpy's reduction with PyTorch's names of its arguments."""
    if "dim" in kwargs:
        dim = kwargs.pop("dim")
        kwargs["axis"] = tuple(dim) if isinstance(dim, list) else dim
    if "keepdim" in kwargs:
        kwargs["keepdims"] = kwargs.pop("keepdim")
    if kwargs.get("dtype") is not None:
        kwargs["dtype"] = as_dtype(kwargs["dtype"])
    return HostArray.of(method(*args, **kwargs))


def _unbiased(kwargs: dict) -> dict:
    """PyTorch's deviation divides by n - 1, numpy's by n."""
    named = {"dim", "keepdim", "unbiased", "correction"} & kwargs.keys()
    if named:
        kwargs["ddof"] = kwargs.pop("correction", int(kwargs.pop("unbiased", True)))
    return kwargs


def _define() -> None:
    """The methods that differ in a name only."""

    def cast(dtype: str) -> Callable:
        return lambda self, *_, **__: self.type(dtype)

    def reduction(name: str) -> Callable:
        plain = getattr(np.ndarray, name)
        return lambda self, *args, **kwargs: _reduce(plain.__get__(self), args, kwargs)

    def function(work: Callable) -> Callable:
        return lambda self, *args, **kwargs: work(self, *args, **kwargs)

    def in_place(method: Callable) -> Callable:
        return lambda self, *args, **kwargs: self.copy_(method(self, *args, **kwargs))

    methods = {name: cast(dtype) for name, dtype in DTYPES.items()}
    methods |= {name: reduction(name) for name in ("sum", "mean", "prod", "any", "all", "argmax", "argmin", "cumsum")}
    names = ("eq", "ne", "lt", "le", "gt", "ge", "add", "sub", "mul", "matmul", "neg")
    methods |= {name: function(getattr(operator, name)) for name in names} | {"div": function(operator.truediv)}
    names = (
        "abs",
        "exp",
        "log",
        "sqrt",
        "square",
        "sin",
        "cos",
        "tanh",
        "isnan",
        "isinf",
        "isfinite",
        "floor",
        "ceil",
        "pow",
    )
    names += ("logical_not", "allclose")
    methods |= {name: function(getattr(np, {"pow": "power"}.get(name, name))) for name in names}
    for name, method in methods.items():
        method.__name__, method.__qualname__ = name, f"HostArray.{name}"
        setattr(HostArray, name, method)
    for name in ("add", "sub", "mul", "div", "clamp", "masked_fill", "abs", "neg"):
        setattr(HostArray, f"{name}_", in_place(getattr(HostArray, name)))
    HostArray.ndimension, HostArray.nelement = HostArray.dim, HostArray.numel


_define()
