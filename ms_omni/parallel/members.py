"""Who takes part in a job, what each has reported last, and whether the job can still be finished.

The rules, by which `verdict` ends a job:

  died      the process ended without leaving in order
  lost      nothing was heard from its machine for SILENT_S
  failed    it left with an error, and the others did not follow within FOLLOW_S
  left      it left in order while another one waits for it: a collective that nobody will complete
  stopped   SIGSTOP or a debugger has held it for STOPPED_S
  hangs     all are busy with our work, and those that have come least far in the sequence of collectives have neither
            left a mark nor used a processor for `hang_s`; or used one without a mark for SPIN_FACTOR times as long

Waiting for the user between two answers is no hang: a process is busy inside `from_pretrained` and while it generates. Nor is
work without a mark, such as a compilation or a long prompt, as long as it uses a processor.
"""

from dataclasses import dataclass

SILENT_S = 10.0
FOLLOW_S = 3.0
LEFT_WAIT_S = 5.0
STOPPED_S = 10.0
SPIN_FACTOR = 30


@dataclass
class Member:
    """One worker. Times in seconds; `heard` and `since` on the monitor's clock."""

    host: str
    pid: int
    rank: int | None
    facts: dict
    heard: float
    busy: bool = False
    steps: int = 0
    idle_s: float = 0.0
    unmarked_s: float = 0.0
    stopped_s: float = 0.0
    since: float | None = None  # when it left or went
    failed: bool = False
    gone: float | None = None  # when its end was noticed, on its machine's clock; it had not left in order

    @property
    def name(self) -> str:
        """ "rank 1 (process 123 on host)"."""
        return f"{'a process of unknown rank' if self.rank is None else f'rank {self.rank}'} (process {self.pid} on {self.host})"

    def update(self, now: float, report: dict) -> None:
        """Takes in what its supervisor has found, by the names above."""
        self.heard = now
        for name in report.keys() & {"rank", "busy", "steps", "idle_s", "unmarked_s", "stopped_s"}:
            setattr(self, name, report[name])

    def leave(self, now: float, failed: bool = False, gone: float | None = None) -> None:
        """It has left, in order or with an error, or is gone; only the first of these counts."""
        if self.since is None:
            self.since, self.failed, self.gone = now, failed, gone


class Members:
    """The workers of a job of `size`; hang_s: see above, 0 for never."""

    def __init__(self, size: int, hang_s: float) -> None:
        self.size = size
        self.hang_s = hang_s
        self.members: list[Member] = []

    @property
    def complete(self) -> bool:
        """Whether all have come."""
        return len(self.members) == self.size

    @property
    def present(self) -> list[Member]:
        """Those that have not left."""
        return [member for member in self.members if member.since is None]

    def missing(self) -> str:
        """ "rank 1, 3", or how many, of those that have not come yet."""
        known = [member.rank for member in self.members]
        if None in known:
            return f"{self.size - len(known)} of {self.size} processes"
        return "rank " + ", ".join(str(rank) for rank in range(self.size) if rank not in known)

    def join(self, now: float, host: str, pid: int, rank: int | None, facts: dict) -> Member:
        """A new member. Raises ValueError where all have come, or this one."""
        if self.complete or (rank is not None and rank in [member.rank for member in self.members]):
            raise ValueError("another job uses this port already, or one of its processes was started twice")
        self.members.append(Member(host, pid, rank, facts, now))
        return self.members[-1]

    def disagreement(self) -> str:
        """What differs between the members' facts, one line each; "" when all agree."""
        lines = []
        for key in sorted({key for member in self.members for key in member.facts}):
            values: dict[str, list[Member]] = {}
            for member in sorted(self.members, key=lambda member: (member.rank is None, member.rank or 0)):
                values.setdefault(str(member.facts.get(key)), []).append(member)
            if len(values) > 1:
                sides = [f"{value} on {names(members)}" for value, members in values.items()]
                lines.append(f"{key} is " + " but ".join(sides))
        return "; ".join(lines)

    def verdict(self, now: float) -> str | None:
        """Why the job must end now; None while it may go on."""
        gone = sorted((member for member in self.members if member.gone is not None), key=lambda member: member.gone or 0.0)
        failed = next((member for member in self.members if member.failed), None)
        if gone and failed is not None:  # a launcher that kills the others at once is no death of theirs
            return f"{failed.name} ended with an error"
        if gone:
            return f"{gone[0].name} has died" + (f"; then {names(gone[1:])}" if gone[1:] else "")
        present = self.present
        for member in present:
            if now - member.heard > SILENT_S:
                return f"nothing was heard from {member.name} for {SILENT_S:.0f} s"
            if member.stopped_s > STOPPED_S:
                return f"{member.name} has been stopped (SIGSTOP) for {STOPPED_S:.0f} s"
        return self._left_alone(now, present) or self._hang(present)

    def _left_alone(self, now: float, present: list[Member]) -> str | None:
        for member in self.members:
            if member.since is None or not present:
                continue
            if member.failed and now - member.since > FOLLOW_S:
                return f"{member.name} ended with an error"
            waiting = [
                other for other in present if other.busy and other.idle_s > LEFT_WAIT_S and other.steps > member.steps
            ]
            if waiting and now - member.since > LEFT_WAIT_S:
                return f"{member.name} has left while {names(waiting)} waited for it"
        return None

    def _hang(self, present: list[Member]) -> str | None:
        if not (self.hang_s and present and all(member.busy for member in present)):
            return None
        last = [member for member in present if member.steps == min(member.steps for member in present)]
        if all(member.idle_s > self.hang_s for member in last):
            return f"{names(last)} did nothing for {self.hang_s:g} s"
        if all(member.unmarked_s > SPIN_FACTOR * self.hang_s for member in last):
            return f"{names(last)} came no further for {SPIN_FACTOR * self.hang_s:g} s"
        return None


def names(members: list[Member]) -> str:
    """ "rank 0 (...)" or "rank 0, 1, 3"."""
    if len(members) == 1:
        return members[0].name
    return "rank " + ", ".join("?" if member.rank is None else str(member.rank) for member in members)
