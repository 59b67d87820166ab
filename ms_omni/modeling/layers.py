"""The small layers that every part of the model shares."""

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn

from ..quantised import Quantised, Storage, dequantised, quantised
from . import ops
from .layer import Cell, Layer, filled, parameter


class Matrix(Layer):
    """A layer with a weight `[N, D]`, which can be the output layer. size: the N of this process."""

    matrices = ("weight",)

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.weight = parameter(size, width)
        self.size = size

    def operands(self) -> tuple:
        return (self.matrix(),)

    def matrix(self) -> ops.Matrix:
        """The weight as operators take it: a tensor, or a `Quantised`."""
        if self.coded:
            return Quantised(self.source(self.weight), self.source(self.weight_scale), self.source(self.weight_offset))
        return self.source(self.weight)

    def logits(self, hidden: Tensor) -> Tensor:
        """`[..., D]` -> `[..., N]`."""
        return ops.linear(hidden, *self.operands())

    def whole(self, logits: Tensor) -> Tensor:
        """`logits` of all N, where a plan splits them over ranks."""
        return logits

    def resize(self, size: int, deviation: float | None) -> None:
        """Another N, in new Parameters: new rows are the mean of the old ones, or normal numbers of that deviation. What is
        stored in some way stays so.
        """
        stored: Any = self.quantised("weight") if self.coded else self.weight
        old = dequantised(_arrays(stored)) if self.coded else stored.astype(ms.float32).asnumpy()
        common, added = min(size, len(old)), max(size - len(old), 0)
        if deviation is None:
            new = np.repeat(old.mean(axis=0, keepdims=True), added, axis=0)
        else:
            new = (np.random.standard_normal((added, old.shape[1])) * deviation).astype(old.dtype)
        if self.coded:
            for name, parts in zip(("weight", "weight_scale", "weight_offset"), _joined(_arrays(stored), common, new)):
                if parts is not None:
                    setattr(self, name, filled(getattr(self, name), parts))
        elif self.bfloat16:
            self.weight = filled(stored, np.concatenate([old[:common], new]))
        else:
            new = Tensor(np.concatenate([old[:common], new])).astype(stored.dtype)
            self.weight = Parameter(new, name=stored.name, requires_grad=stored.requires_grad)
        self.size = size


def _arrays(stored):
    """A `Quantised` of parameters as one of arrays."""
    return Quantised(*(None if part is None else part.asnumpy() for part in stored))


def _joined(stored, count, rows):
    """Codes of the first `count` rows of a matrix and of other rows, in arrays of the parameters' dtypes."""
    if not len(rows):
        return [None if old is None else old[:count] for old in stored]
    storage = Storage(stored.bits, stored.group, "float32", None if stored.offsets is None else "float32")
    added = quantised(rows, storage)
    if stored.offsets is not None:
        added = added._replace(offsets=np.zeros_like(added.scales))
    return [None if old is None else np.concatenate([old[:count], new]) for old, new in zip(stored, added)]


ACTIVATIONS = {
    "gelu": ops.gelu,
    "gelu_fast": ops.gelu_tanh,
    "gelu_new": ops.gelu_tanh,
    "gelu_pytorch_tanh": ops.gelu_tanh,
    "quick_gelu": ops.quick_gelu,
    "relu": ops.relu,
    "silu": ops.silu,
}
"""By transformers' names, three of which are spellings of one formula; config/omni.py accepts these."""


class Linear(Matrix):
    """`[..., in]` -> `[..., out]`; weight `[out, in]`."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(out_features, in_features)
        self.bias = parameter(out_features, start=0.0) if bias else None

    def operands(self) -> tuple[ops.Matrix, Tensor | None]:
        return self.matrix(), self.source(self.bias)

    def construct(self, x: Tensor) -> Tensor:
        return ops.linear(x, *self.operands(), self.stable)


class Embedding(Matrix):
    """Integers `[...]` -> `[..., D]`; weight `[V, D]`."""

    def construct(self, ids: Tensor) -> Tensor:
        if self.as_computed:
            return ops.embedding(*self.rows(ids))
        return ops.embedding(ids, self.matrix(), self.computed)

    def rows(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """`(indices, table)`: the rows of ids `[...]` are `table[indices]`, in the dtype that is computed in; the table holds all rows, or
        only these.
        """
        if self.as_computed:
            return (ids, *self.operands())
        return consecutive(ids), ops.embedding(ids.reshape(-1), self.matrix(), self.computed)


def consecutive(ids: Tensor) -> Tensor:
    """0, 1, 2, ... as many as there are ids, int32 of their shape."""
    return Tensor(np.arange(ids.size).reshape(ids.shape), ms.int32)


class RMSNorm(Layer):
    """Root-mean-square norm of the last axis."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = parameter(dim, start=1.0)
        self.eps = eps

    def construct(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.operands()[0], self.eps)


class LayerNorm(Layer):
    """Layer norm of the last axis."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = parameter(dim, start=1.0)
        self.bias = parameter(dim, start=0.0)
        self.eps = eps

    def operands(self) -> tuple[Tensor, Tensor]:
        return self.source(self.weight), self.source(self.bias)

    def construct(self, x: Tensor) -> Tensor:
        return ops.layer_norm(x, *self.operands(), self.eps)


class GatedMLP(Cell):
    """`down(act(gate(x)) * up(x))`, `[..., D]` -> `[..., D]`."""

    def __init__(self, hidden_size: int, intermediate_size: int, hidden_act: str = "silu") -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = Linear(intermediate_size, hidden_size, bias=False)
        self.act_fn = ACTIVATIONS[hidden_act]

    def construct(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


class ProjectionMLP(Cell):
    """`linear_fc2(act(linear_fc1(x)))`: the vision blocks' MLP and the talker's two projections."""

    def __init__(self, in_features: int, intermediate_size: int, out_features: int, hidden_act: str) -> None:
        super().__init__()
        self.linear_fc1 = Linear(in_features, intermediate_size)
        self.linear_fc2 = Linear(intermediate_size, out_features)
        self.act_fn = ACTIVATIONS[hidden_act]

    def construct(self, x: Tensor) -> Tensor:
        return self.linear_fc2(self.act_fn(self.linear_fc1(x)))


RANGE = 0.02
"""Of the numbers that a model built from a configuration alone starts with, as transformers has it: their standard deviation."""


def initialise(cell: nn.Cell, deviation: float = RANGE, numbers: np.random.Generator | None = None) -> None:
    """Fills every parameter of a cell: with what `layer.parameter` noted as its start, else with normal numbers around 0.

    Their standard deviation is `initializer_range` of the configuration of the smallest part that has one. They follow
    `mindspore.set_seed` and numpy's seed.
    """
    numbers = numbers or np.random.default_rng(np.random.randint(2**31))
    deviation = getattr(getattr(cell, "config", None), "initializer_range", None) or deviation
    for weight in cell.get_parameters(expand=False):
        start = getattr(weight, "start", None)
        if start is None:
            values = numbers.standard_normal(weight.shape, np.float32)
            values *= deviation
        else:
            values = np.full(weight.shape, start, np.float32)
        weight.set_data(Tensor(values).astype(weight.dtype))
    for part in cell.cells():
        initialise(part, deviation, numbers)
