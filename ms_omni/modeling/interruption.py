"""Ctrl-C while a compiled graph runs, and while it would leave something half done.

MindSpore 2.7.1 puts a handler of its own in the place of Python's whenever a graph is compiled or called, after the first call
also a little later, and leaves it there: from then on SIGINT makes the process send itself SIGTERM, and it is gone without a
word, its files unfinished.
"""

import signal
import threading
from contextlib import contextmanager


def restore():
    """Puts the handler that Python knows for SIGINT in its place again."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is threading.main_thread() and handler is not None:
        signal.signal(signal.SIGINT, handler)


@contextmanager
def interruptible():
    """Around a call of a graph: SIGINT, also in the guise of SIGTERM, reaches the handler that Python knows for SIGINT, and
    afterwards that handler is in its place again.
    """
    interrupt = signal.getsignal(signal.SIGINT)
    ended = signal.getsignal(signal.SIGTERM)
    if threading.current_thread() is not threading.main_thread() or not callable(interrupt) or ended is None:
        yield
        return
    signal.signal(signal.SIGTERM, lambda number, frame: interrupt(signal.SIGINT, frame))
    try:
        yield
    finally:
        try:
            signal.signal(signal.SIGINT, interrupt)  # takes care of one that has come meanwhile, and may raise
        finally:
            signal.signal(signal.SIGTERM, ended)
            signal.signal(signal.SIGINT, interrupt)


@contextmanager
def uninterrupted():
    """SIGINT waits for the end of the block."""
    handler, came = signal.getsignal(signal.SIGINT), []
    if threading.current_thread() is not threading.main_thread() or handler is None:
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: came.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if came:
            signal.raise_signal(signal.SIGINT)
