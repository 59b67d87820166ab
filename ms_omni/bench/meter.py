"""Counting what happens during a block: reads from the device, compiled graphs that run, graphs that are built.

MindSpore has no counters for these, so its own entry points are wrapped while the block runs.
"""

import functools
import time

from mindspore import Tensor
from mindspore.common import api

# What brings a value to the host. The others (`numpy`, `tolist`, `bool(x)`, ...) go through these.
READS = ("asnumpy", "_item", "tolist")


class Meter:
    """Context manager; afterwards reads, graphs and compiled are counts, and spans the (start, end) of each graph's
    run in seconds since the epoch. wait: a graph's run lasts until its kernels are done, not only until it is started.
    """

    def __init__(self, wait=False):
        self.wait = wait
        self.reads = self.graphs = self.compiled = 0
        self.spans = []
        self._depth = 0
        self._undo = []

    def __enter__(self):
        for name in READS:
            self._wrap(Tensor, name, self._count_read)
        self._wrap(api._JitExecutor, "__call__", self._count_graph)
        self._known = api.ms_compile_cache
        self._phases = set(self._known)
        return self

    def __exit__(self, *_):
        self.compiled = len(set(self._known) - self._phases)
        for owner, name, original in reversed(self._undo):
            if original is None:
                delattr(owner, name)
            else:
                setattr(owner, name, original)

    def _wrap(self, owner, name, count):
        inner = getattr(owner, name)
        self._undo.append((owner, name, owner.__dict__.get(name)))
        setattr(owner, name, functools.wraps(inner)(count(inner)))

    def _count_read(self, inner):
        def read(*arguments, **options):
            self.reads += self._depth == 0  # one read may be written in terms of another
            self._depth += 1
            try:
                return inner(*arguments, **options)
            finally:
                self._depth -= 1

        return read

    def _count_graph(self, inner):
        def call(*arguments, **options):
            started = time.time()
            result = inner(*arguments, **options)
            if self.wait:
                self._finish(result)
            self.graphs += 1
            self.spans.append((started, time.time()))
            return result

        return call

    def _finish(self, result):
        """Waits for a graph by reading its first result, which does not count."""
        while isinstance(result, (tuple, list)):
            result = result[0]
        self._depth += 1
        result.asnumpy()
        self._depth -= 1
