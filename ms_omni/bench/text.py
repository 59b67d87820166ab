"""Text of a known length, as the scenarios want it, and an engine that remembers nothing of what it has read before."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..engine.blocks import ContentCache
from ..engine.engine import Engine
from ..engine.shared import engine_of
from ..engine.stream import Stream
from ..generation.request import Request
from ..generation.sampling import SamplingParams
from ..locking import exclusive


def write(model: Any, ids: np.ndarray, tokens: int) -> Stream:
    """Greedy answers of exactly `tokens` tokens to ids `[B, T]`: an iterator with one event per token, and an end."""
    return Stream(fresh_engine(model), Request({"input_ids": ids}, SamplingParams(max_new_tokens=tokens)))


def fresh_engine(model: Any) -> Engine:
    """The engine that the model's own methods share; nothing that was read before is found again in it."""
    engine = engine_of(model)
    forget(engine)
    return engine


@exclusive
def forget(engine: Engine) -> None:
    """Whoever sends what was sent before is answered like the first."""
    for pool in filter(None, engine.scheduler.pools):
        pool.forget()
    features = engine.thinker.features
    engine.thinker.features = ContentCache(features.budget)


@contextmanager
def compiled_at_once(model: Any) -> Iterator[None]:
    """Engines that are made meanwhile build their graphs, if they build any, at the first call of a shape: in a warm-up."""
    before = model.compile_after
    model.compile_after = None if before is None else 0
    try:
        yield
    finally:
        model.compile_after = before
