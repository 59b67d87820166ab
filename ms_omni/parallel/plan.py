"""Plans as tables: which ranks hold which part of every parameter. No MindSpore here, only names and numbers.

One table drives loading (a rank reads its slices), the prediction of memory (`ms-omni plan`) and export
(`ms-omni convert --shards`). Names are full names, with the leading `thinker.`, `talker.` or `code2wav.`.

A parameter is cut along one axis (`Placement`), or, for ZeRO-3, into equal runs of its elements in row-major order (`Flat`). Where
the first axis divides, a run is a slice of rows, as mindone has it; where it does not, only the last run is padded, by fewer than N
elements. So nothing is ever replicated, and a gather puts the runs behind one another without moving anything.
"""

import math
import re
from dataclasses import dataclass
from importlib import import_module

import numpy as np

from ..errors import InputError

STRATEGIES = {"ep": "expert_parallel", "zero3": "zero3_plan"}
"""Modules of this package with `make_plan(config, shapes, size, **options) -> Plan` and
`attach(model, slices, comm) -> SplitVocabulary or None`, which puts the collectives into a model."""
SHOWN = 10


@dataclass(frozen=True)
class Placement:
    """How one parameter is spread over N ranks.

    axis None: every rank holds all of it. Otherwise this axis is cut at multiples of `unit` into N / `copies` parts, as
    equal as can be, each held by `copies` neighbouring ranks. padded: all ranks hold equally much, the last parts end
    in zeros (what a gather wants). once: rank 0 holds the values and the others zeros, so that a sum over ranks has
    them once. gathered: the layer collects the parts whenever it reads its weight.
    """

    axis: int | None = None
    unit: int = 1
    copies: int = 1
    padded: bool = False
    once: bool = False
    gathered: bool = False

    def slice(self, shape, rank, size):
        """The `Slice` of rank `rank` among `size`. Raises `InputError` where a rank would have nothing to hold."""
        if self.once and rank:
            return Slice(tuple(shape), 0, 0, 0, shape[0])
        if self.axis is None:
            return Slice(tuple(shape))
        units, rest = divmod(shape[self.axis], self.unit)
        parts, unequal = divmod(size, self.copies)
        if rest or unequal or (units < parts and not self.padded):
            raise InputError(f"an axis of {shape[self.axis]} in units of {self.unit} cannot be cut into {parts} parts")
        part = rank // self.copies
        if self.padded:
            length = -(-units // parts) * self.unit
            start = min(part * length, shape[self.axis])
            return Slice(tuple(shape), self.axis, start, min(start + length, shape[self.axis]), length)
        start, stop = (self.unit * (units * index // parts) for index in (part, part + 1))
        return Slice(tuple(shape), self.axis, start, stop, stop - start)


@dataclass(frozen=True)
class Slice:
    """A rank's part of a parameter of `shape`: `[start, stop)` of `axis` (None: all of it), followed by zeros up to
    `length`.
    """

    shape: tuple
    axis: int | None = None
    start: int = 0
    stop: int = 0
    length: int = 0
    flat = False  # a `Run` counts elements instead

    @property
    def local_shape(self):
        """The shape that the rank holds."""
        return tuple(self.length if axis == self.axis else n for axis, n in enumerate(self.shape))

    @property
    def is_whole(self):
        """Whether the rank holds the parameter as it is."""
        return self.axis is None or (self.start, self.stop, self.length) == (0, *(self.shape[self.axis],) * 2)

    @property
    def index(self):
        """What to read: an index into the whole parameter."""
        return tuple(slice(self.start, self.stop) if axis == self.axis else slice(None) for axis in range(len(self.shape)))

    @property
    def filled(self):
        """Where it goes: an index into the local array; the rest of that is zeros."""
        read = self.stop - self.start
        return tuple(slice(read) if axis == self.axis else slice(None) for axis in range(len(self.shape)))

    def put(self, whole, local):
        """Writes the rank's part `local` to where it belongs in the numpy array of the whole parameter."""
        whole[self.index] = local[self.filled]


@dataclass(frozen=True)
class Row:
    """Parameters whose full name matches `pattern` (a regular expression; `<n>` is a number) are placed so."""

    pattern: str
    placement: Placement

    def matches(self, name):
        return re.fullmatch(self.pattern.replace("<n>", r"\d+"), name) is not None


@dataclass(frozen=True)
class Plan:
    """A named table. Each parameter is placed by exactly one row, and each row places at least one.

    pieces: whether it cuts arrays, so that what is stored as codes is placed array by array; else codes, scales and offsets go with
    the matrix that they are.
    """

    name: str
    rows: tuple
    pieces: bool = False

    def placements(self, names):
        """`{name: Placement}`. Raises `InputError` that lists parameters placed by no row or several, and idle rows."""
        found, used, problems = {}, set(), []
        for name in names:
            hits = [row for row in self.rows if row.matches(name)]
            if len(hits) == 1:
                found[name] = hits[0].placement
                used.add(hits[0].pattern)
            else:
                problems.append(f"{name}: placed by {len(hits) or 'no'} rows")
        problems += [f"row {row.pattern}: matches no parameter" for row in self.rows if row.pattern not in used]
        if problems:
            more = [f"... and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
            raise InputError(f"the plan {self.name!r} does not fit this model:\n  " + "\n  ".join(problems[:SHOWN] + more))
        return found

    def place(self, shapes, rank, size, arrays=None):
        """`{name: Slice}` of one rank, from `{name: shape}`. Raises `InputError` for a number of ranks that cannot be.

        arrays: `{name: {name of an array: shape}}` of those parameters that are stored as several.
        """
        slices = {}
        if self.pieces:
            shapes = dict(item for name, shape in shapes.items() for item in (arrays or {}).get(name, {name: shape}).items())
        for name, placement in self.placements(shapes).items():
            try:
                slices[name] = placement.slice(shapes[name], rank, size)
            except InputError as error:
                raise InputError(f"{name} over {size} ranks (plan {self.name!r}): {error}") from None
        return slices


REPLICATE = Placement()
ONCE = Placement(once=True)


def split(axis, unit=1, copies=1):
    """Cut along `axis`; see `Placement`."""
    return Placement(axis, unit, copies)


def gather(axis, unit=1):
    """Cut along `axis` into parts of one size that the layer collects whenever it reads its weight (ZeRO-3)."""
    return Placement(axis, unit, padded=True, gathered=True)


def strategy_module(strategy):
    """The module of a strategy, see `STRATEGIES`."""
    return import_module(f".{STRATEGIES[strategy]}", __package__)


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
