"""The process beside MindSpore's scheduler that hears from all ranks and ends the job when it cannot be finished.

    scheduler -- hub <== TCP ==> companion -- worker        one hub per job, one companion per worker

It is a process of its own because MindSpore's scheduler holds Python's lock while it serves. Messages of a companion:
`hello` (host, pid, rank, facts), `state` once a second, `left`, `gone`. Messages of the hub: `welcome`, `waiting`, `go`,
`refused`, `end`, and a `ping` once a second.
"""

import json
import os
import selectors
import socket
import sys
import time

from .lines import Lines
from .process import Process, optional
from .roster import Roster

TICK_S = 0.25
PING_S = 1.0
REFUSING_S = 20.0  # how long a hub that cannot serve tells those who come why
LATE_S = 15.0  # how long the scheduler may outlive its workers


class Hub:
    """Serves one job. address: (host, port) to listen at; scheduler: its `Process`; timeout_s: until all must have come."""

    def __init__(self, address, size, hang_s, scheduler, timeout_s, launcher=None, refusal=None):
        self.listener = socket.create_server(address, backlog=size + 8)
        self.listener.setblocking(False)
        self.roster = Roster(size, hang_s)
        self.scheduler, self.launcher, self.refusal = scheduler, launcher, refusal
        self.members = {}  # Lines -> Member, or None before its hello
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.listener, selectors.EVENT_READ)
        self.started = self.pinged = time.monotonic()
        self.timeout_s = timeout_s
        self.going = False

    def serve(self):
        """Runs until the job is over; says on standard error why it was ended, if it was."""
        while True:
            for key, _ in self.selector.select(TICK_S):
                if key.fileobj is self.listener:
                    self._accept()
                else:
                    self._hear(key.fileobj)
            now = time.monotonic()
            if now - self.pinged > PING_S:
                self.pinged = now
                self._tell(ping=1)
            if self.refusal is not None:
                if now - self.started > REFUSING_S or (self.scheduler.gone() and not self.members and self.roster.complete):
                    return
            elif (reason := self._reason(now)) is not None:
                return self._end(reason)
            elif self.roster.complete and not self.members:  # all have left and their processes have gone
                return self._finish()

    def _reason(self, now):
        if self.launcher is not None and self.launcher.gone():
            return "the launcher of the scheduler has gone"
        if self.roster.present and self.scheduler.gone():
            return "the scheduler's process has gone"
        if not self.roster.complete and now - self.started > self.timeout_s:
            return f"{self.roster.missing()} did not come within {self.timeout_s:.0f} s"
        return self.roster.verdict(now)

    def _accept(self):
        try:
            lines = Lines(self.listener.accept()[0])
        except OSError:
            return
        self.members[lines] = None
        self.selector.register(lines, selectors.EVENT_READ)

    def _hear(self, lines):
        try:
            for message in lines.receive():
                self._take(lines, message)
        except (ConnectionError, KeyError, TypeError, ValueError):  # has gone, or is none of ours
            self._drop(lines)

    def _take(self, lines, message):
        now, member = time.monotonic(), self.members[lines]
        if member is None:
            return self._welcome(lines, message["hello"], now)
        member.heard = now
        for name, value in message.get("state", {}).items():
            setattr(member, name, value)
        if "left" in message and member.since is None:
            member.since, member.failed = now, bool(message["left"]["failed"])
        if "gone" in message and member.since is None:
            member.gone = member.since = float(message["gone"])

    def _welcome(self, lines, hello, now):
        lines.send(welcome=1)
        try:
            self.members[lines] = self.roster.join(now, hello["host"], hello["pid"], hello["rank"], hello["facts"])
        except ValueError as error:
            return lines.send(refused=str(error))
        if self.refusal is not None:
            return lines.send(refused=self.refusal)
        if not self.roster.complete:
            return self._tell(waiting=self.roster.missing())
        differs = self.roster.disagreement()
        if differs:
            self.refusal, self.started = f"the processes of this job are not alike: {differs}", now
            print(f"ERROR: {self.refusal}", file=sys.stderr, flush=True)
            self._tell(refused=self.refusal)
            return self.scheduler.end()
        self.going = True
        return self._tell(go=1)

    def _drop(self, lines):
        member = self.members.pop(lines)
        self.selector.unregister(lines)
        lines.close()
        if member is not None and member.since is None:
            member.gone, member.since = time.time(), time.monotonic()

    def _tell(self, **message):
        for lines, member in self.members.items():
            if member is not None:
                lines.send(**message)

    def _end(self, reason):
        if not self.going and self.roster.members:
            reason += ", before the job had started"
        print(f"ERROR: the job ends: {reason}", file=sys.stderr, flush=True)
        stuck = not any(member.failed or member.gone is not None for member in self.roster.members)
        self._tell(end=reason, stuck=stuck)
        self.scheduler.end()
        time.sleep(TICK_S)  # what was sent is on its way

    def _finish(self):
        deadline = time.monotonic() + (0 if self.launcher is not None else LATE_S)
        while not self.scheduler.gone() and time.monotonic() < deadline:
            time.sleep(TICK_S)
        self.scheduler.end()


def free(address):
    """None when one can listen at `address`, else why not."""
    try:
        socket.create_server(address).close()
    except OSError as error:
        return os.strerror(error.errno) if error.errno else str(error)
    return None


def main(settings):
    """settings: JSON, see `watch._start_hub`. One line of JSON on standard output says whether the hub serves."""
    settings = json.loads(settings)
    host, port, refusal = settings["host"], settings["port"], None
    problem = free((host, settings["scheduler_port"]))
    if problem:
        refusal = f"port {settings['scheduler_port']} of {host} cannot be used ({problem}); choose another master port"
    try:
        hub = Hub(
            (host, port),
            settings["size"],
            settings["hang_s"],
            Process(settings["scheduler"]),
            settings["timeout_s"],
            optional(settings["launcher"]),
            refusal,
        )
    except OSError as error:
        refusal = refusal or (
            f"port {port} of {host} cannot be used ({os.strerror(error.errno or 0)}); choose another "
            "master port, or set MS_OMNI_WATCH_PORT on all hosts"
        )
        print(json.dumps({"error": refusal}), flush=True)
        return
    print(json.dumps({"error": refusal} if refusal else {"ok": 1}), flush=True)
    sys.stdout.close()
    try:
        hub.serve()
    finally:
        hub.scheduler.end()  # without its hub nobody ends it


if __name__ == "__main__":
    main(sys.argv[1])
