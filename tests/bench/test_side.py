"""The conversation with a child process."""

import sys
from pathlib import Path

import pytest

from ms_omni.bench.side import ChildSide, SideError

PARTY = str(Path(__file__).with_name("party.py"))


@pytest.fixture
def side(tmp_path):
    sides = []

    def start(number=1.0, **options):
        sides.append(ChildSide("fake", [sys.executable, PARTY, str(number)], tmp_path / "log", **options))
        return sides[-1]

    yield start
    for one in sides:
        one.close()


def test_load_and_run(side, tmp_path):
    party = side(2.5)
    assert party.load(model="a")["model"] == "a"
    assert [party.run("x", {"batch": n}) for n in (1, 2)][1]["batch"] == 2
    assert party.run("x", {})["token_s"] == 2.5
    party.close()
    assert party.process.returncode == 0
    assert "noise of a library" in (tmp_path / "log").read_text()


def test_threads(side):
    party = side(threads=1)
    assert party.load()["threads"] == "1"
    assert party.run("x", {})["processors"] == 1


def test_a_failure_is_told_and_the_party_lives_on(side, tmp_path):
    party = side()
    party.load()
    with pytest.raises(SideError, match=r"fake: fail failed: ValueError: out of luck \(log: .*log\)"):
        party.run("fail", {})
    assert party.run("x", {})["token_s"] == 1.0
    assert "Traceback" in (tmp_path / "log").read_text()


def test_a_party_that_ends(side):
    party = side()
    party.load()
    with pytest.raises(SideError, match="ended with code 7 while end"):
        party.run("end", {})
    with pytest.raises(SideError, match="ended with code 7 while x"):
        party.run("x", {})


def test_a_party_that_hangs_is_stopped(side):
    party = side(limit_s=2)
    party.load()
    with pytest.raises(SideError, match="hang took more than 2 s"):
        party.run("hang", {})
    party.close()
    assert party.process.returncode == -9


def test_a_party_that_cannot_be_started(tmp_path):
    with pytest.raises(SideError, match="gone: cannot start /no/such/python: No such file"):
        ChildSide("gone", ["/no/such/python"], tmp_path / "log")
