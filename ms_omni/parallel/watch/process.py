"""Looking at another process from outside, with what Linux says under /proc; and ending it."""

import os
import select
import signal
import time

TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Process:
    """The process `pid`; `gone()` is true as soon as it has ended, whatever happens to its number afterwards."""

    def __init__(self, pid):
        self.pid = pid
        try:
            self.descriptor = os.pidfd_open(pid)
        except OSError:  # it has gone already
            self.descriptor = None

    def gone(self):
        """Whether it has ended."""
        return self.descriptor is None or bool(select.select([self.descriptor], [], [], 0)[0])

    def state(self):
        """Its state letter: R running, S sleeping, D waiting for a disk, T stopped, Z ended; "" when it has gone."""
        return _fields(self.pid)[0]

    def cpu_s(self):
        """Processor seconds that it and its descendants have used; 0 when it has gone."""
        return _cpu_s(self.pid)

    def signal(self, number):
        """Sends a signal unless it has gone."""
        if not self.gone():
            signal.pidfd_send_signal(self.descriptor, number)

    def end(self, grace_s=2.0):
        """SIGTERM, and SIGKILL when it is still there after `grace_s`."""
        self.signal(signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        while not self.gone() and time.monotonic() < deadline:
            time.sleep(0.05)
        self.signal(signal.SIGKILL)


def optional(pid):
    """The `Process`, or None for the number 0."""
    return Process(pid) if pid else None


def _fields(pid):
    """The fields of /proc/PID/stat from the third one (state) on."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            return file.read().rpartition(")")[2].split() or [""]
    except OSError:
        return [""]


def _cpu_s(pid):
    fields = _fields(pid)
    if len(fields) < 15:
        return 0.0
    own = sum(map(int, fields[11:15])) / TICKS_PER_S  # user and system, its own and of children that have ended
    return own + sum(_cpu_s(child) for child in _children(pid))


def _children(pid):
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            return [int(child) for child in file.read().split() if int(child) != os.getpid()]
    except OSError:  # the process has gone, or this kernel does not list children
        return []
