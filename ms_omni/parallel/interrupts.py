"""Interruptions that wait until no collective is under way."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn


class Interrupts:
    """SIGINT, held back while collectives may be under way. pending: whether one came meanwhile.

    So is SIGTERM: once a graph has been compiled, MindSpore's own handler of SIGINT may be in force, now and then, and all that
    it does is to send SIGTERM (see `modeling/interruption.py`). Who means it sends SIGKILL afterwards, as the watch does.
    """

    def __init__(self) -> None:
        self.pending = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside this context an interruption is noted and nothing else."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        if None in before.values() or before[signal.SIGINT] == self._note:  # not from Python, or held already
            yield
            return
        for number in before:
            signal.signal(number, self._note)
        try:
            yield
        finally:
            for number, handler in before.items():  # SIGINT last: its handler may raise
                signal.signal(number, handler)

    def act(self) -> NoReturn:
        """Raises what was held back."""
        self.pending = False
        raise KeyboardInterrupt

    def _note(self, *_: Any) -> None:
        self.pending = True
