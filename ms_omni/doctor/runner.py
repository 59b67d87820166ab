"""What checks say, and each of them in a process of its own: whatever it does to itself, the others run and the report is complete.

`python -m ms_omni.doctor.runner NAME` runs one check in this process.
"""

import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

OK, NOTE, WARNING, ERROR = "ok", "note", "warning", "error"
MARKS = {OK: "ok", NOTE: "  ", WARNING: "!!", ERROR: "XX"}
ROOT = str(Path(__file__).resolve().parents[2])


@dataclass(frozen=True)
class Finding:
    """level: ok, note (for information), warning (it runs, but worse), error (it does not run here); what was found;
    do: what to do about it, given with every warning and error.
    """

    level: str
    what: str
    do: str = ""

    def __post_init__(self) -> None:
        assert self.level in MARKS and (self.do or self.level in (OK, NOTE)), self


ok, note, warning, error = (partial(Finding, level) for level in MARKS)
Findings = Iterator[Finding]


@dataclass(frozen=True)
class Options:
    """model: checkpoint folder that is to fit, or None; ascend_root: where the driver is installed."""

    model: str | None = None
    ascend_root: str = "/usr/local/Ascend"


def one_line(text: object, longest: int = 300) -> str:
    """The text without line breaks, cut where nobody reads on: before MindSpore's list of C++ calls, or at `longest`."""
    line = " ".join(str(text).partition("\n----")[0].split())
    return line if len(line) <= longest else line[: longest - 3] + "..."


@dataclass(frozen=True)
class Check:
    """name; title for the report; where: "module:function" in this package; limit_s; needs: checks without which it
    is pointless, since it would only say the same again.
    """

    name: str
    title: str
    where: str
    limit_s: int
    needs: tuple[str, ...] = ()


CHECKS = (
    Check("python", "Python", "machine:python_version", 20),
    Check("packages", "packages", "machine:packages", 20),
    Check("media", "media libraries", "machine:media", 60, ("python",)),
    Check("memory", "memory", "machine:memory", 20),
    Check("disk", "disk", "machine:disk", 30),
    Check("ascend", "Ascend software", "ascend:software", 60),
    Check("devices", "devices", "ascend:devices", 120),
    Check("mindspore", "MindSpore", "ascend:mindspore_computes", 180, ("python", "memory")),
    Check("operators", "operators", "selfcheck:operators", 420, ("mindspore",)),
    Check("loopback", "ports and loopback", "speed:loopback", 30),
    Check("speed", "speed", "speed:rates", 120, ("mindspore", "operators")),
    Check("msrun", "msrun, links", "speed:msrun", 320, ("mindspore", "loopback")),
    Check("selfcheck", "self-check", "selfcheck:stages", 300, ("mindspore", "operators", "packages")),
    Check("miniature", "the miniature", "selfcheck:miniature", 300, ("mindspore", "operators", "packages")),
)


def run_all(
    options: Options, names: Collection[str] | None = None, started: Callable[[Check], object] = lambda check: None
) -> Iterator[tuple[Check, list[Finding]]]:
    """Yields (check, findings) for every check, or for those in names."""
    failed = set()
    for check in CHECKS:
        if names is not None and check.name not in names:
            continue
        started(check)
        missing = [need for need in check.needs if need in failed]
        if missing:
            findings = [note(f"not tried, because of what is said under {', '.join(missing)}")]
        else:
            findings = run_check(check, options)
        if missing or any(finding.level == ERROR for finding in findings):
            failed.add(check.name)
        yield check, findings


def run_check(check: Check, options: Options, python: str = sys.executable) -> list[Finding]:
    """The findings of one check, run in a child; a child that hangs, dies or says nothing is a finding too."""
    command = [python, "-m", "ms_omni.doctor.runner", check.name, json.dumps(asdict(options))]
    paths = [*filter(None, [os.environ.get("PYTHONPATH")]), ROOT]
    again = _again(check.name)
    try:
        with tempfile.TemporaryFile() as log:
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
            code, answer = run_session(command, check.limit_s, env=environment, stdout=subprocess.PIPE, stderr=log)
            log.seek(0)
            printed = log.read().decode(errors="replace").strip().splitlines()
    except OSError as reason:
        return [error(f"the check could not be started: {one_line(reason)}", "make room in the temporary folder (TMPDIR)")]
    if code is None:
        return [error(f"the check did not end within {check.limit_s} s and was stopped", again)]
    try:
        return [Finding(**finding) for finding in json.loads(answer)]
    except (ValueError, TypeError, AssertionError):
        last = f": {one_line(printed[-1])}" if printed else ""
        names = {item.value: item.name for item in signal.Signals}
        ended = f"exit code {code}" if code >= 0 else f"signal {-code} ({names.get(-code, 'unknown')})"
        return [error(f"the check ended with {ended}{last}", again)]


def run_session(command: list[str], limit_s: float, **options: Any) -> tuple[int | None, Any]:
    """(exit code, or None when it had to be stopped; what it wrote to a pipe). Everything that it started ends with it."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, **options)
    try:
        answer, _ = process.communicate(timeout=limit_s)
        return process.returncode, answer
    except subprocess.TimeoutExpired:
        return None, b""
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        if process.stdout is not None:
            process.stdout.close()
        process.wait()


def _again(name):
    return f"look at what it prints by itself: python -m ms_omni.doctor.runner {name}"


def main(name: str, options: str = "{}") -> None:
    """Runs the check and prints its findings as JSON on the standard output that this process was given."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    module, _, function = {check.name: check.where for check in CHECKS}[name].partition(":")
    try:
        check = getattr(importlib.import_module(f"ms_omni.doctor.{module}"), function)
        findings = list(check(Options(**json.loads(options))))
    except MemoryError:
        findings = [error("there was too little memory for this check", "free memory, or raise the limit (ulimit -v)")]
    except Exception as reason:
        findings = [error(f"the check failed: {type(reason).__name__}: {one_line(reason)}", _again(name))]
    json.dump([asdict(finding) for finding in findings], answer)
    answer.flush()
    os._exit(0)  # a library that crashes while it is unloaded does not change what was found


if __name__ == "__main__":
    main(*sys.argv[1:])
