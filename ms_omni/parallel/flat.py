"""Splitting a parameter into equal runs of elements: the placement of ZeRO-3.

A parameter's elements in row-major order are cut into N runs of one length. Where the first axis divides, a run is a
slice of rows, as mindone has it; where it does not, only the last run is padded, by fewer than N elements. So nothing
is ever replicated, and a gather puts the runs behind one another without moving anything.
"""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Run:
    """A rank's elements `[start, stop)` of a parameter of `shape`, followed by zeros up to `length` elements."""

    shape: tuple
    start: int
    stop: int
    length: int

    flat = True  # elements, not indices of an axis

    @property
    def is_whole(self):
        """Whether the rank holds the parameter as it is."""
        return self.length == self.elements and self.in_rows

    @property
    def row(self):
        """Elements of a row, which is what the first axis counts."""
        return math.prod(self.shape[1:])

    @property
    def elements(self):
        """Elements of the whole parameter."""
        return math.prod(self.shape)

    @property
    def in_rows(self):
        """Whether runs begin and end with rows."""
        return self.length % self.row == 0

    @property
    def local_shape(self):
        """The shape that the rank holds: whole rows, or one axis of elements."""
        return (self.length // self.row, *self.shape[1:]) if self.in_rows else (self.length,)

    def cut(self, whole):
        """The rank's part of the parameter as a numpy array, a copy."""
        part = np.zeros(self.length, whole.dtype)
        part[: self.stop - self.start] = whole.reshape(-1)[self.start : self.stop]
        return part.reshape(self.local_shape)

    def put(self, whole, local):
        """Writes the rank's part `local` to where it belongs in the numpy array of the whole parameter."""
        whole.reshape(-1)[self.start : self.stop] = local.reshape(-1)[: self.stop - self.start]

    def join(self, parts):
        """The parameter out of the parts of all ranks behind one another, `[ranks * n, ...]` or flat (tensor or array)."""
        if self.in_rows:
            return parts.reshape(-1, *self.shape[1:])[: self.shape[0]]
        return parts.reshape(-1)[: self.elements].reshape(self.shape)


@dataclass(frozen=True)
class Flat:
    """The placement: N equal runs. by_rows keeps rows whole, for tables that are read row by row."""

    by_rows: bool = False

    def slice(self, shape, rank, size):
        """The `Run` of rank `rank` among `size`."""
        elements, unit = math.prod(shape), math.prod(shape[1:]) if self.by_rows else 1
        length = -(-elements // (unit * size)) * unit
        start = min(rank * length, elements)
        return Run(tuple(shape), start, min(start + length, elements), length)
