"""What `generate` returns when there is no speech: one value that scripts for two versions of transformers can read.

    4.57    text_ids, audio = model.generate(..., return_audio=False)       text_ids = model.generate(...)[0]
    5.x     text_ids = model.generate(..., return_audio=False)              text_ids[:, n:]      text_ids[0]

It is the ids, as in 5.x, in everything (shape, slices, loops, numpy's functions), but for what only a pair can mean: unpacking
into two names gives the ids and None; so does `[1]`, where there is no second row; and the first row, `[0]`, is the ids again
as soon as it is indexed as those are: `[0][:, n:]`, `[0].sequences`, `[0][0]`.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .arrays import HostArray
from .outputs import GenerateOutput

UNPACK = dis.opmap["UNPACK_SEQUENCE"]


def unpacked_into_two(depth: int = 2) -> bool:
    """Whether the frame that asked for an iterator is just unpacking it into two names: `a, b = x` and nothing else."""
    frame = sys._getframe(depth)
    code, place = frame.f_code.co_code, frame.f_lasti
    return code[place] == UNPACK and code[place + 1] == 2


class TextIds(HostArray):
    """Ids int64 `[B, T]` that also read as the output they would be part of: `ids.sequences`, `ids["sequences"]`."""

    @property
    def sequences(self) -> TextIds:
        return self

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, str):
            if index == "sequences":
                return self
            raise KeyError(index)
        return _array(np.ndarray.__getitem__(self, index))

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        return _array(array)


class TextAnswer(TextIds):
    """The ids int64 `[B, T]` of an answer without speech; see the top of this file."""

    def __iter__(self) -> Iterator:
        return iter((self.view(TextIds), None) if unpacked_into_two() else list(self.view(TextIds)))

    def __getitem__(self, index: Any) -> Any:
        if self.ndim == 2 and isinstance(index, (int, np.integer)):
            if index == 1 and len(self) == 1:
                return None
            if index == 0:
                row = np.ndarray.__getitem__(self, 0).view(FirstRow)
                row.sequences = self.view(TextIds)
                return row
        return super().__getitem__(index)


class FirstRow(HostArray):
    """The first row `[T]` of an answer, or the answer `[B, T]`, as it is indexed. sequences: the answer's ids."""

    sequences: Any = None

    def __getitem__(self, index: Any) -> Any:
        of_all = isinstance(index, (str, tuple)) or (isinstance(index, (int, np.integer)) and index == 0)
        if of_all and self.sequences is not None:
            return self.sequences[index]
        return _array(np.ndarray.__getitem__(self, index))

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        return _array(array)


@dataclass(eq=False)
class OutputAnswer(GenerateOutput):
    """A `GenerateOutput` without speech. Unpacked into two names it is itself and None; `[0]` is the ids, which have what else
    it holds as attributes.
    """

    def __iter__(self) -> Iterator:
        return iter((self, None) if unpacked_into_two() else self.keys())

    def __getitem__(self, key: Any) -> Any:
        if key == 1 and len(self) == 1:
            return None
        value = super().__getitem__(key)
        if key == 0:
            value = value.view(TextIds)
            value.__dict__.update({name: self[name] for name in self.keys() if name != "sequences"})
        return value


def _array(result: Any) -> Any:
    return result.view(HostArray) if isinstance(result, np.ndarray) else result


def without_speech(text: Any) -> Any:
    """The answer of `generate` around its text, a `TextIds` or a `GenerateOutput`."""
    return text.view(TextAnswer) if isinstance(text, np.ndarray) else OutputAnswer(**vars(text))
