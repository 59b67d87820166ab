"""Scripts that users bring, each run as a file in a process and a folder of its own; nothing but imports and paths is ours.

Expected is the whole of what a script prints, so each line of these lists is one promise of the README.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import ms_omni
from ms_omni.demo.samples import find_miniature

HERE = Path(__file__).resolve().parent
INSTALLED = Path(ms_omni.__file__).resolve().parents[1]  # the clone, or where a wheel went
LIMIT_S = 600

EXPECTED = {
    "five_lines": """
9 (1, 1, SAMPLES)
""",
}
SLOW = ()


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in EXPECTED])
def test_script(name, tmp_path):
    path = os.pathsep.join(filter(None, [str(INSTALLED), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, str(HERE / f"{name}.py"), str(find_miniature())],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines() == EXPECTED[name].strip().splitlines()


def test_every_script_is_run():
    assert {path.stem for path in HERE.glob("*.py")} - {"__init__", "test_user_scripts"} == EXPECTED.keys()
