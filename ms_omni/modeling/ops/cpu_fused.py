"""Whole steps as C++ kernels (`fused.cpp`): float32 on CPU.

The weights travel as a table of their addresses. MindSpore takes about 5 us per input of an operator, and a stack has
hundreds; the table is filled anew at each call, so a parameter that was given other data is read where it is then. The
caller keeps the cells, and so the parameters, alive.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops

from . import build
from .fused import FrameWeights

_LIBRARY = build.library("fused")
_decoder_step = ops.Custom(
    f"{_LIBRARY}:ms_omni_decoder_step", lambda x, cos, sin, head, _: ([x[0], 1, head[0]], x), lambda x, *_: (x, x), "aot"
)
_code_frame = ops.Custom(
    f"{_LIBRARY}:ms_omni_code_frame",
    lambda x, _, noise, table: ([x[0], noise[1] + 1], x),
    lambda x, code, *_: (code, x),
    "aot",
)


def _bits(number):
    return int(np.float64(number).view(np.int64))


def _address(part):
    return 0 if part is None else part.data_ptr()


class PreparedStack:
    """The table of a stack, apart from what changes with every call."""

    def __init__(self, weights):
        self.weights = weights
        first = weights.layers[0]
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
    table = [*prepared.table(), cache.length - 1, cache.capacity, cache.seen.ctypes.data]
    table += [_address(part) for part in (*cache.keys, *cache.values)]
    return _decoder_step(x, cos, sin, head, Tensor.from_numpy(np.array(table, np.int64)))


def code_frame(hidden, code, noise, sampling, prepared):
    return _code_frame(hidden, code, noise, Tensor.from_numpy(np.array(prepared.table(sampling), np.int64)))
