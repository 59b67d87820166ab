"""Ctrl-C reaches Python also while a compiled graph runs."""

import os
import subprocess
import sys
from pathlib import Path

from tests.modeling.interrupted import TIMES

ROOT = Path(__file__).resolve().parents[2]


def test_every_interruption_arrives():
    run = subprocess.run(
        [sys.executable, "-m", "tests.modeling.interrupted"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120,
    )
    assert (run.returncode, run.stdout.strip()) == (0, str(TIMES)), run.stderr[-2000:]
