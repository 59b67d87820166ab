"""Runs cases in a process that is used for many, and replaced when one has ended it, hung in it or taken its memory."""

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
START_S, CASE_S, CASE_CPU_S, MEMORY_BYTES = 300, 60, 20, 2 << 30
CASES_OF_A_CHILD = 300
TICKS = os.sysconf("SC_CLK_TCK")


class Child:
    def __init__(self):
        self.errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.damage.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "GLOG_v": "4", "HF_HUB_OFFLINE": "1"},
        )
        if self._line(START_S, float("inf")) is None:
            raise RuntimeError(f"the process for the cases did not start: {self.last_words()}")

    def ask(self, seed):
        """What became of a case: a dict as child.py writes it."""
        print(seed, file=self.process.stdin, flush=True)
        line = self._line(CASE_S, CASE_CPU_S)
        if line:
            found = json.loads(line)
            if found["peak"] > MEMORY_BYTES and not found["fault"]:
                found["fault"] = f"{found['peak'] >> 20} MiB"
            return found
        code = self.process.poll()
        fault = "hang" if code is None else f"crash: exit code {code}: {self.last_words()}"
        return {"seed": seed, "kind": "?", "said": None, "fault": fault, "peak": MEMORY_BYTES + 1}

    def _line(self, limit_s, cpu_s):
        """The next line, or None when the process has ended, or took longer."""
        end, spent = time.monotonic() + limit_s, self._cpu()
        while time.monotonic() < end and self._cpu() - spent < cpu_s:
            if select.select([self.process.stdout], [], [], 0.2)[0]:
                return self.process.stdout.readline() or None
        return None

    def _cpu(self):
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / TICKS
        except OSError:
            return 0.0

    def last_words(self):
        self.errors.seek(0)
        return self.errors.read()[-600:].decode(errors="replace")

    def end(self):
        self.process.kill()
        self.process.wait()


def run_cases(seeds, show=None):
    """(faults, counts of what became of the cases by kind) of all seeds."""
    child, faults, counts = None, [], Counter()
    try:
        for seed in seeds:
            child = child or Child()
            found = child.ask(seed)
            if found["fault"]:
                faults.append(found)
            counts[found["kind"], "fault" if found["fault"] else found["said"].partition(":")[0]] += 1
            if show:
                show(found)
            if found["peak"] > MEMORY_BYTES or sum(counts.values()) % CASES_OF_A_CHILD == 0:
                child.end()
                child = None
    finally:
        if child:
            child.end()
    return faults, counts
