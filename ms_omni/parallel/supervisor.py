"""The small process beside each process of a job: it ends that one when the job cannot be finished.

    scheduler -- supervisor  \\
    worker ----- supervisor  ===  monitor     a thread of one of them on the scheduler's host
    worker ----- supervisor  /

It looks at its process from outside, so it notices one that is blocked inside a collective, stopped, or killed; and at the
msrun or `ms-omni launch` that has started it, which nobody else watches. A timer inside the process (`faulthandler`) would be
less, but it stops with the process, names no rank, and cannot tell work from a hang: two processes with the smallest
checkpoint on a busy machine have gone 14.5 s without a collective, and loading a published one takes minutes.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import time
from typing import Any

import psutil

from .members import SILENT_S
from .monitor import (
    HANDSHAKE_S,
    SCAN_S,
    SCHEDULER,
    Monitor,
    NoSecret,
    Process,
    find,
    handshake,
    job_here,
    job_secret,
    msrun_of,
    receive,
    send,
)
from .watch import BUSY, LEFT, RANK, STEPS, marks_at

TICK_S = 1.0
GATHER_TICK_S = 0.25
ANSWER_S = 10.0  # how long to try again where something answers at the port and refuses
REMIND_S = 15.0
IDLE_SHARE = 0.05  # of one processor; a process that waits in a collective uses less than 0.01
LEAVING_S = 20.0  # how long a worker may take to end once it has left
LATE_S = 15.0  # how long the scheduler may outlive its workers
REST_S = 5.0  # until what the job has left on this host is ended, too
SECRET = "set MS_OMNI_SECRET to the same text for all processes, or let the hosts share the home folder"


class Refused(Exception):
    """The job does not take this process in, or there is no job."""


class Progress:
    """For how long a busy worker has left no mark, and for how long it has not used a processor either."""

    def __init__(self, worker: Process, marks: memoryview) -> None:
        self.worker, self.marks = worker, marks
        self.steps, self.cpu_s, self.looked = None, 0.0, time.monotonic()
        self.marked = self.active = self.running = self.looked

    def look(self) -> dict:
        """What `Member.update` takes."""
        now = time.monotonic()
        with contextlib.suppress(psutil.Error):
            state = self.worker.status()
            if state not in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP):
                self.running = now
            if not self.marks[BUSY] or self.marks[STEPS] != self.steps:
                self.steps, self.marked, self.active = self.marks[STEPS], now, now
            elif self._works(now - self.looked) or state in (psutil.STATUS_RUNNING, psutil.STATUS_DISK_SLEEP):
                self.active = now
        self.looked = now
        return {
            "busy": bool(self.marks[BUSY]),
            "steps": self.marks[STEPS],
            "idle_s": now - self.active,
            "unmarked_s": now - self.marked,
            "stopped_s": now - self.running,
        }

    def _works(self, seconds: float) -> bool:
        """Whether it, or what it has started, has used a processor since the last look."""
        before, self.cpu_s = self.cpu_s, sum(self.worker.cpu_times()[:4])  # the last two: of children that have ended
        for child in self.worker.children(recursive=True):
            if child.pid != os.getpid():
                with contextlib.suppress(psutil.Error):
                    self.cpu_s += sum(child.cpu_times()[:2])
        return self.cpu_s - before > IDLE_SHARE * seconds


class Supervisor:
    """Of one process, a worker or the scheduler. settings: see `watch.start`."""

    def __init__(self, settings: dict) -> None:
        self.settings = settings
        self.job = settings["host"], settings["scheduler_port"]
        self.address = settings["host"], settings["port"]
        self.process = Process(settings["process"])
        self.launcher = find(settings["launcher"]) if settings["launcher"] else msrun_of(self.process)
        self.deadline = time.monotonic() + settings["timeout_s"]
        self.serves = settings["role"] == SCHEDULER
        self.marks: Any = None if self.serves else marks_at(settings["marks"])  # a worker's
        self.monitor: Monitor | None = None
        self.connection: Any = None  # from `join` on

    @property
    def rank(self) -> int | None:
        """Of a worker, as far as it is known."""
        return self.marks[RANK] - 1 if self.marks[RANK] else self.settings["rank"]

    @property
    def where(self) -> str:
        """Of the monitor, for messages."""
        return f"{self.address[0]}:{self.address[1]}"

    def join(self) -> None:
        """Connects to the monitor, or starts it. Raises `Refused`."""
        answered = None
        while True:
            with contextlib.suppress(OSError):  # this is another host, or there is a monitor already
                self.monitor = self.monitor or Monitor(self.settings)
            try:
                peer = socket.create_connection(self.address, timeout=HANDSHAKE_S)
            except OSError as error:
                answered, problem = None, f"no answer from {self.where} ({error.strerror or error}), where the job's "
                problem += "processes meet; does the scheduler run, and is the port open?"
            else:
                answered = answered or time.monotonic()
                problem = self._meet(peer)
                if problem is None:
                    return
            now = time.monotonic()
            if self.process.ended(GATHER_TICK_S) or now > self.deadline or (answered and now - answered > ANSWER_S):
                raise Refused(problem)

    def _meet(self, peer: socket.socket) -> str | None:
        """Says hello to what answers; None, or what is wrong with it."""
        try:
            self.connection = handshake(peer, job_secret(*self.address), serving=False)
            send(self.connection, self.settings | {"host": socket.gethostname()})
        except NoSecret as error:
            return f"the secret of the job at {self.where} is not known here ({error}); {SECRET}"
        except Exception:  # whatever a stranger answers
            return (
                f"another program answers at {self.where}; choose another master port, or set MS_OMNI_WATCH_PORT on all "
                f"hosts. Or it is this job, and its secret another one: {SECRET}"
            )
        return None

    def _orders(self, report: dict | None = None) -> dict:
        """The monitor's answer to a report; the one to the hello comes without. Raises `ConnectionError`."""
        try:
            if report is not None:
                send(self.connection, report)
            if self.connection.poll(SILENT_S):
                return receive(self.connection)
        except (EOFError, OSError, ValueError):
            raise ConnectionError("the connection to the scheduler's host is lost") from None
        raise ConnectionError(f"nothing was heard from the scheduler's host for {SILENT_S:.0f} s")

    def gather(self) -> None:
        """Waits until all workers have come; the scheduler does not wait for them. Raises `Refused`, `ConnectionError`."""
        orders, reminded = self._orders(), time.monotonic()
        while True:
            if orders["end"]:
                raise Refused(orders["end"])
            if self.serves or not orders["waiting"]:
                return
            if self.process.ended(GATHER_TICK_S):
                raise Refused("the process has gone")
            now = time.monotonic()
            if now > self.deadline:
                raise Refused(f"{orders['waiting']} did not come in time")
            if self.rank in (0, None) and now - reminded > REMIND_S:
                reminded = now
                write_line(f"waiting for {orders['waiting']}")
            orders = self._report({})

    def attend_worker(self) -> bool:
        """Reports until the worker has gone; ends it when the monitor says so or is lost. Whether the job is ended."""
        progress, left = Progress(self.process, self.marks), None
        while True:
            gone = time.time() if self.process.ended(TICK_S) else None
            state = self.marks[LEFT]
            left = left or (time.monotonic() if state else None)
            orders = self._report({"rank": self.rank, "left": state, "gone": gone, **progress.look()})
            reason = orders["end"] if left is None else None
            if reason and not gone:
                self._end(f"{self._name()} ends with the job: {reason}", orders["stuck"])
            if reason or gone:
                return bool(reason)
            if left is not None and time.monotonic() - left > LEAVING_S:
                self.process.end()

    def attend_scheduler(self) -> bool:
        """Ends the scheduler with the job, and the job when all workers on this host went before they had come.

        Whether the job is ended.
        """
        over, waiting, alone, scanned = None, True, False, time.monotonic()
        while not self.process.ended(TICK_S):
            report, now = {}, time.monotonic()
            if self.launcher and waiting and now - scanned > SCAN_S:
                scanned, before = now, alone
                alone = not job_here(*self.job, "MS_WORKER")
                report = {"end": "no worker is left on the scheduler's host"} if alone and before else {}
            orders = self._report(report, over)
            if orders["end"]:
                self._end(f"ERROR: the job ends: {orders['end']}")
                return True
            waiting, over = orders["waiting"], over or (now if orders["over"] else None)
            if over and now - over > LATE_S:
                self.process.end()
        return False

    def _report(self, report: dict, over: float | None = None) -> dict:
        if self.launcher and self.launcher.ended():
            report |= {"end": f"the launcher on {socket.gethostname()} has gone"}
        try:
            return self._orders(report)
        except ConnectionError as error:
            return {"end": None if over else str(error), "stuck": False, "waiting": None, "over": over}

    def _name(self) -> str:
        return "this process" if self.rank is None else f"rank {self.rank}"

    def _end(self, reason: str, stuck: bool = False) -> None:
        write_line(reason)
        if stuck:
            with contextlib.suppress(psutil.Error):
                self.process.send_signal(signal.SIGUSR2)  # writes where each thread stands, see `watch.start`
            time.sleep(0.2)
        self.process.end()

    def clear(self) -> None:
        """Ends what is left of the job on this host after some seconds: nobody else may be there to do it."""
        since = time.time()
        while left := [process for process in job_here(*self.job) if process.create_time() < since]:
            if time.time() - since > REST_S:
                for process in left:
                    with contextlib.suppress(psutil.Error):
                        process.kill()
            time.sleep(TICK_S / 2)


def write_line(text: str) -> None:
    """One line on standard error, which is the process's own, if there is still somebody to read it."""
    with contextlib.suppress(OSError):
        print(f"ms_omni: {text}", file=sys.stderr, flush=True)


def main() -> None:
    """Tells the process on standard output whether the job begins, then attends to it. Settings: the only argument."""
    supervisor = Supervisor(json.loads(sys.argv[1]))
    try:
        supervisor.join()
        supervisor.gather()
        answer = {"ok": 1}
    except (Refused, NoSecret, ConnectionError) as problem:
        answer = {"error": str(problem)}
    with contextlib.suppress(OSError):  # the process has gone meanwhile
        os.write(1, json.dumps(answer).encode() + b"\n")
    os.close(1)
    attend = supervisor.attend_scheduler if supervisor.serves else supervisor.attend_worker
    ended = attend() if "ok" in answer else False
    if supervisor.connection:
        supervisor.connection.close()
    if ended or (supervisor.launcher and supervisor.launcher.ended()):
        supervisor.clear()
    if supervisor.monitor:
        supervisor.monitor.join()
