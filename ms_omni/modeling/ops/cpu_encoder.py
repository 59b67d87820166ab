"""Layers of an encoder as C++ kernels (`layers.cpp`): float32 on CPU, with weights as they are stored, a launch for each layer."""

import functools
import operator

import mindspore as ms
import numpy as np
from mindspore import Tensor

from ...errors import InputError
from ...quantised import Quantised
from .cpu_fused import matrix
from .cpu_kernel import kernel, structs
from .cpu_table import address, check_matrix, parts_of, table

_encoder_layer = kernel("layers", "encoder_layer")
(_Layer,) = structs("layers", "EncoderLayer")
ACTIVATIONS = ("gelu", "gelu_tanh", "silu")
"""Those that a layer knows, in the order of `encoder_layer`."""


class PreparedEncoder:
    """weights: `EncoderWeights`."""

    def __init__(self, weights):
        self.weights, self.parts = weights, _parts(weights)
        for layer in weights.layers:
            _check_shapes(layer, weights.layers[0])
        channels = weights.layers[0].out[0].shape[1]
        sizes = {"heads": weights.heads, "head_dim": channels // weights.heads, "inner": weights.layers[0].fc1[0].shape[0]}
        joined = len(weights.layers[0].projections) == 1
        activation = ACTIVATIONS.index(weights.activation.__name__)
        self.settings = {**sizes, "joined": joined, "scale": weights.scale, "eps": weights.eps, "activation": activation}

    def table(self, layer):
        """That of a layer, with the addresses of its parameters as they are now."""
        matrices, vectors = _members(layer)
        known = {name: matrix(weight).item() for name, weight in matrices.items()}
        return table(_Layer(**known, **{name: address(vector) for name, vector in vectors.items()}, **self.settings))


def _members(layer):
    """The matrices and the vectors of a layer by their names in the struct."""
    q, k, v = layer.projections if len(layer.projections) == 3 else (*layer.projections, (None, None), (None, None))
    products = {"q": q, "k": k, "v": v, "out": layer.out, "fc1": layer.fc1, "fc2": layer.fc2}
    vectors = {f"{name}_bias": bias for name, (_, bias) in products.items()}
    for name in ("norm", "mlp_norm"):
        vectors[name], vectors[f"{name}_bias"] = getattr(layer, name)
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
    for name, vector in vectors.items():
        if vector is not None and tuple(vector.shape) != (lengths[name],):
            raise InputError(f"a layer of an encoder: {name} is {list(vector.shape)}, expected [{lengths[name]}]")


def prepare(weights, kept=None):
    """A `PreparedEncoder`, or `kept` where it is of the same parameters; None for what the kernel does not do."""
    if isinstance(kept, PreparedEncoder):
        parts = _parts(weights)
        if len(kept.parts) == len(parts) and all(map(operator.is_, parts, kept.parts)):
            return kept
    matrices, vectors = zip(*map(_members, weights.layers))
    stored = [part for layer in matrices for part in layer.values() if part is not None]
    plain = [part for layer in vectors for part in layer.values() if part is not None]
    known = all(isinstance(part, Quantised) or part.dtype in (ms.float32, ms.bfloat16) for part in stored)
    if not known or any(part.dtype != ms.float32 for part in plain) or weights.activation.__name__ not in ACTIVATIONS:
        return None
    return PreparedEncoder(weights)


def _parts(weights):
    """All parameters."""
    parts = []
    for matrices, vectors in map(_members, weights.layers):
        parts += [part for weight in matrices.values() for part in parts_of(weight).values()]
        parts += vectors.values()
    return parts


def encoder_states(x, segments, rope, prepared):
    ends = segment_ends(segments)
    yield x
    for layer in prepared.weights.layers:
        x = _encoder_layer(x, ends, Tensor.from_numpy(prepared.table(layer)), *(rope or ()))
        yield x


@functools.lru_cache(maxsize=64)
def segment_ends(segments):
    """int32 `[n]`: where each of the segments ends, see `packed_attention`."""
    lengths = np.repeat([length for length, _ in segments], [count for _, count in segments])
    return Tensor(np.cumsum(lengths).astype(np.int32))
