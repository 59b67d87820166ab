"""One party of the comparison, as the session sees it: `load`, `run`, `close`."""

import json
import os
import selectors
import subprocess
from pathlib import Path

from ..errors import OmniError

REQUEST_LIMIT_S = 1800


class SideError(OmniError):
    """A party could not do what was asked; the message says which, what, and where its log is."""


class ChildSide:
    """A process that speaks the language of `protocol.py`; its standard error goes to the file `log`.

    threads: number of processors that it may use, None for all; root: the checkout whose ms_omni it imports, else this one.
    """

    def __init__(self, name, command, log, threads=None, limit_s=REQUEST_LIMIT_S, root=None):
        self.name, self.log, self.limit_s = name, Path(log), limit_s
        paths = [str(root or Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        variables = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
        if threads is not None:
            variables |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        with open(self.log, "ab") as errors:
            try:
                self.process = subprocess.Popen(
                    command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    env=variables,
                    cwd=root,  # where `python -m` looks first
                    preexec_fn=None if threads is None else _only(threads),
                )
            except OSError as error:
                raise SideError(f"{name}: cannot start {command[0]}: {error.strerror or error}") from None
        os.set_blocking(self.process.stdout.fileno(), False)

    def load(self, **settings):
        """Loads the model; returns what the child says about it."""
        return self._ask({"load": settings}, "loading")

    def run(self, kind, settings):
        """Runs one repetition; returns {metric: number}. Raises `SideError`."""
        return self._ask({"run": kind, "settings": settings}, kind)

    def close(self):
        """Ends the child, by force if it does not go by itself."""
        for stream in (self.process.stdin, self.process.stdout):
            try:
                stream.close()
            except OSError:  # it has gone already, with a request unread
                pass
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _ask(self, request, what):
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            raise self._gone(what) from None
        answer = json.loads(self._line(what))
        if "error" in answer:
            raise SideError(f"{self.name}: {what} failed: {answer['error']} (log: {self.log})")
        return answer["done"]

    def _line(self, what):
        """The next line; raises `SideError` when the child ends or takes too long."""
        line = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(self.limit_s):
                    self.process.kill()
                    raise SideError(f"{self.name}: {what} took more than {self.limit_s} s and was stopped (log: {self.log})")
                piece = self.process.stdout.read()
                if not piece:
                    raise self._gone(what)
                line += piece
        return line

    def _gone(self, what):
        code = self.process.wait()
        return SideError(f"{self.name}: the process ended with code {code} while {what}{_why(code)} (log: {self.log})")


def _why(code):
    return ", as one that the system stops for want of memory" if code == -9 else ""


def _only(threads):
    return lambda: os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


class HereSide:
    """This process as a party; needed where other processes take part in every step (msrun). The model stays loaded."""

    name = "ms_omni"

    def __init__(self, load, run):
        self.load, self.run = load, run

    def close(self):
        """Nothing to end."""
