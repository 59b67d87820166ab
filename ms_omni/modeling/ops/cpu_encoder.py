"""Layers of an encoder and its projectors as C++ kernels (`layers.cpp`): float32 on CPU, with weights as they are stored."""

import functools
import operator
from collections.abc import Container, Iterator
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor

from ...errors import InputError
from ...quantised import Quantised
from .cpu_kernel import kernel, lengths, structs
from .cpu_table import Template, check_matrix, parts_of, table
from .fused import EncoderLayerWeights, EncoderWeights, ProjectorWeights
from .stored import Pair

_encoder_layers = kernel("layers", "encoder_layers")
_projector = kernel("layers", "projector")
_Encoder, _Layer, _Projector = structs("layers", "Encoder", "EncoderLayer", "Projector")
ACTIVATIONS = ("gelu", "gelu_tanh", "silu")
"""Those that the kernels know, in their order."""


class PreparedEncoder:
    """The tables of an encoder's layers, apart from the addresses."""

    def __init__(self, weights: EncoderWeights) -> None:
        self.weights, self.basis = weights, _basis(weights)
        for layer in weights.layers:
            _check_shapes(layer, weights.layers[0])
        channels = weights.layers[0].out[0].shape[1]
        sizes = {"heads": weights.heads, "head_dim": channels // weights.heads, "inner": weights.layers[0].fc1[0].shape[0]}
        joined = len(weights.layers[0].projections) == 1
        activation = ACTIVATIONS.index(weights.activation.__name__)
        self.settings = {**sizes, "joined": joined, "scale": weights.scale, "eps": weights.eps, "activation": activation}
        self.layers = []
        for layer in weights.layers:
            matrices, vectors = _members(layer)
            self.layers.append(Template())
            self.layers[-1].add(_Layer, matrices | vectors)

    def table(self, begin: int, end: int) -> np.ndarray:
        """That of some layers, with the addresses of their parameters as they are now."""
        layers = self.layers[begin:end]
        return table(_Encoder(**self.settings, layers=len(layers)), *(layer.table() for layer in layers))


class PreparedProjector:
    """The table of a projector, apart from the addresses."""

    def __init__(self, weights: ProjectorWeights) -> None:
        self.weights, self.basis = weights, _basis(weights)
        (inner, self.inputs), (self.outputs, _) = weights.fc1[0].shape, weights.fc2[0].shape
        self.norm_width = weights.norm[0].shape[0]
        matrices, vectors = _members(weights)
        for name, shape in (("fc1", (inner, self.inputs)), ("fc2", (self.outputs, inner))):
            check_matrix(f"a projector: {name}", matrices[name], shape)
        lengths = {"norm": self.norm_width, "norm_bias": self.norm_width, "fc1_bias": inner, "fc2_bias": self.outputs}
        _check_lengths("a projector", vectors, lengths)
        self.template, activation = Template(), ACTIVATIONS.index(weights.activation.__name__)
        values = {"norm_width": self.norm_width, "inner": inner, "activation": activation, "eps": weights.eps}
        self.template.add(_Projector, matrices | vectors, **values)


def _members(weights):
    """The matrices and the vectors of a layer or a projector by their names in the struct."""
    products, norms = {"fc1": weights.fc1, "fc2": weights.fc2}, {"norm": weights.norm}
    if isinstance(weights, EncoderLayerWeights):
        q, k, v = (
            weights.projections if len(weights.projections) == 3 else (*weights.projections, (None, None), (None, None))
        )
        products |= {"q": q, "k": k, "v": v, "out": weights.out}
        norms["mlp_norm"] = weights.mlp_norm
    vectors = {f"{name}_bias": bias for name, (_, bias) in products.items()}
    for name, (weight, bias) in norms.items():
        vectors |= {name: weight, f"{name}_bias": bias}
    return {name: weight for name, (weight, _) in products.items()}, vectors


def _check_shapes(layer, first):
    """Raises `InputError` for a parameter of another shape than the sizes of the first layer ask for: a table of addresses says none."""
    matrices, vectors = _members(layer)
    (width, channels), inner = first.out[0].shape, first.fc1[0].shape[0]
    shapes = {
        "q": (channels * (1 if len(first.projections) == 3 else 3), width),
        "k": (channels, width),
        "v": (channels, width),
    }
    shapes |= {"out": (width, channels), "fc1": (inner, width), "fc2": (width, inner)}
    lengths = {f"{name}_bias": rows for name, (rows, _) in shapes.items()}
    lengths |= dict.fromkeys(("norm", "norm_bias", "mlp_norm", "mlp_norm_bias"), width)
    for name, weight in matrices.items():
        if weight is not None:
            check_matrix(f"a layer of an encoder: {name}", weight, shapes[name])
    _check_lengths("a layer of an encoder", vectors, lengths)


def _check_lengths(what, vectors, lengths):
    for name, vector in vectors.items():
        if vector is not None and tuple(vector.shape) != (lengths[name],):
            raise InputError(f"{what}: {name} is {list(vector.shape)}, expected [{lengths[name]}]")


def prepare(weights: EncoderWeights | ProjectorWeights, previous: Any = None) -> PreparedEncoder | PreparedProjector | None:
    """A `PreparedEncoder` or `PreparedProjector`, or `previous` where it was made of the same; None for what the kernels do not do."""
    if isinstance(previous, PreparedEncoder if isinstance(weights, EncoderWeights) else PreparedProjector):
        (parts, *others), (previous_parts, *previous_others) = _basis(weights), previous.basis
        if others == previous_others and all(map(operator.is_, parts, previous_parts)):
            return previous
    matrices, vectors = zip(*map(_members, _layers(weights)))
    stored = [part for layer in matrices for part in layer.values() if part is not None]
    plain = [part for layer in vectors for part in layer.values() if part is not None]
    known = all(isinstance(part, Quantised) or part.dtype in (ms.float32, ms.bfloat16) for part in stored)
    if not known or any(part.dtype != ms.float32 for part in plain) or weights.activation.__name__ not in ACTIVATIONS:
        return None
    return PreparedEncoder(weights) if isinstance(weights, EncoderWeights) else PreparedProjector(weights)


def _layers(weights):
    return weights.layers if isinstance(weights, EncoderWeights) else (weights,)


def _basis(weights):
    """What is prepared depends on it: all parameters, the types of their numbers, as one may be widened in place, and the settings."""
    parts = []
    for matrices, vectors in map(_members, _layers(weights)):
        parts += [part for weight in matrices.values() for part in parts_of(weight).values()]
        parts += vectors.values()
    kinds = [None if part is None else part.dtype for part in parts]
    return parts, kinds, [value for value in weights if not isinstance(value, tuple)]


def encoder_states(
    x: Tensor, segments: tuple[tuple[int, int], ...], rope: Pair | None, prepared: PreparedEncoder, wanted: Container[int]
) -> Iterator[Tensor]:
    """A launch for all layers up to the next whose output is wanted."""
    ends, begin = segment_ends(segments), 0
    if 0 in wanted:
        yield x
    for end in range(1, len(prepared.layers) + 1):
        if end in wanted:
            x = _encoder_layers(x, ends, Tensor.from_numpy(prepared.table(begin, end)), *(rope or ()))
            begin = end
            yield x


def projector(x: Tensor, prepared: PreparedProjector) -> Tensor:
    return _projector(x, Tensor.from_numpy(prepared.template.table()), lengths(prepared.inputs), lengths(prepared.outputs))


@functools.lru_cache(maxsize=64)
def segment_ends(segments: tuple[tuple[int, int], ...]) -> Tensor:
    """int32 `[n]`: where each of the segments ends, see `packed_attention`."""
    lengths = np.repeat([length for length, _ in segments], [count for _, count in segments])
    return Tensor(np.cumsum(lengths).astype(np.int32))
