"""The engine that all calls of a model's own methods share: `generate`, `stream`, `say`."""

from typing import Any

from ..locking import exclusive
from .engine import Engine

MAX_ROWS = 64


@exclusive
def engine_of(model: Any) -> Engine:
    """That of a model, or of a thinker, made at the first call; it begins small and grows.

    A thinker shares the engine of the model that it is a part of, once that has one.
    """
    engine = model.own_engine
    if engine is None or not engine.fits(model):
        engine = model.own_engine = Engine(model, MAX_ROWS, grows=True)
        if engine.whole:
            model.thinker.own_engine = engine
    return engine
