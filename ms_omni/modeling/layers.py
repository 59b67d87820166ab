"""The small layers that every part of the model shares, and the base of all that own parameters."""

from contextlib import contextmanager, nullcontext

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, context, nn
from mindspore.common.initializer import initializer
from mindspore.nn.utils import no_init_parameters

from ..errors import InputError
from ..locking import exclusive
from ..quantised import Quantised, Storage
from . import ops

_dtype = ms.float32
_lazy = _exact = False


@contextmanager
def lazy_parameters(dtype):
    """Inside this context cells are built with parameters of `dtype` that own no memory until they are filled."""
    global _dtype, _lazy
    before, _dtype, _lazy = (_dtype, _lazy), dtype, True
    try:
        with no_init_parameters():
            yield
    finally:
        _dtype, _lazy = before


@contextmanager
def exact_parameters():
    """Inside this context, or a function under it as a decorator, cells are built with parameters in float32, whatever the rest of a
    model is computed in; they keep that (`keeps_dtype`).
    """
    global _dtype, _exact
    before, _dtype, _exact = (_dtype, _exact), ms.float32, True
    try:
        yield
    finally:
        _dtype, _exact = before


def is_lazy():
    """Whether cells are being built that somebody else fills: a checkpoint, or the model that they are a part of.

    A caller may say so himself, by MindSpore's `no_init_parameters`, which sets this attribute of the class.
    """
    return _lazy or not getattr(Parameter, "init_param", True)


def parameter(*shape, start=None):
    """A parameter of the dtype in force. start: what it holds in a model from nothing (see `initial.py`): None for small
    random numbers, else this number.
    """
    new = Parameter(initializer("zeros", shape, _dtype))
    new.start, new.keeps_dtype = start, _exact
    return new


class Cell(nn.Cell):
    """A cell that runs operator by operator, also where MindSpore's context says graph mode: what becomes a graph here is
    compiled by name (`steps.py`), and the rest reads arrays on the host, which a graph cannot. One thread at a time.
    """

    def __call__(self, *args, **kwargs):
        with exclusive:
            try:
                if context._get_mode() == context.GRAPH_MODE:
                    return self._run_construct(*args, **kwargs)
                return super().__call__(*args, **kwargs)
            except Exception as error:
                raise explained(error) from None

    def held(self):
        """A context in which the weights of all parts are at hand, for whoever calls those one after another."""
        return nullcontext()


def explained(error: Exception) -> Exception:
    """What a kernel refused, in words, or the error as it is."""
    ops.stop_recording()
    reason = ops.refusal(error)
    return InputError(reason) if reason else error


def identity(x):
    """x: the default of the places where parallelism puts a collective."""
    return x


class CellsOnly(Exception):
    """What a fused operator cannot read or do: the cells themselves run."""


KEPT = "bfloat16"
"""A storage beside those of `ms_omni.quantised`: the numbers of a file as they are, widened where they are computed with."""


class Layer(Cell):
    """A cell that owns parameters and knows how they are stored: everybody else asks it, and nobody reads them.

    Each kind says in `operands` what its operator takes; another storage is another `operands`.
    source: where a parameter is read; the identity unless a plan keeps it in pieces, then a gather. None stays None.
    stable: see `ops`. matrices: names of the parameters that `store` can exchange; coded: of those that are codes with scales.
    """

    stable = False
    matrices: tuple[str, ...] = ()

    def __init__(self):
        super().__init__()
        self.source = identity
        self.computed, self.coded, self.kept = _dtype, (), ()

    def store(self, storage: "Storage | str | None", *names: str) -> None:
        """Exchanges matrices (by default all) that nobody has filled yet, which are then filled by name: codes under the name of the
        matrix, with `NAME_scale` and, where there are some, `NAME_offset`.

        storage: a `Storage`; `KEPT`; None: the dtype that is computed in. What is computed stays the same dtype. Raises `InputError`
        for groups that do not divide.
        """
        for name in names or self.matrices:
            if name in self.coded:
                raise ValueError(f"{name} is stored as codes already")
            old, outer = getattr(self, name), name not in self.kept
            if storage is None and outer:
                continue
            if not isinstance(storage, Storage):
                self.kept = tuple(kept for kept in self.kept if kept != name) + ((name,) if storage else ())
                setattr(self, name, _unfilled(old, old.shape, ms.bfloat16 if storage else self.computed))
                continue
            codes, scales = storage.shapes(self.outputs_first(name))
            self.coded, self.kept = (*self.coded, name), tuple(kept for kept in self.kept if kept != name)
            setattr(self, name, _unfilled(old, codes, ms.int8 if storage.bits == 8 else ms.uint8))
            setattr(self, f"{name}_scale", _unfilled(old, scales, getattr(ms, storage.scale), "_scale"))
            offset = storage.offset and _unfilled(old, scales, getattr(ms, storage.offset), "_offset")
            setattr(self, f"{name}_offset", offset)

    def outputs_first(self, name: str) -> tuple[int, ...]:
        """Shape `[..., out, in]` of a matrix."""
        return tuple(getattr(self, name).shape)

    def matrix(self, name: str):
        """A matrix as operators take it: a tensor, or a `Quantised`."""
        if name not in self.coded:
            return self.source(getattr(self, name))
        if ops.recording():
            raise InputError(
                f"{getattr(self, name).name} is stored in {self.quantised(name).bits} bits, of which there is no gradient; to "
                "train, load the checkpoint that it was made from, without quantize="
            )
        return Quantised(*map(self.source, self.quantised(name)))

    def quantised(self, name: str) -> Quantised:
        """The parameters of a matrix that is stored as codes."""
        return Quantised(*(getattr(self, name + end) for end in ("", "_scale", "_offset")))

    def operands(self) -> tuple:
        """Its parameters as its operator takes them."""
        return (self.source(self.weight),)

    @property
    def in_place(self) -> bool:
        """Whether the parameters lie here as a whole, and its sums may have any order."""
        return self.source is identity and not self.stable

    def stored(self, shared: bool = False) -> tuple:
        """`operands` for a fused operator, which reads them where they lie, now and later; shared: also of a layer that ranks share,
        each of which has a part. Raises `CellsOnly`.
        """
        if not (self.in_place or (shared and self.source is identity and not self.stable)):
            raise CellsOnly(type(self).__name__)
        return self.operands()

    @property
    def dtype(self) -> ms.Type:
        """What is computed in, however the parameters are stored."""
        return self.computed if self.coded or self.kept else self.weight.dtype

    @property
    def itemsize(self) -> int:
        """Bytes of a number of that."""
        return 4 if self.dtype == ms.float32 else 2


def _unfilled(old, shape, dtype, end=""):
    """A parameter that owns no memory until it is filled, in the place of another; it keeps its dtype, and only numbers that are
    computed with as they are can be trained.
    """
    with no_init_parameters():
        new = Parameter(initializer("zeros", shape, dtype), name=old.name + end)
    new.requires_grad = old.requires_grad and not end and dtype not in (ms.int8, ms.uint8)
    new.start, new.keeps_dtype = getattr(old, "start", None), True
    return new


def exchange(cell: nn.Cell, choose) -> dict[str, "Storage | str"]:
    """Lets every layer of a lazily built cell store its matrices as `choose(name of the parameter)` says (see `Layer.store`), but for
    those that keep their dtype; returns what was chosen by name.
    """
    chosen = {}
    for path, layer in cell.cells_and_names():
        for leaf in layer.matrices if isinstance(layer, Layer) else ():
            name = f"{path}.{leaf}".lstrip(".")
            storage = None if getattr(getattr(layer, leaf), "keeps_dtype", False) else choose(name)
            if storage is not None:
                layer.store(storage, leaf)
                chosen[name] = storage
    return chosen


class Matrix(Layer):
    """A layer with a weight `[N, D]`, which can be the head that makes logits. size: the N that are here."""

    matrices = ("weight",)

    def __init__(self, size: int, width: int):
        super().__init__()
        self.weight = parameter(size, width)
        self.size = size

    def operands(self):
        return (self.matrix("weight"),)

    def logits(self, hidden: Tensor) -> Tensor:
        """`[..., D]` -> `[..., N]`."""
        return ops.linear(hidden, *self.operands())

    def whole(self, logits: Tensor) -> Tensor:
        """`logits` of everything, where a plan splits the N over ranks."""
        return logits

    def resize(self, size: int, deviation: float | None) -> None:
        """Another N, in a new Parameter: new rows are the mean of the old ones, or normal numbers of that deviation."""
        weight = self.weight
        if self.coded:
            raise InputError(
                f"{weight.name} is stored in {self.quantised('weight').bits} bits and cannot be resized; load without quantize="
            )
        old = weight.astype(ms.float32).asnumpy()
        if deviation is None:
            new = np.repeat(old.mean(axis=0, keepdims=True), size, axis=0)
        else:
            new = (np.random.standard_normal((size, old.shape[1])) * deviation).astype(old.dtype)
        kept = min(size, len(old))
        new[:kept] = old[:kept]
        new = Tensor(new).astype(weight.dtype)
        self.weight = Parameter(new, name=weight.name, requires_grad=weight.requires_grad)
        self.size = size


ACTIVATIONS = {
    "gelu": ops.gelu,
    "gelu_fast": ops.gelu_tanh,
    "gelu_new": ops.gelu_tanh,
    "gelu_pytorch_tanh": ops.gelu_tanh,
    "quick_gelu": ops.quick_gelu,
    "relu": ops.relu,
    "silu": ops.silu,
}
"""By transformers' names, three of which are spellings of one formula; config/thinker.py accepts these."""


class Linear(Matrix):
    """`[..., in]` -> `[..., out]`; weight `[out, in]`."""

    def __init__(self, in_features, out_features, bias=True):
        super().__init__(out_features, in_features)
        self.bias = parameter(out_features, start=0.0) if bias else None

    def operands(self):
        return self.matrix("weight"), self.source(self.bias)

    def construct(self, x):
        return ops.linear(x, *self.operands(), self.stable)


class Embedding(Matrix):
    """Integers `[...]` -> `[..., D]`; weight `[V, D]`."""

    def construct(self, ids):
        if self.coded or self.kept:
            return ops.embedding(ids, *self.operands(), self.dtype)
        return ops.embedding(*self.rows(ids))

    def rows(self, ids):
        """`(places, table)`: the rows of ids `[...]` are `table[places]`, in what is computed in; the table holds all rows, or those
        asked for.
        """
        if self.coded or self.kept:
            return in_order(ids), ops.embedding(ids.reshape(-1), *self.operands(), self.dtype)
        return (ids, *self.operands())


def in_order(ids):
    """Places of as many rows as there are ids, int32 of their shape."""
    return Tensor(np.arange(ids.size).reshape(ids.shape), ms.int32)


class RMSNorm(Layer):
    """Root-mean-square norm of the last axis."""

    def __init__(self, dim, eps):
        super().__init__()
        self.weight = parameter(dim, start=1.0)
        self.eps = eps

    def construct(self, x):
        return ops.rms_norm(x, *self.operands(), self.eps)


class LayerNorm(Layer):
    """Layer norm of the last axis."""

    def __init__(self, dim, eps):
        super().__init__()
        self.weight = parameter(dim, start=1.0)
        self.bias = parameter(dim, start=0.0)
        self.eps = eps

    def operands(self):
        return self.source(self.weight), self.source(self.bias)

    def construct(self, x):
        return ops.layer_norm(x, *self.operands(), self.eps)


class GatedMLP(Cell):
    """`down(act(gate(x)) * up(x))`, `[..., D]` -> `[..., D]`."""

    def __init__(self, hidden_size, intermediate_size, hidden_act="silu"):
        super().__init__()
        self.gate_proj = Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = Linear(intermediate_size, hidden_size, bias=False)
        self.act_fn = ACTIVATIONS[hidden_act]

    def construct(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class ProjectionMLP(Cell):
    """`linear_fc2(act(linear_fc1(x)))`: the vision blocks' MLP and the talker's two projections."""

    def __init__(self, in_features, intermediate_size, out_features, hidden_act):
        super().__init__()
        self.linear_fc1 = Linear(in_features, intermediate_size)
        self.linear_fc2 = Linear(intermediate_size, out_features)
        self.act_fn = ACTIVATIONS[hidden_act]

    def construct(self, x):
        return self.linear_fc2(self.act_fn(self.linear_fc1(x)))
