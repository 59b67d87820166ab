"""Whether MindSpore records what is computed, to take its gradient.

It keeps one record for all threads, so one of them at a time may take a gradient, and nobody computes anything else meanwhile.
"""

from functools import wraps

from mindspore.common.api import _pynative_executor
from mindspore.ops.composite import base

from ...locking import exclusive


def recording():
    """Whether MindSpore records what is computed, to take its gradient."""
    return _pynative_executor.requires_grad()


def stop_recording():
    """After an error: MindSpore goes on recording when what it records fails, and all that follows would be taken for a part."""
    if recording():
        _pynative_executor.clear_res()


def _guard(operation):
    """Lets `mindspore.grad`, `value_and_grad` and what else is made of `operation` wait for the lock."""
    plain = operation.__call__

    @wraps(plain)
    def call(self, *args, **kwargs):
        return exclusive(plain(self, *args, **kwargs))

    operation.__call__ = call


_guard(base._Grad)
_guard(base.GradOperation)
