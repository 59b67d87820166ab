"""The cells that generation calls once per token or frame: one fused operator each where there is one (see `ops`);
elsewhere each becomes one compiled graph when it is used enough.

They own the buffers that a graph writes to, so a step serves one request at a time; `StepPool` lends them out and keeps
them, with their graphs, for the next one.
"""

from contextlib import contextmanager

import mindspore as ms
from mindspore import Parameter, ParameterTuple
from mindspore.common.initializer import initializer

from . import ops
from .interruption import interruptible
from .layers import Cell
from .moe import SparseMoeBlock
from .step_weights import frame_weights, is_plain, stack_weights

COMPILE_AFTER = 32
"""Calls of a step, over all requests, before it is compiled: a graph takes seconds to build and short answers do
without. Both ways compute the same numbers."""
KEPT_STEPS = 4


class StepPool:
    """Lends out steps by what they are built for, and keeps compiled ones, at most `KEPT_STEPS`, for the next request.

    Buffers of a step that has no graph are freed with the request. compile_after: see `COMPILE_AFTER`; None never
    compiles.
    """

    def __init__(self, compile_after=COMPILE_AFTER):
        self.compile_after = compile_after
        self.calls = {}  # key -> calls over all requests
        self.free = []  # (key, compiled step), the one used last at the end

    @contextmanager
    def lend(self, key, build):
        """A step for `key`, all its own for the duration of the block; `build()` makes one if none is free."""
        step = self._take(key) or build()
        before = self.calls.get(key, 0)
        step.compile_from = None if self.compile_after is None else self.compile_after - before
        step.calls = 0
        try:
            yield step
        finally:
            self.calls[key] = before + step.calls
            if step.is_compiled:
                self.free = [*self.free, (key, step)][-KEPT_STEPS:]

    def _take(self, key):
        for index, (kept, step) in enumerate(self.free):
            if kept == key:
                del self.free[index]
                return step
        return None

    def clear(self):
        """Frees all buffers and graphs."""
        self.free = []


class Step(Cell):
    """A cell that runs as it is for its first calls and as a graph from then on (`compile_from` calls; None: never)."""

    def __init__(self):
        super().__init__(auto_prefix=False)
        self.calls = 0
        self.compile_from = None
        self.is_compiled = False

    def due(self):
        """Counts a call; whether it is to run as a graph."""
        self.calls += 1
        graph = self.compile_from is not None and self.calls > self.compile_from
        self.is_compiled = self.is_compiled or graph
        return graph


class DecoderStep(Step):
    """One token per row through a decoder and its output layer, on a cache of its own.

    Where there is a fused operator (`ops.decoder_step`) that is all of it, and nothing is compiled. Else the cells run,
    as a graph when it pays. The cache's capacity doubles when it is used up, and there is one graph per capacity, so
    there are few of them.
    """

    def __init__(self, decoder, output_layer, cache):
        super().__init__()
        self.decoder = decoder
        self.output_layer = output_layer
        self.cache = cache
        self.graph = None
        weights = stack_weights(decoder) if is_plain(output_layer) else None
        self.fused = weights and ops.prepare(weights)
        mixtures = [layer.mlp for layer in decoder.layers if isinstance(layer.mlp, SparseMoeBlock)]
        rows = cache.heads[0]
        self.fits_graph = all(rows * block.top_k <= ops.graph_expert_rows() for block in mixtures)

    def construct(self, x, rope, valid):
        """x `[B, 1, D]`, rope (cos, sin) `[B, 1, D/2]`, valid bool `[B, 1]` -> logits `[B, 1, V]`, hidden `[B, 1, D]`."""
        if self.fused is not None:
            self.cache.advance(valid)
            return ops.decoder_step(x, *rope, self.output_layer.weight, self.cache.tables(), self.fused)
        place, store = self.cache.admit(rope, valid)
        if self.graph is None or self.graph.keys is not store[0]:
            self.graph = _DecoderGraph(self.decoder, self.output_layer, store)
        if self.fits_graph and self.decoder.compilable and self.due():
            self.decoder.announce(x)
            return self.graph(x, *place)
        return self.graph.run(x, *place)


class Graph(Cell):
    """A cell that is compiled once: every call has inputs of the same shapes."""

    def __init__(self):
        super().__init__(auto_prefix=False)

    def _pass(self, x, place, store=None):
        """The pass of `layers` and `norm`, on buffers of its own or a store. Not `Decoder.run`: a graph that reaches a cell takes its
        `construct` in, and the decoders' reads arrays on the host.
        """
        for index, layer in enumerate(self.layers):
            x = layer(x, place, store or (self.keys, self.values), index)
        return self.norm(x)

    def __call__(self, *arguments):
        with interruptible():
            return super().__call__(*arguments)


class _DecoderGraph(Graph):
    def __init__(self, decoder, output_layer, store):
        super().__init__()
        self.layers, self.norm = decoder.layers, decoder.norm
        self.output_layer = output_layer
        self.keys, self.values = store

    def run(self, x, cos, sin, mask, slots):
        hidden = self._pass(x, (cos, sin, mask, slots))
        return ops.linear(hidden, self.output_layer.source(self.output_layer.weight)), hidden

    @ms.jit
    def construct(self, x, cos, sin, mask, slots):
        return self.run(x, cos, sin, mask, slots)


class FrameStep(Step):
    """Codes 1 .. n-1 of one frame: the code predictor's fixed loop, as a whole.

    Where there is a fused operator (`ops.code_frame`) that is all of it; else the cells run, as a graph when it pays.
    sampling: (temperature, top_k, top_p), or None for greedy decoding, which does not look at the noise.
    """

    def __init__(self, talker, batch_size, sampling):
        super().__init__()
        self.sampling = sampling
        self.predictor = talker.code_predictor
        self.groups = self.predictor.config.num_code_groups - 1
        weights = frame_weights(talker)
        talker.prepared_frame = self.fused = weights and ops.prepare(weights, talker.prepared_frame)
        self.graph = None if self.fused else FrameGraph(talker, batch_size, sampling)

    def construct(self, hidden, code, noise):
        """hidden `[B, 1, D]` (talker), code 0 int32 `[B, 1]`, noise float32 `[B, n-1]` uniform in [0, 1)
        -> codes int32 `[B, n]` and the sum of their embeddings `[B, 1, D]`.
        """
        if self.fused is not None:
            return ops.code_frame(hidden, code, noise, self.sampling, self.fused)
        with self.predictor.frame():
            compiled = self.predictor.model.compilable and self.due()
            return self.graph(hidden, code, noise) if compiled else self.graph.run(hidden, code, noise)


class FrameGraph(Graph):
    """The loop of `FrameStep` as cells, with its own buffers."""

    def __init__(self, talker, batch_size, sampling):
        super().__init__()
        predictor = talker.code_predictor
        self.embed, self.residuals = talker.model.codec_embedding, predictor.model.codec_embedding
        self.layers, self.norm, self.heads = predictor.model.layers, predictor.model.norm, predictor.lm_head
        self.sampling = sampling
        config = predictor.config
        self.groups = config.num_code_groups - 1
        starts, lengths = [0, *range(2, self.groups + 1)], [2] + [1] * (self.groups - 1)
        self.places = tuple(predictor.place(start, new, batch_size) for start, new in zip(starts, lengths))
        rows = batch_size * config.num_key_value_heads * config.num_code_groups
        shape, dtype = (rows, config.head_dim), self.embed.weight.dtype
        self.keys, self.values = (
            ParameterTuple(
                [
                    Parameter(initializer("zeros", shape, dtype), name=f"frame{id(self)}.{kind}{layer}")
                    for layer in range(config.num_hidden_layers)
                ]
            )
            for kind in ("key", "value")
        )

    @ms.jit
    def construct(self, hidden, code, noise):
        return self.run(hidden, code, noise)

    def run(self, hidden, code, noise):
        embed = self.embed(code)
        x, total, codes = ops.concat((hidden, embed), 1), embed, (code,)
        for group in range(self.groups):
            hidden = self._pass(x, self.places[group])[:, -1:]
            logits = self.heads[group](hidden[:, 0])
            code = self._choose(logits, noise[:, group : group + 1])
            x = self.residuals[group](code)
            total = total + x
            codes = codes + (code,)
        return ops.concat(codes, 1), total + (hidden - hidden)  # NaN where the states are, see `ops.code_frame`

    def _choose(self, logits, noise):
        if self.sampling is None:
            return ops.argmax(logits).reshape(-1, 1)
        temperature, top_k, top_p = self.sampling
        return ops.draw(logits, noise, temperature, top_k, top_p)
