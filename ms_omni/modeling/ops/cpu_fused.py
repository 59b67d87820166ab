"""Whole steps as C++ kernels (`fused.cpp`): float32 on CPU, with weights as they are stored.

The weights travel as a table of their addresses. MindSpore takes about 5 us per input of an operator, and a stack has
hundreds; the table is filled anew at each call, so a parameter that was given other data is read where it is then. The
caller keeps the cells, and so the parameters, alive.
"""

from collections.abc import Callable, Container
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor

from ...errors import InputError
from ...quantised import Quantised
from .cpu_kernel import kernel, structs
from .cpu_table import Template, address, check_matrix, described, parts_of, table
from .fused import BlockTables, FrameWeights, Kind, StackWeights
from .stored import Matrix, Pair

_decoder_step = kernel("fused", "decoder_step", lambda x, *_: (x, x))
_decoder_chunk = kernel("layers", "decoder_chunk")
_code_frame = kernel("fused", "code_frame", lambda x, code, *_: (code, x))
_Matrix, _Layer, _Stack, _Cache, _Frame = structs("fused", "Matrix", "Layer", "Stack", "Cache", "Frame")
(_Chunk,) = structs("layers", "Chunk")
_VECTORS, _MATRICES = (
    [name for name, kind in _Layer.kinds.items() if kind == wanted] for wanted in ("const float *", "Matrix")
)


class PreparedStack:
    """The table of a stack, apart from what changes with every call."""

    def __init__(self, weights: StackWeights) -> None:
        self.weights = weights
        first = weights.layers[0]
        for layer in weights.layers:
            _check_shapes(_layer_shapes(weights, first, layer), layer._asdict())
        _check_shapes({"norm": (first.q.shape[1],)}, {"norm": weights.norm})
        self.sizes = _sizes(weights, first)
        self.template = Template()
        self.template.add(_Stack, {"norm": weights.norm}, **self.sizes, eps=weights.eps, layers=len(weights.layers))
        for layer in weights.layers:
            self.template.add(_Layer, {name: getattr(layer, name) for name in (*_VECTORS, *_MATRICES)}, **_settings(layer))

    def table(self) -> np.ndarray:
        """The stack and its layers, with the addresses of the parameters as they are now."""
        return self.template.table()


def matrix(weight: Matrix) -> np.ndarray:
    """A `Matrix` with its addresses."""
    filled = np.array([described(weight)], _Matrix.dtype)
    for name, part in parts_of(weight).items():
        filled[name] = address(part)
    return filled


def _layer_shapes(weights, first, layer):
    """What the parameters of a layer have to be, as the table has their sizes once for all: {name: shape}."""
    sizes = _sizes(weights, first) | _settings(layer)
    width, d, inner = sizes["width"], sizes["head_dim"], sizes["inner"]
    queries, keys, experts, expert_inner = sizes["heads"] * d, sizes["kv_heads"] * d, sizes["experts"], sizes["expert_inner"]
    shapes: dict[str, tuple[int, ...]] = {"input_norm": (width,), "post_norm": (width,), "q_norm": (d,), "k_norm": (d,)}
    for name, outputs, inputs in (("q", queries, width), ("k", keys, width), ("v", keys, width), ("o", width, queries)):
        shapes |= {name: (outputs, inputs), f"{name}_bias": (outputs,)}
    shapes |= {"gate": (inner, width), "up": (inner, width), "down": (width, inner), "shared_gate": (1, width)}
    for name, outputs, inputs in (("experts_gate_up", 2 * expert_inner, width), ("experts_down", width, expert_inner)):
        coded = isinstance(getattr(layer, name), Quantised)
        shapes[name] = (experts, outputs, inputs) if coded else (experts, inputs, outputs)
    return {**shapes, "router": (experts, width)}


def _check_shapes(expected, parts):
    """Raises `InputError` for a parameter of another shape: a table of addresses says none."""
    for name, shape in expected.items():
        if parts[name] is None:
            continue
        if name in _MATRICES:
            check_matrix(f"a decoder step: {name}", parts[name], shape)
        elif tuple(parts[name].shape) != shape:
            raise InputError(f"a decoder step: {name} is {list(parts[name].shape)}, expected {list(shape)}")


def _sizes(weights, layer):
    heads, kv_heads = (part.shape[0] // weights.head_dim for part in (layer.q, layer.k))
    return {"width": layer.q.shape[1], "heads": heads, "kv_heads": kv_heads, "head_dim": weights.head_dim}


def _settings(layer):
    inner = 0 if layer.gate is None else layer.gate.shape[0]
    experts, expert_inner, down = 0, 0, layer.experts_down
    if layer.router is not None:
        experts, expert_inner = down.shape[0], down.shape[2 if isinstance(down, Quantised) else 1]
    sizes = {"inner": inner, "experts": experts, "top_k": layer.top_k, "expert_inner": expert_inner}
    return {**sizes, "normalise": layer.normalise}


class PreparedFrame:
    """The table of a code predictor, whose weights are read once per code."""

    def __init__(self, weights: FrameWeights) -> None:
        self.stack = PreparedStack(weights.stack)
        self.weights = weights
        width, d = self.stack.sizes["width"], self.stack.sizes["head_dim"]
        for part in (*weights.heads, *weights.embeddings):
            check_matrix("a code predictor: a head or embedding", part, (weights.heads[0].shape[0], width))
        check_matrix(
            "a code predictor: the first embedding", weights.first_embedding, (weights.first_embedding.shape[0], width)
        )
        _check_shapes(dict.fromkeys(("cos", "sin"), (len(weights.heads) + 1, d // 2)), weights._asdict())

    def table(self, sampling: Kind) -> np.ndarray:
        """The numbers that `code_frame` in fused.cpp reads."""
        weights = self.weights
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
            first_embedding=matrix(weights.first_embedding).item(),
        )
        return table(self.stack.table(), frame, *map(matrix, (*weights.embeddings, *weights.heads)))


def prepare(weights: StackWeights | FrameWeights, previous: Any = None) -> PreparedStack | PreparedFrame | None:
    stack = weights.stack if isinstance(weights, FrameWeights) else weights
    vectors = [stack.norm, *(getattr(layer, name) for layer in stack.layers for name in _VECTORS)]
    matrices = [getattr(layer, name) for layer in stack.layers for name in _MATRICES]
    if isinstance(weights, FrameWeights):
        matrices += [weights.first_embedding, *weights.embeddings, *weights.heads]
        if any(layer.router is not None for layer in stack.layers):
            return None
    known = all(part is None or part.dtype == ms.float32 for part in vectors)
    if not known or not all(
        isinstance(part, Quantised) or part.dtype in (ms.float32, ms.bfloat16) for part in matrices if part is not None
    ):
        return None
    return PreparedFrame(weights) if isinstance(weights, FrameWeights) else PreparedStack(weights)


def decoder_step(x: Tensor, cos: Tensor, sin: Tensor, head: Matrix, cache: BlockTables, prepared: PreparedStack) -> Pair:
    _check_cache(cache, x.shape[0], prepared)
    check_matrix("a decoder step: the output layer", head, (head.shape[0], prepared.sizes["width"]))
    whole = table(matrix(head), prepared.table(), *_cache_table(cache))
    return _decoder_step(x, cos, sin, parts_of(head)["numbers"], Tensor.from_numpy(whole))


def decoder_chunk(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    cache: BlockTables,
    start: int,
    prepared: PreparedStack,
    inject: Callable[[int, Tensor], Tensor] | None = None,
    observe: Callable[[int, Tensor], None] | None = None,
    wanted: Container[int] = (),
) -> Tensor:
    """A launch for all layers up to the next whose output somebody adds to or looks at."""
    _check_cache(cache, 1, prepared)
    whole, layers = table(prepared.table(), *_cache_table(cache)), len(prepared.weights.layers)
    count = int(cache.lengths[0]) - start

    def run(x, begin, end, finish):
        chunk = _Chunk(begin=begin, end=end, start=start, count=count, finish=finish)
        return _decoder_chunk(x, cos, sin, Tensor.from_numpy(table(whole, chunk)))

    if observe is not None and 0 in wanted:
        observe(0, x)
    begin, plain = 0, inject is None
    for end in range(1, layers + 1):
        seen = observe is not None and end in wanted
        if plain and not seen and end < layers:
            continue
        finished = plain and not seen  # else the final norm is one of what comes of it
        x, begin = run(x, begin, end, finished), end
        if observe is not None and seen:
            observe(end, x)
        if inject is not None:
            x = inject(end - 1, x)
    return x if finished else run(x, layers, layers, True)


def _cache_table(cache):
    numbers, scales = _buffers(cache)
    blocks = numbers[0].shape[0] // (cache.heads * cache.block)
    sizes = _Cache(blocks=blocks, block=cache.block, width=cache.tables.shape[1], scaled=bool(scales))
    buffers = [address(part) for part in (*numbers, *scales)]
    return sizes, buffers, cache.lengths.astype(np.int64), cache.tables.reshape(-1).astype(np.int64)


def _buffers(cache):
    """Keys of each layer and then values: their numbers, and their scales where these are codes."""
    parts = (*cache.keys, *cache.values)
    if not isinstance(parts[0], Quantised):
        return parts, ()
    return [part.codes for part in parts], [part.scales for part in parts]


def _check_cache(cache, rows, prepared):
    """Raises `InputError` for `BlockTables` of another stack or batch: a table of addresses says nothing of shapes."""
    kv_heads, d, layers = prepared.sizes["kv_heads"], prepared.sizes["head_dim"], len(prepared.weights.layers)
    numbers, scales = _buffers(cache)
    shapes, block = {part.shape for part in numbers}, cache.heads * cache.block
    length = numbers[0].shape[0]
    fits = (
        (cache.heads, len(cache.keys), len(cache.values)) == (kv_heads, layers, layers)
        and shapes == {(length // block * block, d)}
        and {(part.shape, part.dtype) for part in scales} in (set(), {((length, 1), ms.float32)})
        and {part.dtype for part in numbers} == {ms.int8 if scales else ms.float32}
        and cache.tables.shape[0] == len(cache.lengths) == rows
    )
    if not fits:
        raise InputError(
            f"a decoder step: the cache is of {len(cache.keys)} layers, {len(cache.tables)} rows, {cache.heads} heads and "
            f"{numbers[0].dtype} buffers of shape {sorted(shapes)}; expected {layers} layers, {rows} rows, {kv_heads} heads of {d} in "
            "whole blocks of float32, or of int8 with a float32 scale for each row"
        )


def code_frame(hidden: Tensor, code: Tensor, noise: Tensor, sampling: Kind, prepared: PreparedFrame) -> Pair:
    return _code_frame(hidden, code, noise, Tensor.from_numpy(prepared.table(sampling)))
