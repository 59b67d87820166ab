"""The small layers that every part of the model shares.

`source` is where a layer reads its parameters. It is the identity unless a parallel plan replaces it, for example by a
gather of the shards of that parameter (see `ms_omni.parallel`); it hands a bias that is None through. `Embedding.fetch`
is where the rows of a table are read.
"""

from contextlib import contextmanager

import mindspore as ms
from mindspore import Parameter, context, nn
from mindspore.common.initializer import initializer
from mindspore.nn.utils import no_init_parameters

from ..errors import InputError
from ..locking import exclusive
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
                ops.stop_recording()
                reason = ops.refusal(error)
                if reason:
                    raise InputError(reason) from None
                raise


def identity(x):
    """x: the default of the places where parallelism puts a collective."""
    return x


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


class Linear(Cell):
    """`[..., in]` -> `[..., out]`; weight `[out, in]`. `stable`: see `ops`."""

    stable = False

    def __init__(self, in_features, out_features, bias=True):
        super().__init__()
        self.weight = parameter(out_features, in_features)
        self.bias = parameter(out_features, start=0.0) if bias else None
        self.source = identity

    def construct(self, x):
        return ops.linear(x, self.source(self.weight), self.source(self.bias), self.stable)


class Embedding(Cell):
    """Integers `[...]` -> `[..., D]`; weight `[V, D]`."""

    def __init__(self, num_embeddings, embedding_dim):
        super().__init__()
        self.weight = parameter(num_embeddings, embedding_dim)
        self.source = identity
        self.fetch = None  # rows(ids, weight) -> (places, table), where a plan keeps the table in pieces

    def construct(self, ids):
        return ops.embedding(*self.rows(ids))

    def rows(self, ids):
        """`(places, table)`: the rows of ids `[...]` are `table[places]`; the table holds all rows, or those asked for."""
        if self.fetch is not None:
            return self.fetch(ids, self.weight)
        return ids, self.source(self.weight)


class RMSNorm(Cell):
    """Root-mean-square norm of the last axis."""

    def __init__(self, dim, eps):
        super().__init__()
        self.weight = parameter(dim, start=1.0)
        self.eps = eps
        self.source = identity

    def construct(self, x):
        return ops.rms_norm(x, self.source(self.weight), self.eps)


class LayerNorm(Cell):
    """Layer norm of the last axis."""

    def __init__(self, dim, eps):
        super().__init__()
        self.weight = parameter(dim, start=1.0)
        self.bias = parameter(dim, start=0.0)
        self.eps = eps
        self.source = identity

    def construct(self, x):
        return ops.layer_norm(x, self.source(self.weight), self.source(self.bias), self.eps)


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
