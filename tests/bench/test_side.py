"""The conversation with a child process."""

import sys
from pathlib import Path

import pytest

from ms_omni.bench.session import ChildSide, SideError

FAKE = Path(__file__).with_name("fake_side.py")


@pytest.fixture
def side(tmp_path):
    sides = []

    def start(number=1.0, **options):
        sides.append(ChildSide("fake", [sys.executable, str(FAKE), str(number)], tmp_path / "log", **options))
        return sides[-1]

    yield start
    for one in sides:
        one.close()


def test_load_and_run(side, tmp_path):
    child = side(2.5)
    assert child.load(model="a")["model"] == "a"
    assert [child.run("x", {"batch": n}) for n in (1, 2)][1]["batch"] == 2
    assert child.run("x", {})["token_s"] == 2.5
    child.close()
    assert child.process.returncode == 0
    assert "noise of a library" in (tmp_path / "log").read_text()


def test_threads(side):
    child = side(threads=1)
    assert child.load()["threads"] == "1"
    assert child.run("x", {})["processors"] == 1


def test_a_failure_is_told_and_the_child_lives_on(side, tmp_path):
    child = side()
    child.load()
    with pytest.raises(SideError, match=r"fake: fail failed: ValueError: out of luck \(log: .*log\)"):
        child.run("fail", {})
    assert child.run("x", {})["token_s"] == 1.0
    assert "Traceback" in (tmp_path / "log").read_text()


def test_a_child_that_ends(side):
    child = side()
    child.load()
    with pytest.raises(SideError, match="ended with code 7 while end"):
        child.run("end", {})
    with pytest.raises(SideError, match="ended with code 7 while x"):
        child.run("x", {})


def test_a_child_that_hangs_is_stopped(side):
    child = side(limit_s=2)
    child.load()
    with pytest.raises(SideError, match="hang took more than 2 s"):
        child.run("hang", {})
    child.close()
    assert child.process.returncode == -9


def test_a_child_that_cannot_be_started(tmp_path):
    with pytest.raises(SideError, match="gone: cannot start /no/such/python: No such file"):
        ChildSide("gone", ["/no/such/python"], tmp_path / "log")
