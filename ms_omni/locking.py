"""Entering MindSpore: one thread at a time, and without losing an interrupt (SIGINT).

MindSpore keeps one kernel per operator and shapes for the whole process, and the arrays of the call under way in it. Two
threads that call it at the same time get each other's numbers, or end the process.

MindSpore 2.7.1 replaces Python's handler of SIGINT whenever a graph is compiled or called, after the first call also a little
later, and does not put it back. SIGINT then makes the process send itself SIGTERM: it ends without a message, and its files
stay unfinished.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from itertools import starmap
from typing import Any

from .errors import InputError

_RLock: Any = type(threading.RLock())


class Exclusive(_RLock):
    """The process's lock around what enters MindSpore: `with exclusive:`, or `@exclusive` above a function.

    It is held for a step (a token, a frame, a chunk of sound, a forward pass, a weight), never for a request, so that requests
    take turns; and not while code of the caller's runs (`released`). It is reentrant.

    `__exit__` is RLock's own, in C: one written in Python may be interrupted (SIGINT) before it has let go.
    """

    def __init__(self) -> None:
        self._door = threading.RLock()  # who waits stands in it, so that who has just left cannot go first again
        self._entered = self._forked = False
        os.register_at_fork(after_in_child=self._in_child)

    def __enter__(self) -> None:
        nested = self._is_owned()
        if self._forked and not nested:
            raise InputError(
                "this process was forked from one that has already computed with MindSpore, whose threads a fork does not "
                "have; start it with multiprocessing's 'spawn', or load and use the model in the child alone"
            )
        try:
            if nested:
                self.acquire()
            else:
                with self._door:
                    self.acquire()
                self._entered = True
        except BaseException:  # an interruption on the way, maybe after the lock was had
            if self._is_owned():
                self.release()
            raise

    def __call__(self, function: Callable) -> Callable:
        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return call

    def released(self, function: Callable, *args: Any) -> Any:
        """Calls a function of the caller's inside a step: others may enter meanwhile, so it may wait for one of them."""
        held = []
        try:
            if self._is_owned():
                held.extend(starmap(self._release_save, [()]))  # in one call of C, which nothing interrupts
            return function(*args)
        finally:
            if held:
                self._acquire_restore(held[0])

    def _in_child(self) -> None:
        self._at_fork_reinit()
        self._door = threading.RLock()
        self._forked = self._forked or self._entered


exclusive = Exclusive()


def restore_interrupts() -> None:
    """Installs the handler that Python has for SIGINT again."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is threading.main_thread() and handler is not None:
        signal.signal(signal.SIGINT, handler)


@contextmanager
def interruptible() -> Iterator[None]:
    """Around a call of a graph: SIGINT, also where MindSpore turns it into SIGTERM, reaches Python's handler of SIGINT, which is
    installed again afterwards.
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
            signal.signal(signal.SIGINT, interrupt)  # handles one that has arrived meanwhile, and may raise
        finally:
            signal.signal(signal.SIGTERM, ended)
            signal.signal(signal.SIGINT, interrupt)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """SIGINT is handled at the end of the block."""
    handler, arrived = signal.getsignal(signal.SIGINT), []
    if threading.current_thread() is not threading.main_thread() or handler is None:
        yield
        return
    signal.signal(signal.SIGINT, lambda *_: arrived.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if arrived:
            signal.raise_signal(signal.SIGINT)
