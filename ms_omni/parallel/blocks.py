"""Blocks of sharded weights: gathered when their cell begins, free again when it ends.

    layers.0  |gather 0|compute 0        |
    layers.1           |gather 1|        |compute 1        |          gathers run ahead by one block where the
    layers.2                             |gather 2|        |compute 2  device overlaps them with computing

The order of gathers follows from the order of the cells alone, so it is the same on every rank.
"""

from contextlib import contextmanager

from ..modeling import ops


class Bundle:
    """Parameters that one collective gathers.

    parameters: the local parts, one Parameter each; runs: their `Run`s; gather: part of all ranks -> whole.
    """

    def __init__(self, parameters, runs, gather):
        self.parameters = parameters
        self.runs = runs
        self.gather = gather

    def __call__(self):
        """The whole weights, in order."""
        if len(self.parameters) == 1:
            return [self.runs[0].join(self.gather(self.parameters[0]))]
        parts = ops.concat([parameter.reshape(-1) for parameter in self.parameters], 0)
        parts = self.gather(parts).reshape(-1, parts.shape[0])  # [ranks, elements]
        weights, start = [], 0
        for run in self.runs:
            weights.append(run.join(parts[:, start : start + run.length].contiguous()))
            start += run.length
        return weights


class Block:
    """The bundles of one cell. `following`: the block that is used next, gathered ahead where `ahead` can do that.

    Held while a cell runs; `source` is what its layers read their weights through.
    """

    def __init__(self, members, ahead=None):
        self.bundles = members
        self.home = {
            id(parameter): (bundle, place) for bundle in members for place, parameter in enumerate(bundle.parameters)
        }
        self.ahead = ahead
        self.following = None
        self.coming = None
        self.users = 0
        self.weights = {}

    def source(self, parameter):
        """The whole weight of a sharded parameter; outside the block's cell it is gathered just for the caller."""
        if parameter is None or id(parameter) not in self.home:
            return parameter
        if self.weights:
            return self.weights[id(parameter)]
        bundle, place = self.home[id(parameter)]
        return bundle()[place]

    @contextmanager
    def held(self):
        """Holds the whole weights for the duration of the block; may be nested."""
        self._enter()
        try:
            yield
        finally:
            self._leave()

    def _enter(self):
        self.users += 1
        if self.users > 1:
            return
        if self.coming is None:
            self.weights = self._gather()
        else:
            self.weights, self.coming = self.ahead.take(self.coming), None
        if self.ahead is not None and self.following is not None and self.following.coming is None:
            self.following.coming = self.ahead.start(self.following._gather)

    def _leave(self):
        self.users -= 1
        if self.users == 0:
            self.weights = {}

    def _gather(self):
        return {id(parameter): weight for bundle in self.bundles for parameter, weight in zip(bundle.parameters, bundle())}


class StreamAhead:
    """Gathers on a stream of their own, beside what is computed. For devices with streams (Ascend)."""

    def __init__(self, runtime):
        self.runtime = runtime
        self.stream = runtime.Stream()

    def start(self, gather):
        """Begins a gather; the result is for `take`."""
        with self.runtime.StreamCtx(self.stream):
            weights = gather()
            return weights, self.stream.record_event()

    def take(self, started):
        """The weights, once the computing stream has been told to wait for them."""
        weights, event = started
        self.runtime.current_stream().wait_event(event)
        return weights
