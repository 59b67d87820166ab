"""Whole steps as C++ kernels (`fused.cpp`): float32 on CPU.

The weights travel as a table of their addresses. MindSpore takes about 5 us per input of an operator, and a stack has
hundreds; the table is filled anew at each call, so a parameter that was given other data is read where it is then. The
caller keeps the cells, and so the parameters, alive.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor

from ...errors import InputError
from .cpu_kernel import kernel
from .fused import FrameWeights

_decoder_step = kernel("fused", "decoder_step", lambda x, *_: (x, x))
_code_frame = kernel("fused", "code_frame", lambda x, code, *_: (code, x))


def _bits(number):
    return int(np.float64(number).view(np.int64))


def _address(part):
    return 0 if part is None else part.data_ptr()


class PreparedStack:
    """The table of a stack, apart from what changes with every call."""

    def __init__(self, weights):
        self.weights = weights
        first = weights.layers[0]
        for layer in weights.layers:
            _check_shapes(_layer_shapes(weights, first, layer), layer._asdict())
        _check_shapes({"norm": (first.q.shape[1],)}, {"norm": weights.norm})
        self.head = [*_sizes(weights, first), _bits(weights.eps)]
        self.parameters = [weights.norm, *(part for layer in weights.layers for part in layer[:_PARAMETERS])]
        self.settings = [_settings(layer) for layer in weights.layers]

    def table(self, addresses=None):
        """The numbers that `Stack` in decoder.h reads; addresses: of `parameters`, as they are now."""
        addresses = iter(map(_address, self.parameters) if addresses is None else addresses)
        numbers = [*self.head, next(addresses), len(self.settings)]
        for settings in self.settings:
            numbers += [next(addresses) for _ in range(_PARAMETERS)]
            numbers += settings
        return numbers


_PARAMETERS = 19  # of a layer, in front of its settings


def _layer_shapes(weights, first, layer):
    """What the parameters of a layer have to be, as the table tells their sizes once for all: {name: shape}."""
    width, heads, kv_heads, d = _sizes(weights, first)
    queries, keys = heads * d, kv_heads * d
    inner, experts, _, expert_inner, _ = _settings(layer)
    shapes = {"input_norm": (width,), "post_norm": (width,), "q_norm": (d,), "k_norm": (d,)}
    for name, outputs, inputs in (("q", queries, width), ("k", keys, width), ("v", keys, width), ("o", width, queries)):
        shapes |= {name: (outputs, inputs), f"{name}_bias": (outputs,)}
    shapes |= {"gate": (inner, width), "up": (inner, width), "down": (width, inner), "shared_gate": (1, width)}
    shapes |= {"experts_gate_up": (experts, width, 2 * expert_inner), "experts_down": (experts, expert_inner, width)}
    return {**shapes, "router": (experts, width)}


def _check_shapes(expected, parts):
    """Raises `InputError` for a parameter of another shape: a table of addresses says none."""
    for name, shape in expected.items():
        if parts[name] is not None and tuple(parts[name].shape) != shape:
            raise InputError(f"a decoder step: {name} is {list(parts[name].shape)}, expected {list(shape)}")


def _sizes(weights, layer):
    heads, kv_heads = (part.shape[0] // weights.head_dim for part in (layer.q, layer.k))
    return [layer.q.shape[1], heads, kv_heads, weights.head_dim]


def _settings(layer):
    inner = 0 if layer.gate is None else layer.gate.shape[0]
    experts, expert_inner = (0, 0) if layer.router is None else layer.experts_down.shape[:2]
    return [inner, experts, layer.top_k, expert_inner, int(layer.normalise)]


class PreparedFrame:
    """The table of a code predictor, whose weights are read once per code.

    Fetching them is what takes the time, so numbers that are bfloat16 (as published ones are) are kept as such beside
    the parameters, which changes no bit of any result.
    """

    def __init__(self, weights, kept=None):
        self.stack = PreparedStack(weights.stack)
        self.weights = weights
        width, *_, d = _sizes(weights.stack, weights.stack.layers[0])
        vocabulary, frame = weights.heads[0].shape[0], len(weights.heads) + 1
        tables = dict(enumerate((*weights.heads, *weights.embeddings)))
        _check_shapes(dict.fromkeys(tables, (vocabulary, width)), tables)
        _check_shapes(dict.fromkeys(("cos", "sin"), (frame, d // 2)), weights._asdict())
        _check_shapes({"codes": (len(weights.first_embedding), width)}, {"codes": weights.first_embedding})
        self.sources = kept and kept.sources  # addresses that the halves were made from
        self.halves = kept and kept.halves

    def table(self, sampling):
        """The numbers that `code_frame` in fused.cpp reads."""
        weights = self.weights
        stack, heads = self._addresses()
        temperature, top_k, top_p = sampling or (1.0, 0, 1.0)
        return [
            int(self.halves is not None),
            *self.stack.table(stack),
            int(sampling is not None),
            _bits(temperature),
            top_k,
            _bits(top_p),
            *(part.shape[0] for part in (weights.heads[0], weights.first_embedding)),
            weights.cos.ctypes.data,
            weights.sin.ctypes.data,
            _address(weights.first_embedding),
            *map(_address, weights.embeddings),
            *heads,
        ]

    def _addresses(self):
        parts = [*self.stack.parameters, *self.weights.heads]
        addresses = [_address(part) for part in parts]
        if addresses != self.sources:  # the first call, or other weights
            self.sources, self.halves = addresses, _halves(parts)
        if self.halves is not None:
            addresses = [old if new is None else new.ctypes.data for old, new in zip(addresses, self.halves)]
        count = len(self.stack.parameters)
        return addresses[:count], addresses[count:]


def _halves(parts):
    """Per matrix its numbers as bfloat16 uint16, None for vectors; or None if some number is not one."""
    halves = []
    for part in parts:
        if part is None or part.ndim == 1:
            halves.append(None)
            continue
        bits = part.asnumpy().view(np.uint32)
        if (bits & 0xFFFF).any():
            return None
        halves.append((bits >> 16).astype(np.uint16))
    return halves


def prepare(weights, kept=None):
    frame = isinstance(weights, FrameWeights)
    stack = weights.stack if frame else weights
    parts = [stack.norm, *(part for layer in stack.layers for part in layer[:_PARAMETERS] if part is not None)]
    if frame:
        parts += [weights.first_embedding, *weights.embeddings, *weights.heads]
        if any(layer.router is not None for layer in stack.layers):
            return None
    if any(part.dtype != ms.float32 for part in parts):
        return None
    return PreparedFrame(weights, kept) if frame else PreparedStack(weights)


def decoder_step(x, cos, sin, head, cache, prepared):
    _, _, kv_heads, d = prepared.head[:4]
    if (cache.heads, cache.head_dim, cache.num_layers) != ((x.shape[0], kv_heads), d, len(prepared.settings)):
        raise InputError(
            f"a decoder step: the cache is of {cache.num_layers} layers, {cache.heads[0]} rows and {cache.heads[1]} heads of "
            f"{cache.head_dim}; expected {len(prepared.settings)} layers, {x.shape[0]} rows and {kv_heads} heads of {d}"
        )
    table = [*prepared.table(), cache.length - 1, cache.capacity, cache.seen.ctypes.data]
    table += [_address(part) for part in (*cache.keys, *cache.values)]
    return _decoder_step(x, cos, sin, head, Tensor.from_numpy(np.array(table, np.int64)))


def code_frame(hidden, code, noise, sampling, prepared):
    return _code_frame(hidden, code, noise, Tensor.from_numpy(np.array(prepared.table(sampling), np.int64)))
