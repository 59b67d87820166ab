"""transformers' tokenizers, with `return_tensors="pt"` and "ms" as in the processor, and for several threads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache, wraps
from typing import Any

import numpy as np

from ms_omni.input.inputs import ModelInputs

ENCODING = threading.RLock()
"""Held while a tokenizer encodes: it sets up padding and truncation for all threads first, and fails while another encodes."""


def with_arrays(tokenizer: Any) -> Any:
    """The same tokenizer for several threads, whose results may be arrays that can do what scripts for PyTorch ask of tensors."""
    tokenizer.__class__ = _class_with_arrays(type(tokenizer))
    return tokenizer


def _converted(name: str) -> Callable:
    def method(self: Any, *args: Any, return_tensors: Any = None, **kwargs: Any) -> Any:
        plain = getattr(super(_ArrayResults, self), name)
        kind = getattr(return_tensors, "value", return_tensors)
        if kind not in ("pt", "ms"):
            return plain(*args, return_tensors=return_tensors, **kwargs)
        result = plain(*args, return_tensors="np", **kwargs)
        if isinstance(result, np.ndarray):
            return ModelInputs({"ids": result}).convert_to_tensors(kind)["ids"]
        return ModelInputs(result).convert_to_tensors(kind) if hasattr(result, "keys") else result

    method.__name__ = method.__qualname__ = name
    return method


def _one_at_a_time(name: str, base: type) -> Callable:
    plain = getattr(base, name)

    @wraps(plain)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        with ENCODING:
            return plain(self, *args, **kwargs)

    return method


class _ArrayResults:
    """Put in front of a tokenizer's class: PyTorch is asked for by name in these methods, and not installed."""

    __call__, encode, pad, apply_chat_template = map(_converted, ("__call__", "encode", "pad", "apply_chat_template"))

    def __reduce__(self) -> tuple:
        return _restored, (type(self).__mro__[2], self.__dict__)


@cache
def _class_with_arrays(base: type) -> type:
    encoding = ("_encode_plus", "_batch_encode_plus", "_add_tokens")  # under whatever is public
    methods = {name: _one_at_a_time(name, base) for name in encoding if hasattr(base, name)}
    return type(base.__name__, (_ArrayResults, base), {"__module__": base.__module__, "__doc__": base.__doc__, **methods})


def _restored(base: Any, state: dict[str, Any]) -> Any:
    tokenizer = base.__new__(base)
    tokenizer.__dict__.update(state)
    return with_arrays(tokenizer)
