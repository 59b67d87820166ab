"""Runs each check in a process of its own: whatever it does to itself, the others run and the report is complete."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from .finding import ERROR, Finding, error, note, one_line

ROOT = str(Path(__file__).resolve().parents[2])


@dataclass(frozen=True)
class Check:
    """name; title for the report; where: "module:function" in this package; limit_s; needs: checks without which it
    is pointless, since it would only say the same again.
    """

    name: str
    title: str
    where: str
    limit_s: int
    needs: tuple = ()


CHECKS = (
    Check("python", "Python", "software:python_version", 20),
    Check("packages", "packages", "software:packages", 20),
    Check("media", "media libraries", "software:media", 60, ("python",)),
    Check("memory", "memory", "machine:memory", 20),
    Check("disk", "disk", "machine:disk", 30),
    Check("ascend", "Ascend software", "ascend:software", 60),
    Check("devices", "devices", "ascend:devices", 120),
    Check("mindspore", "MindSpore", "mindspore_check:import_and_compute", 180, ("python", "memory")),
    Check("operators", "operators", "operators:table_and_numbers", 420, ("mindspore",)),
    Check("loopback", "ports and loopback", "communication:loopback", 30),
    Check("speed", "speed", "speed:rates", 120, ("mindspore", "operators")),
    Check("msrun", "msrun, links", "communication:msrun", 320, ("mindspore", "loopback")),
    Check("selfcheck", "self-check", "selfcheck:stages", 300, ("mindspore", "operators", "packages")),
    Check("miniature", "the miniature", "miniature:answers", 300, ("mindspore", "operators", "packages")),
)


def run_all(options, names=None, started=lambda check: None):
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


def run_check(check, options, python=sys.executable):
    """The findings of one check, run in a child; a child that hangs, dies or says nothing is a finding too."""
    command = [python, "-m", "ms_omni.doctor.child", check.where, json.dumps(asdict(options))]
    paths = [*filter(None, [os.environ.get("PYTHONPATH")]), ROOT]
    again = f"look at what it prints by itself: python -m ms_omni.doctor.child {check.where}"
    try:
        with tempfile.TemporaryFile() as log:
            code, answer = _answer(command, {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}, log, check.limit_s)
            log.seek(0)
            said = log.read().decode(errors="replace").strip().splitlines()
    except OSError as reason:
        return [error(f"the check could not be started: {one_line(reason)}", "make room in the temporary folder (TMPDIR)")]
    if code is None:
        return [error(f"the check did not end within {check.limit_s} s and was stopped", again)]
    try:
        return [Finding(**finding) for finding in json.loads(answer)]
    except (ValueError, TypeError, AssertionError):
        last = f": {one_line(said[-1])}" if said else ""
        return [error(f"the check ended with {_end(code)}{last}", again)]


def _answer(command, environment, log, limit_s):
    """(exit code or None when it had to be stopped, what it wrote to its answer pipe)."""
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, start_new_session=True
    )
    try:
        answer, _ = process.communicate(timeout=limit_s)
        return process.returncode, answer
    except subprocess.TimeoutExpired:
        return None, b""
    finally:
        _end_session(process)


def _end_session(process):
    """Ends the child and everything that it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    process.stdout.close()
    process.wait()


def _end(code):
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {-code} ({signal.Signals(-code).name})"
    except ValueError:
        return f"signal {-code}"
