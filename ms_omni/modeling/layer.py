"""The base of all cells, and of those that own parameters: how parameters are created, filled from a checkpoint, and stored."""

import weakref
from collections.abc import Container, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, context, nn
from mindspore.common.initializer import initializer
from mindspore.nn.utils import no_init_parameters

from ..arrays import MODEL_TYPES
from ..errors import InputError
from ..locking import exclusive
from ..quantised import Quantised, Storage
from . import ops

_dtype = ms.float32
_lazy = _exact = False
_depth = 0  # nested calls of cells


@contextmanager
def lazy_parameters(dtype: ms.Type) -> Iterator[None]:
    """Inside this context cells are built with parameters of `dtype` that own no memory until they are filled."""
    global _dtype, _lazy
    before, _dtype, _lazy = (_dtype, _lazy), dtype, True
    try:
        with no_init_parameters():
            yield
    finally:
        _dtype, _lazy = before


@contextmanager
def exact_parameters() -> Iterator[None]:
    """Inside this context, or a function under it as a decorator, cells are built with parameters in float32, whatever the rest of a
    model is computed in; they stay so (`keeps_dtype`).
    """
    global _dtype, _exact
    before, _dtype, _exact = (_dtype, _exact), ms.float32, True
    try:
        yield
    finally:
        _dtype, _exact = before


def is_lazy() -> bool:
    """Whether cells are being built that are filled later, from a checkpoint or by the model that they are a part of.

    MindSpore's `no_init_parameters`, which a caller may use, sets this attribute of the class.
    """
    return _lazy or not getattr(Parameter, "init_param", True)


def parameter(*shape: int, start: float | None = None) -> Parameter:
    """A parameter of the current dtype. start: its value in an untrained model (see `layers.initialise`): None for small
    random numbers, else this number.
    """
    new = Parameter(initializer("zeros", shape, _dtype))
    new.start, new.keeps_dtype = start, _exact
    return new


class Trainable(nn.Cell):
    """A cell whose weights, before they are trained, are widened to the dtype that is computed in."""

    def set_train(self, mode: bool = True) -> Any:
        if mode:
            widen(self)
        return super().set_train(mode)

    def trainable_params(self, recurse: bool = True) -> list[Parameter]:
        widen(self)
        return super().trainable_params(recurse)


class Cell(Trainable):
    """A cell that runs operator by operator, also where MindSpore's context is in graph mode: graphs are compiled
    explicitly (`steps.py`), and the rest reads arrays on the host, which a graph cannot. One thread at a time.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        global _depth
        with exclusive:
            _depth += 1
            try:
                if _depth == 1 and ops.recording():
                    check_trainable(self)
                    widen(self)
                if context._get_mode() == context.GRAPH_MODE:
                    return self._run_construct(*args, **kwargs)
                return super().__call__(*args, **kwargs)
            except Exception as error:
                raise explained(error) from None
            finally:
                _depth -= 1

    def gathered_weights(self) -> AbstractContextManager:
        """A context in which the weights of all parts are gathered, for callers of those parts."""
        return nullcontext()


def explained(error: Exception) -> Exception:
    """`InputError` with the reason why a kernel refused its arguments, or the error as it is."""
    ops.stop_recording()
    reason = ops.refusal(error)
    return InputError(reason) if reason else error


def has_hooks(cell: nn.Cell) -> bool:
    """Whether forward hooks are registered on this cell or a part of it."""
    if cell._lazy_forward_pre_hook or cell._lazy_forward_hook:
        return True
    return any(has_hooks(part) for part in cell._cells.values() if part is not None)


def identity(x: Any) -> Any:
    """x: the default where parallelism puts a collective."""
    return x


class CellsOnly(Exception):
    """A fused operator cannot read or compute this: the cells themselves run."""


BFLOAT16 = "bfloat16"
"""A storage beside those of `ms_omni.quantised`: bfloat16 as in the file, widened where it is computed with."""


class Layer(Cell):
    """A cell that owns parameters and knows how they are stored: other code reads them through `operands` alone.

    Each kind returns from `operands` what its operator takes, for every storage.
    source: reads a parameter; the identity, or a gather where a plan shards it. None stays None.
    stable: see `ops`. matrices: names of the parameters that `store` can exchange; coded: of those stored as codes with scales;
    bfloat16: of those stored in bfloat16 beside another dtype that is computed in.
    """

    stable = False
    matrices: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.source = identity
        self.computed, self.coded, self.bfloat16 = _dtype, (), ()
        self.as_computed = True  # neither coded nor bfloat16; an attribute, as graphs read it

    def store(self, storage: "Storage | str | None", *names: str) -> None:
        """Exchanges matrices (by default all) that are not filled yet and are then filled by name: codes under the name of the
        matrix, with `NAME_scale` and, for storages with offsets, `NAME_offset`.

        storage: a `Storage`; `BFLOAT16`; None: the dtype that is computed in, which does not change. Raises `InputError` for groups
        that do not divide.
        """
        for name in names or self.matrices:
            if name in self.coded:
                raise ValueError(f"{name} is stored as codes already")
            old, outer = getattr(self, name), name not in self.bfloat16
            if storage is None and outer:
                continue
            if not isinstance(storage, Storage):
                self.bfloat16 = tuple(other for other in self.bfloat16 if other != name) + ((name,) if storage else ())
                setattr(
                    self, name, unfilled(old, old.shape, ms.bfloat16 if storage else self.computed, created=self.computed)
                )
                if storage:
                    getattr(self, name).clone = partial(_cloned, weakref.ref(self), name)
                continue
            codes, scales = storage.shapes(self.outputs_first(name))
            self.coded, self.bfloat16 = (*self.coded, name), tuple(other for other in self.bfloat16 if other != name)
            setattr(self, name, unfilled(old, codes, ms.int8 if storage.bits == 8 else ms.uint8))
            setattr(self, f"{name}_scale", unfilled(old, scales, getattr(ms, storage.scale), "_scale"))
            offset = storage.offset and unfilled(old, scales, getattr(ms, storage.offset), "_offset")
            setattr(self, f"{name}_offset", offset)
        self.as_computed = not (self.coded or self.bfloat16)

    def outputs_first(self, name: str) -> tuple[int, ...]:
        """Shape `[..., out, in]` of a matrix."""
        return tuple(getattr(self, name).shape)

    def widen(self, *names: str) -> None:
        """Widens matrices (by default those that are to be trained) that are stored in bfloat16 to the dtype that is computed in. They
        stay the same Parameters, which an optimizer may hold already.
        """
        for name in self.bfloat16:
            parameter = getattr(self, name)
            if name in names or (not names and parameter.requires_grad):
                self.bfloat16 = tuple(other for other in self.bfloat16 if other != name)
                parameter.set_dtype(self.computed)
                for own in ("asnumpy", "clone"):
                    vars(parameter).pop(own, None)
                parameter.keeps_dtype = False
        self.as_computed = not (self.coded or self.bfloat16)

    def quantised(self, name: str) -> Quantised:
        """The parameters of a matrix that is stored as codes."""
        return Quantised(*(getattr(self, name + end) for end in ("", "_scale", "_offset")))

    def operands(self) -> tuple:
        """The parameters as the operator takes them."""
        return (self.source(self.weight),)

    @property
    def in_place(self) -> bool:
        """Whether the parameters are whole in this process, and its sums may have any order."""
        return self.source is identity and not self.stable

    def stored(self, shared: bool = False) -> tuple:
        """`operands` for a fused operator, which stores their addresses; shared: also of a layer that is sharded over ranks. Raises
        `CellsOnly`.
        """
        if not (self.in_place or (shared and self.source is identity and not self.stable)):
            raise CellsOnly(type(self).__name__)
        return self.operands()

    @property
    def dtype(self) -> ms.Type:
        """The dtype that is computed in, however the parameters are stored."""
        return self.weight.dtype if self.as_computed else self.computed

    @property
    def itemsize(self) -> int:
        """Bytes of a number of that."""
        return 4 if self.dtype == ms.float32 else 2


def unfilled(
    old: Parameter, shape: tuple[int, ...], dtype: ms.Type, end: str = "", created: ms.Type | None = None
) -> Parameter:
    """A parameter that owns no memory until it is filled, instead of another; it keeps its dtype, and codes cannot be trained.

    created: the dtype that it is created with. MindSpore returns zeros of that dtype as its gradient where a loss does not depend on it.
    """
    with no_init_parameters():
        new = Parameter(initializer("zeros", shape, created or dtype), name=old.name + end)
    if new.dtype != dtype:
        new.set_dtype(dtype)
    new.requires_grad = old.requires_grad and not end and dtype not in (ms.int8, ms.uint8)
    new.start, new.keeps_dtype, new.created = getattr(old, "start", None), True, created
    if dtype == ms.bfloat16:
        new.asnumpy = partial(_widened_array, weakref.ref(new))
    return new


def _widened_array(parameter):
    """`asnumpy` of a parameter in bfloat16: numpy has no such dtype, and MindSpore's does not work with every numpy."""
    return parameter().astype(ms.float32).asnumpy()


def _cloned(layer, name, init="same"):
    """`clone` of a parameter stored in bfloat16: widened first, as optimizers create their moments by cloning."""
    layer().widen(name)
    return getattr(layer(), name).clone(init)


def exchange(cell: nn.Cell, storages: Mapping[str, "Storage | str"]) -> None:
    """`Layer.store` of the layers of a lazily built cell, by `{name of the parameter: storage}`."""
    for path, layer in layers_in(cell):
        for leaf in layer.matrices:
            if path + leaf in storages:
                layer.store(storages[path + leaf], leaf)


def storable(cell: nn.Cell) -> set[str]:
    """Names of the parameters that `exchange` can store: matrices, except for those that keep their dtype."""
    names = ((path, layer, leaf) for path, layer in layers_in(cell) for leaf in layer.matrices)
    return {path + leaf for path, layer, leaf in names if not getattr(getattr(layer, leaf), "keeps_dtype", False)}


def layers_in(cell: nn.Cell) -> list[tuple[str, "Layer"]]:
    """All layers of a cell, itself included, each with the prefix of the names of its parameters."""
    return [(f"{path}.".lstrip("."), layer) for path, layer in cell.cells_and_names() if isinstance(layer, Layer)]


def widen(cell: nn.Cell, names: Container[str] | None = None) -> None:
    """`Layer.widen` of all layers of a cell; names: of the parameters, by default of those that are to be trained."""
    for path, layer in layers_in(cell):
        own = layer.bfloat16 if names is None else [name for name in layer.bfloat16 if path + name in names]
        if own:
            layer.widen(*([] if names is None else own))


def is_coded(cell: nn.Cell) -> bool:
    """Whether some of its matrices are stored as codes."""
    return any(layer.coded for _, layer in layers_in(cell))


def coded_names(cell: nn.Cell) -> set[str]:
    """Names of the parameters that are codes, their scales or their offsets."""
    return {
        path + name + end for path, layer in layers_in(cell) for name in layer.coded for end in ("", "_scale", "_offset")
    }


def check_trainable(cell: nn.Cell) -> None:
    """Raises `InputError` for a cell that is to be trained, but has weights stored as codes. A frozen one passes gradients on."""
    for path, layer in layers_in(cell):
        for name in layer.coded:
            if not any(parameter.requires_grad for parameter in cell.get_parameters()):
                return
            raise InputError(
                f"{path}{name} is stored in {layer.quantised(name).bits} bits, of which there is no gradient; to train, load the "
                "checkpoint that it was created from, without quantize=, or freeze this model (requires_grad_(False)) and train what is "
                "in front of it or behind"
            )


def filled(old: Parameter, array: np.ndarray, trained: bool = True) -> Parameter:
    """A parameter of these numbers instead of another. trained: whether it may be trained, if the other was."""
    new = unfilled(old, array.shape, old.dtype, created=getattr(old, "created", None))
    new.keeps_dtype = getattr(old, "keeps_dtype", False)
    new.requires_grad = new.requires_grad and trained
    kind = str(old.dtype).lower()
    if "clone" in vars(old):
        new.clone = old.clone
    new.set_data(Tensor.from_numpy(array.astype(MODEL_TYPES.get(kind, array.dtype))))
    return new
