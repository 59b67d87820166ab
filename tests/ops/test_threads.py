import os
import subprocess
import sys

import pytest

from ms_omni.modeling.ops import build

PROCESSORS = len(os.sched_getaffinity(0))
PROGRAM = "import mindspore; from ms_omni.modeling.ops import build; print(build.available_threads())"


class FakeLibrary:
    """In the place of a library: the numbers of threads that were set."""

    def __init__(self):
        self.counts = []
        self.ms_omni_use_threads = self.counts.append


@pytest.mark.parametrize(
    "variables, expected",
    [
        ({}, PROCESSORS),
        ({"OMP_NUM_THREADS": "1"}, 1),
        ({"OMP_NUM_THREADS": "1,4"}, 1),
        ({"OMP_NUM_THREADS": "1000"}, PROCESSORS),
        ({"OMP_NUM_THREADS": "many"}, PROCESSORS),
        ({"MS_WORKER_NUM": "2"}, max(PROCESSORS // 2, 1)),
        ({"MS_WORKER_NUM": "1000"}, 1),
        ({"MS_WORKER_NUM": "2", "OMP_NUM_THREADS": str(PROCESSORS)}, PROCESSORS),
    ],
)
def test_what_a_process_may_use(variables, expected, monkeypatch):
    for name in ("OMP_NUM_THREADS", "MS_WORKER_NUM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert build.available_threads() == expected


def test_mindspores_own_setting_is_not_the_users():
    """It sets `OMP_NUM_THREADS` for the whole process, to half of the processors and at most 8."""
    environment = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "MS_WORKER_NUM")}
    result = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    assert int(result.stdout.split()[-1]) == PROCESSORS


def test_every_library_gets_the_number(monkeypatch):
    monkeypatch.setattr(build, "_libraries", [])
    early, late = FakeLibrary(), FakeLibrary()
    build._register(early)
    build.limit_threads(1)
    build._register(late)
    build.limit_threads(None)
    assert early.counts == [build.available_threads(), 1, build.available_threads()] and late.counts == [
        1,
        build.available_threads(),
    ]
