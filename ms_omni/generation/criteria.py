"""transformers' base classes for a script's own criteria and processors; transformers' own need PyTorch.

`generate` calls whatever can be called, so they hold nothing: they are there to be subclassed and listed.
"""

from typing import Any


class StoppingCriteria:
    """Called with ids int64 `[B, T]` and the scores so far; returns whether to stop, one bool or bool `[B]`."""

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no __call__; write one that says whether to stop")


class StoppingCriteriaList(list):
    """Several `StoppingCriteria`: a row ends when one of them says so."""


class LogitsProcessor:
    """Called with ids int64 `[B, T]` and scores float32 `[B, V]`; returns scores of the same shape."""

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no __call__; write one that returns the scores")


class LogitsProcessorList(list):
    """Several `LogitsProcessor`s, called one after the other."""
