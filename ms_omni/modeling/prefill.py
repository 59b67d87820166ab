"""Reading a prompt in chunks: memory grows with the chunk, not with the square of the prompt.

A pass over S tokens after T earlier ones needs a mask `[B, S, T]`, and operators without tiles need scores
`[B, H, S, T]`: for 30,000 tokens at once 3.6 GB and 115 GB (32 heads, float32). In chunks of `CHUNK_TOKENS` the mask of the
last chunk is 61 MB. The numbers are those of one pass over everything.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from mindspore import Tensor

from . import ops
from .cache import KVCache, whole_sequence


class OutputRecorder:
    """Records hidden states and router logits of one call of a decoder; `observer` and `router_logits` go into the call.

    hidden_states: True, or the indices to record (0: the input, i: layer i's output, before deepstack features are
    added); the others become None. router_logits becomes a list of one `[B * S, E]` per sparse layer.

    No hooks on the cells: MindSpore compiles every graph of the process again when a hook is added or removed.
    """

    def __init__(self, decoder: Any, hidden_states: Any = False, router_logits: bool | None = False) -> None:
        self.layers = len(decoder.layers)
        self.recorded = range(self.layers + 1) if hidden_states is True else hidden_states or ()
        self.hidden_states = [None] * (self.layers + 1)
        self.router_logits = [] if router_logits else None
        self.observer = self._record_hidden if self.recorded else None

    def _record_hidden(self, index, x):
        if index in self.recorded:
            self.hidden_states[index] = x

    def finished(self, last: Tensor) -> tuple | None:
        """The collected states; the last is the decoder's result after its final norm, as in transformers."""
        if not self.recorded:
            return None
        return (*self.hidden_states[:-1], last if self.layers in self.recorded else None)


CHUNK_TOKENS = 512
"""Enough rows to keep matrix products busy: more are not faster, fewer read the weights more often."""


class Deepstack:
    """Features that are added to the outputs of the first layers, at the tokens of the pictures they come from.

    parts: `(index, features)` per kind of medium: positions int `[M]` among the B * T tokens, row after row, and one
    `[M, D]` per layer; tokens: T.
    """

    def __init__(self, parts: list[tuple[np.ndarray, list[Tensor]]], tokens: int) -> None:
        self.parts = parts
        self.tokens = tokens

    def between(self, start: int, stop: int) -> Callable[[int, Tensor], Tensor] | None:
        """The function `inject(layer, x) -> x` for the tokens `[start, stop)` of every row, or None without any."""
        chosen = []
        for index, features in self.parts:
            row, column = np.divmod(index, self.tokens)
            inside = np.flatnonzero((column >= start) & (column < stop)).astype(np.int32)
            if len(inside):
                position = (row * (stop - start) + column - start)[inside].astype(np.int32)
                chosen.append((Tensor(position), [_rows(feature, inside) for feature in features]))
        if not chosen:
            return None

        def inject(layer, x):
            for position, features in chosen:
                if layer < len(features):
                    x = ops.add_rows(x.reshape(-1, x.shape[-1]), position, features[layer].astype(x.dtype)).reshape(x.shape)
            return x

        return inject


def _rows(x, index):
    return x if len(index) == x.shape[0] else ops.gather_rows(x, Tensor(index))


def read_tokens(
    decoder: Any,
    x: Tensor,
    position_ids: np.ndarray,
    valid: np.ndarray,
    cache: KVCache | None,
    deepstack: Deepstack | None,
    hidden_states: Any = False,
    router_logits: bool | None = False,
    runs: np.ndarray | None = None,
) -> tuple[Tensor, tuple | None, tuple | None]:
    """The decoder on the tokens that follow what `cache` holds, or on a whole sequence where that is None.

    x `[B, S, D]`, position_ids float32 `[3, B, S]`, valid bool `[B, S]`; deepstack: a `Deepstack` or None; hidden_states and
    router_logits as for `OutputRecorder`; runs: see `cache.causal_mask`. Returns the last hidden states `[B, S, D]`, and the recorded states and router logits as of `OutputRecorder`.
    Without a cache it is one pass, which has a gradient.
    """
    tokens = x.shape[1]
    if cache is not None:
        cache.reserve(cache.length + tokens)  # once, so that every chunk has buffers of one shape
    size = tokens if cache is None else CHUNK_TOKENS
    passes = []
    for start in range(0, tokens, size):
        stop = min(start + size, tokens)
        rope = decoder.rope(position_ids[:, :, start:stop])
        if cache is None:
            metadata, store = whole_sequence(rope, valid, decoder.window, runs)
        else:
            metadata, store = cache.allocate(rope, valid[:, start:stop])
        inject = None if deepstack is None else deepstack.between(start, stop)
        piece = x if stop - start == tokens else x[:, start:stop]
        recorder = OutputRecorder(decoder, hidden_states, router_logits)
        hidden = decoder.run(piece, metadata, store, inject, recorder.observer, recorder.router_logits)
        passes.append(
            (hidden, recorder.finished(hidden), None if recorder.router_logits is None else tuple(recorder.router_logits))
        )
    return passes[0] if len(passes) == 1 else _joined(passes, x.shape[0])


def _joined(passes, batch):
    hidden, states, logits = zip(*passes)
    states = states[0] and tuple(None if parts[0] is None else ops.concat(parts, 1) for parts in zip(*states))
    logits = logits[0] and tuple(_joined_rows(parts, batch) for parts in zip(*logits))
    return ops.concat(hidden, 1), states, logits


def _joined_rows(parts, batch):
    """Router logits `[B * S, E]` of every chunk -> `[B * T, E]`."""
    joined = ops.concat([part.reshape(batch, -1, part.shape[-1]) for part in parts], 1)
    return joined.reshape(-1, joined.shape[-1])
