"""Whole steps as C++ kernels (`fused.cpp`): float32 on CPU.

The weights travel as a table of their addresses. MindSpore takes about 5 us per input of an operator, and a stack has
hundreds; the table is filled anew at each call, so a parameter that was given other data is read where it is then. The
caller keeps the cells, and so the parameters, alive.
"""

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor

from ...errors import InputError
from .cpu_kernel import kernel, structs
from .cpu_table import address, table
from .fused import FrameWeights, LayerWeights

_decoder_step = kernel("fused", "decoder_step", lambda x, *_: (x, x))
_code_frame = kernel("fused", "code_frame", lambda x, code, *_: (code, x))
_Layer, _Stack, _Cache, _Frame, _Storage = structs("fused", "Layer", "Stack", "Cache", "Frame", "Storage")
_PARAMETERS = [name for name, kind in LayerWeights.__annotations__.items() if kind is Parameter]


class PreparedStack:
    """The table of a stack, apart from what changes with every call."""

    def __init__(self, weights):
        self.weights = weights
        first = weights.layers[0]
        for layer in weights.layers:
            shapes = _layer_shapes(weights, first, layer)
            _check_shapes({name: shapes[name] for name in _PARAMETERS}, layer._asdict())
        _check_shapes({"norm": (first.q.shape[1],)}, {"norm": weights.norm})
        self.sizes = _sizes(weights, first)
        stack = _Stack(**self.sizes, eps=weights.eps, norm=0, layers=len(weights.layers))
        layers = [_Layer(**_settings(layer), **dict.fromkeys(_PARAMETERS, 0)) for layer in weights.layers]
        self.empty = table(stack, *layers)  # without addresses
        there = {_Stack.dtype.fields["norm"][1]: weights.norm}  # parameters by the byte at which their address stands
        for number, layer in enumerate(weights.layers):
            start = stack.nbytes + number * _Layer.dtype.itemsize
            there |= {start + _Layer.dtype.fields[name][1]: getattr(layer, name) for name in _PARAMETERS}
        there = {byte: part for byte, part in there.items() if part is not None}
        self.parameters, self.places = list(there.values()), np.array([*there]) // 8

    def table(self, addresses=None):
        """The stack and its layers; addresses: of `parameters`, as they are now."""
        filled = self.empty.copy()
        filled[self.places] = [address(part) for part in self.parameters] if addresses is None else addresses
        return filled


def _layer_shapes(weights, first, layer):
    """What the parameters of a layer have to be, as the table tells their sizes once for all: {name: shape}."""
    sizes = _sizes(weights, first) | _settings(layer)
    width, d, inner = sizes["width"], sizes["head_dim"], sizes["inner"]
    queries, keys, experts, expert_inner = sizes["heads"] * d, sizes["kv_heads"] * d, sizes["experts"], sizes["expert_inner"]
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
    return {"width": layer.q.shape[1], "heads": heads, "kv_heads": kv_heads, "head_dim": weights.head_dim}


def _settings(layer):
    inner = 0 if layer.gate is None else layer.gate.shape[0]
    experts, expert_inner = (0, 0) if layer.router is None else layer.experts_down.shape[:2]
    sizes = {"inner": inner, "experts": experts, "top_k": layer.top_k, "expert_inner": expert_inner}
    return {**sizes, "normalise": layer.normalise}


class PreparedFrame:
    """The table of a code predictor, whose weights are read once per code.

    Fetching them is what takes the time, so numbers that are bfloat16 (as published ones are) are kept as such beside
    the parameters, which changes no bit of any result.
    """

    def __init__(self, weights, kept=None):
        self.stack = PreparedStack(weights.stack)
        self.weights = weights
        width, d = self.stack.sizes["width"], self.stack.sizes["head_dim"]
        vocabulary, frame = weights.heads[0].shape[0], len(weights.heads) + 1
        tables = dict(enumerate((*weights.heads, *weights.embeddings)))
        _check_shapes(dict.fromkeys(tables, (vocabulary, width)), tables)
        _check_shapes(dict.fromkeys(("cos", "sin"), (frame, d // 2)), weights._asdict())
        _check_shapes({"codes": (len(weights.first_embedding), width)}, {"codes": weights.first_embedding})
        self.sources = kept and kept.sources  # addresses that the halves were made from
        self.halves = kept and kept.halves
        self.moved = kept and kept.moved  # where the numbers of each part are: in its half where there is one

    def table(self, sampling):
        """The numbers that `code_frame` in fused.cpp reads."""
        weights = self.weights
        stack, heads = self._addresses()
        temperature, top_k, top_p = sampling or (1.0, 0, 1.0)
        frame = _Frame(
            sampled=sampling is not None,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            vocabulary=weights.heads[0].shape[0],
            first_vocabulary=weights.first_embedding.shape[0],
            cos=address(weights.cos),
            sin=address(weights.sin),
            first_embedding=address(weights.first_embedding),
        )
        storage, embeddings = _Storage(half=self.halves is not None), list(map(address, weights.embeddings))
        return table(storage, self.stack.table(stack), frame, embeddings, heads)

    def _addresses(self):
        parts = [*self.stack.parameters, *self.weights.heads]
        addresses = [address(part) for part in parts]
        if addresses != self.sources:  # the first call, or other weights
            self.sources, self.halves = addresses, _halves(parts)
            halves = self.halves or [None] * len(parts)
            self.moved = [old if half is None else address(half) for old, half in zip(addresses, halves)]
        count = len(self.stack.parameters)
        return self.moved[:count], self.moved[count:]


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
    parts = [getattr(layer, name) for layer in stack.layers for name in _PARAMETERS]
    parts = [stack.norm, *(part for part in parts if part is not None)]
    if frame:
        parts += [weights.first_embedding, *weights.embeddings, *weights.heads]
        if any(layer.router is not None for layer in stack.layers):
            return None
    if any(part.dtype != ms.float32 for part in parts):
        return None
    if not frame:
        return PreparedStack(weights)
    return PreparedFrame(weights, kept if isinstance(kept, PreparedFrame) else None)  # other operators may have made it


def decoder_step(x, cos, sin, head, cache, prepared):
    _check_cache(cache, x.shape[0], prepared)
    sizes = cache.keys[0].shape[0] // (cache.heads * cache.block), cache.block, cache.tables.shape[1]
    place = _Cache(**dict(zip(("blocks", "block", "width"), sizes)))
    buffers = [address(part) for part in (*cache.keys, *cache.values)]
    rows = cache.lengths.astype(np.int64), cache.tables.reshape(-1).astype(np.int64)
    return _decoder_step(x, cos, sin, head, Tensor.from_numpy(table(prepared.table(), place, buffers, *rows)))


def _check_cache(cache, rows, prepared):
    """Raises `InputError` for `BlockTables` of another stack or batch: a table of addresses says nothing of shapes."""
    kv_heads, d, layers = prepared.sizes["kv_heads"], prepared.sizes["head_dim"], len(prepared.weights.layers)
    shapes, block = {part.shape for part in (*cache.keys, *cache.values)}, cache.heads * cache.block
    fits = (
        (cache.heads, len(cache.keys), len(cache.values)) == (kv_heads, layers, layers)
        and len(shapes) == 1
        and cache.keys[0].shape == (cache.keys[0].shape[0] // block * block, d)
        and cache.tables.shape[0] == len(cache.lengths) == rows
    )
    if not fits:
        raise InputError(
            f"a decoder step: the cache is of {len(cache.keys)} layers, {len(cache.tables)} rows, {cache.heads} heads and "
            f"buffers of shape {sorted(shapes)}; expected {layers} layers, {rows} rows, {kv_heads} heads of {d} in whole blocks"
        )


def code_frame(hidden, code, noise, sampling, prepared):
    return _code_frame(hidden, code, noise, Tensor.from_numpy(prepared.table(sampling)))
