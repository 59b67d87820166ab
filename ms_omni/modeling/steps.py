"""What generation calls once per token or frame: one fused operator each where there is one (see `ops`); elsewhere cells, which
are compiled to one graph per shape after `COMPILE_AFTER` calls. The steps of thinker and talker, on the blocks of a pool, are in
`engine/kv_pool.py`.
"""

from collections.abc import Callable, Sized
from functools import cached_property
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn
from mindspore.common.initializer import initializer

from ..locking import interruptible
from . import ops
from .layer import Cell, explained
from .ops.fused import Kind
from .packing import host_array
from .step_weights import frame_weights

COMPILE_AFTER = 32
"""Calls of a step, over all answers, before it is compiled: a graph takes seconds to build, which short answers do not
need. Both ways compute the same numbers."""


LAUNCH_ROWS = 16
"""Rows of the largest launch that a graph is compiled for."""


def launch_sizes(rows: int) -> list[int]:
    """Rows of the launches that graphs are compiled for, where so many rows are answered at a time."""
    return [1 << power for power in range(bucket(min(rows, LAUNCH_ROWS)).bit_length())]


def bucket(rows: Sized | int) -> int:
    """Rows of the launch for so many rows: the next of 1, 2, 4, 8, 16, ..."""
    return 1 << max((rows if isinstance(rows, int) else len(rows)) - 1, 0).bit_length()


def compiles_ahead(compile_after: int | None) -> bool:
    """Whether graphs over packed weights are compiled before the first request: on Ascend; elsewhere (where their kernels are
    emulated) for compile_after 0 alone.
    """
    return compile_after is not None and (compile_after == 0 or ms.get_context("device_target") == "Ascend")


class Step:
    """Cells that run as they are for the first calls with inputs of a shape, and as a graph from then on.

    compile_after: so many calls; None: never.
    """

    def __init__(self, compile_after: int | None = COMPILE_AFTER) -> None:
        self.compile_after = compile_after
        self.calls = {}

    def due(self, shape: tuple = ()) -> bool:
        """Counts a call; whether it is to run as a graph."""
        self.calls[shape] = self.calls.get(shape, 0) + 1
        return self.compile_after is not None and self.calls[shape] > self.compile_after


class Graph(Cell):
    """A cell that is compiled once: every call has inputs of the same shapes."""

    def __init__(self) -> None:
        super().__init__(auto_prefix=False)

    def _pass(self, x, metadata, store=None):
        """The pass of `layers` and `norm`, on buffers of its own or a store. Not `Decoder.run`: a graph compiles `construct` of
        every cell that it reaches, and that of the decoders reads arrays on the host.
        """
        for index, layer in enumerate(self.layers):
            x = layer(x, metadata, store or (self.keys, self.values), index)
        return self.norm(x)

    @cached_property
    def sums(self) -> list[nn.Cell]:
        """The cells that add up partial sums of ranks. Each counts its traffic, but in a graph it is not called."""
        return [cell for _, cell in self.cells_and_names() if hasattr(cell, "count")]

    def __call__(self, x: Tensor, *arguments: Any) -> Any:
        for cell in self.sums:
            cell.count(x)
        with interruptible():
            return super().__call__(x, *arguments)


class FrameStep(Step):
    """Codes 1 .. n-1 of one frame: the code predictor's fixed loop, as a whole.

    Where there is a fused operator (`ops.code_frame`) that is all of it; else the cells run, as a graph when it pays.
    sampling: (temperature, top_k, top_p), or None for greedy decoding, which ignores the noise.
    """

    def __init__(self, talker: Any, batch_size: int, sampling: Kind, compile_after: int | None = COMPILE_AFTER) -> None:
        super().__init__(compile_after)
        self.sampling = sampling
        self.predictor = talker.code_predictor
        self.groups = self.predictor.config.num_code_groups - 1
        self.fused: Any = prepared_frame(talker)
        self.mixes = mixed_by(self.fused)(sampling)
        if not self.mixes and mixed_by(self.fused)(None):  # its graph does not support this sampling
            self.fused = self.compile_after = None
        self.graph: Any = None if self.fused else FrameGraph(talker, batch_size, sampling)

    def warm(self, rows: int) -> None:
        """Compiles the graph for so many rows, where weights are packed."""
        if self.mixes:
            self.fused.ready.add(rows)
            hidden = np.zeros((rows, 1, self.predictor.config.hidden_size), np.float32)
            self(
                Tensor(hidden).astype(self.predictor.model.norm.dtype),
                Tensor(np.zeros((rows, 1), np.int32)),
                self.no_noise(rows),
            )

    def noise(self, stream: np.random.Generator) -> np.ndarray:
        """Random numbers of a row for a frame, as `__call__` takes them: float32, uniform in [0, 1), or exponential."""
        if self.mixes:
            return stream.standard_exponential((self.groups, self.fused.noise_width), np.float32)
        return stream.random(self.groups, np.float32)

    def no_noise(self, rows: int) -> np.ndarray:
        """An array for the noise of so many rows."""
        return np.zeros((rows, self.groups, self.fused.noise_width) if self.mixes else (rows, self.groups), np.float32)

    def __call__(
        self, hidden: Tensor, code: Tensor, noise: Any, sampling: list[Kind] | None = None
    ) -> tuple[Tensor, Tensor]:
        """hidden `[B, 1, D]` (talker), code 0 int32 `[B, 1]`, noise `[B, ...]`: of each row, see above; sampling: of each row, where they
        may differ (`mixes`) -> codes `[B, n]` and the sum of their embeddings `[B, 1, D]`.
        """
        if self.mixes:
            noise, given = host_array(noise), sampling or [self.sampling] * len(hidden)
        else:
            given = self.sampling
        if self.fused is not None:
            try:
                return ops.code_frame(hidden, code, noise, given, self.fused)
            except Exception as error:
                raise explained(error) from None
        with self.predictor.gathered_weights():
            compiled = self.predictor.model.compilable and self.due()
            return self.graph(hidden, code, noise) if compiled else self.graph.run(hidden, code, noise)


def prepared_frame(talker: Any) -> Any:
    """A talker's code predictor as `ops.prepare` returns it, or None."""
    weights = frame_weights(talker)
    talker.prepared_frame = weights and ops.prepare(weights, talker.prepared_frame)
    return talker.prepared_frame


def mixed_by(prepared: Any) -> Callable[[Kind], bool]:
    """A function: whether a launch of this prepared frame takes rows with this and other ways of sampling."""
    return getattr(prepared, "takes", lambda sampling: False)


class FrameGraph(Graph):
    """The loop of `FrameStep` as cells, with its own buffers."""

    def __init__(self, talker: Any, batch_size: int, sampling: Kind) -> None:
        super().__init__()
        predictor = talker.code_predictor
        self.embed, self.residuals = talker.model.codec_embedding, predictor.model.codec_embedding
        self.layers, self.norm, self.heads = predictor.model.layers, predictor.model.norm, predictor.lm_head
        self.sampling = sampling
        config = predictor.config
        self.groups = config.num_code_groups - 1
        starts, lengths = [0, *range(2, self.groups + 1)], [2] + [1] * (self.groups - 1)
        self.metadata = tuple(predictor.attention_metadata(start, new, batch_size) for start, new in zip(starts, lengths))
        rows = batch_size * config.num_key_value_heads * config.num_code_groups
        shape, dtype = (rows, config.head_dim), self.embed.dtype
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
    def construct(self, hidden: Tensor, code: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        return self.run(hidden, code, noise)

    def run(self, hidden: Tensor, code: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        embed = self.embed(code)
        x, total, codes = ops.concat((hidden, embed), 1), embed, (code,)
        for group in range(self.groups):
            hidden = self._pass(x, self.metadata[group])[:, -1:]
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
