"""What collectives move, counted: calls and bytes, of one token or of a whole answer."""

from dataclasses import dataclass, field

from . import watch

KINDS = ("all_reduce", "all_gather", "broadcast")


@dataclass
class Traffic:
    """Calls and bytes by kind of collective. The bytes of a call are those of its result on one rank."""

    calls: dict = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    nbytes: dict = field(default_factory=lambda: dict.fromkeys(KINDS, 0))

    def add(self, kind, nbytes, calls=1):
        """Counts `calls` collectives that move `nbytes` in all, before they begin: the watch tells from it who waits."""
        watch.step()
        self.calls[kind] += calls
        self.nbytes[kind] += nbytes

    def copy(self):
        """The counts of this moment."""
        return Traffic(dict(self.calls), dict(self.nbytes))

    def since(self, before):
        """What was counted after the copy `before` was taken."""
        return Traffic(
            {kind: self.calls[kind] - before.calls[kind] for kind in KINDS},
            {kind: self.nbytes[kind] - before.nbytes[kind] for kind in KINDS},
        )

    @property
    def total_bytes(self):
        return sum(self.nbytes.values())

    @property
    def total_calls(self):
        return sum(self.calls.values())
