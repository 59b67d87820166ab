"""The process beside a worker that reports its progress to the hub and ends it when the job is over.

It looks at the worker from outside (`process.py`) and at the marks that the worker leaves (`stamps.py`), so it notices a
worker that is blocked inside a collective, stopped, or killed. It has a session of its own: what kills the worker's
process group leaves the companion time to say so.
"""

import contextlib
import json
import os
import select
import signal
import socket
import sys
import time

from .lines import Lines
from .process import Process, optional
from .stamps import BEATS, BUSY, FAILED, LEFT, RANK, STEPS, Stamps

TICK_S = 0.5
REPORT_S = 1.0
ANSWER_S = 10.0  # a hub answers a hello at once
SILENT_S = 10.0  # it pings once a second
REMIND_S = 15.0
IDLE_SHARE = 0.05  # of one processor; a process that waits in a collective uses less than 0.01
LEAVING_S = 20.0  # how long a worker may take to end once it has left


class Refused(Exception):
    """The hub does not take this process in, or there is no hub."""


class Progress:
    """For how long a worker has left no mark, and for how long it has not used a processor either."""

    def __init__(self, worker, stamps):
        self.worker, self.stamps = worker, stamps
        self.marks, self.cpu_s, self.looked = None, worker.cpu_s(), time.monotonic()
        self.marked = self.active = self.running = self.looked

    def look(self):
        """The fields of a report; see `roster.Member`."""
        now, marks, cpu_s = time.monotonic(), (self.stamps[STEPS], self.stamps[BEATS]), self.worker.cpu_s()
        state = self.worker.state()
        if marks != self.marks:
            self.marks, self.marked, self.active = marks, now, now
        if cpu_s - self.cpu_s > IDLE_SHARE * (now - self.looked) or state in ("R", "D"):
            self.active = now
        if state not in ("T", "t"):
            self.running = now
        self.cpu_s, self.looked = cpu_s, now
        return {
            "busy": bool(self.stamps[BUSY]),
            "steps": self.stamps[STEPS],
            "idle_s": now - self.active,
            "unmarked_s": now - self.marked,
            "stopped_s": now - self.running,
        }


def connect(address, deadline, worker):
    """A connection to the hub, as soon as there is one. Raises `Refused` after the deadline, or when the worker goes."""
    while True:
        try:
            return Lines(socket.create_connection(address, timeout=5))
        except OSError as error:
            if worker.gone() or time.monotonic() > deadline:
                raise Refused(
                    f"no answer from {address[0]}:{address[1]}, where the job's scheduler is watched from "
                    f"({error.strerror or error}); does the scheduler run, and is the port open?"
                ) from None
            time.sleep(0.2)


class Companion:
    """One worker's. settings: see `watch._start_companion`."""

    def __init__(self, settings):
        self.worker = Process(settings["worker"])
        self.launcher = optional(settings["launcher"])
        self.stamps = Stamps(settings["stamps"])
        self.rank = settings["rank"]
        self.deadline = time.monotonic() + settings["timeout_s"]
        self.hub = connect((settings["host"], settings["port"]), self.deadline, self.worker)
        self.hub.send(
            hello={"host": socket.gethostname(), "pid": self.worker.pid, "rank": self.rank, "facts": settings["facts"]}
        )
        self.heard = time.monotonic()

    def _messages(self, seconds):
        """What the hub says, waiting up to `seconds` for it or for the worker's end."""
        select.select([self.hub, *([] if self.worker.descriptor is None else [self.worker.descriptor])], [], [], seconds)
        messages = self.hub.receive()
        if messages:
            self.heard = time.monotonic()
        return messages

    def gather(self):
        """Waits until all processes have come. Raises `Refused`."""
        welcome, started, waiting, reminded = False, time.monotonic(), None, time.monotonic()
        while not self.worker.gone():
            now = time.monotonic()
            try:
                for message in self._messages(TICK_S):
                    welcome = welcome or "welcome" in message
                    waiting = message.get("waiting", waiting)
                    if "go" in message:
                        return
                    if "refused" in message or "end" in message:
                        raise Refused(message.get("refused") or message["end"])
            except ConnectionError as error:
                raise Refused(f"the connection to the scheduler's host is lost ({error})") from None
            if not welcome and now - started > ANSWER_S:
                raise Refused(
                    "another program answers at the port of the job's watch; choose another master port, or set "
                    "MS_OMNI_WATCH_PORT on all hosts"
                )
            if now > self.deadline:
                raise Refused(f"{waiting or 'the others'} did not come in time")
            if waiting and self.rank in (0, None) and now - reminded > REMIND_S:
                reminded = now
                say(f"waiting for {waiting}")
        raise Refused("the worker has gone")

    def attend(self):
        """Reports until the worker has gone; ends it when the hub says so or is lost."""
        progress, reported, left = Progress(self.worker, self.stamps), 0.0, None
        while True:
            try:
                orders = self._messages(TICK_S)
            except ConnectionError:
                orders = [{"end": "the connection to the scheduler's host is lost"}]
            now = time.monotonic()
            if left is None and self.stamps[LEFT]:
                left = now
                self.hub.send(left={"failed": self.stamps[LEFT] == FAILED})
            if self.worker.gone():
                return None if left is not None else self.hub.send(gone=time.time())
            for order in orders:
                if "end" in order and left is None:
                    return self._end(order["end"], order.get("stuck", False))
            if left is not None and now - left > LEAVING_S:
                return self.worker.end()
            if left is None and now - self.heard > SILENT_S:
                return self._end(f"nothing was heard from the scheduler's host for {SILENT_S:.0f} s")
            if self.launcher and self.launcher.gone():
                return self._end("its launcher has gone")
            if now - reported > REPORT_S:
                reported, state = now, progress.look()
                if self.stamps[RANK]:
                    self.rank = state["rank"] = self.stamps[RANK] - 1
                self.hub.send(state=state)

    def _end(self, reason, stuck=False):
        say(f"{'this process' if self.rank is None else f'rank {self.rank}'} ends with the job: {reason}")
        if stuck:
            self.worker.signal(signal.SIGUSR2)  # writes where each thread stands, see `watch.start`
            time.sleep(0.2)
        self.worker.end()


def say(text):
    """One line on standard error, which is the worker's."""
    print(f"ms_omni: {text}", file=sys.stderr, flush=True)


def main(settings):
    """Tells the worker on standard output whether the job begins, then attends to it."""
    try:
        companion = Companion(settings)
        companion.gather()
    except Refused as refusal:
        with contextlib.suppress(BrokenPipeError):  # the worker has gone meanwhile
            print(json.dumps({"error": str(refusal)}), flush=True)
        return
    print(json.dumps({"ok": 1}), flush=True)
    sys.stdout = open(os.devnull, "w", encoding="ascii")
    os.close(1)
    companion.attend()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
