"""The order of turns, warm-ups, and what becomes of failures; the conversation with a child process; which weights are measured."""

import json
import sys
from pathlib import Path

import pytest

from ms_omni.bench.scenarios import Scenario
from ms_omni.bench.session import ChildSide, LocalSide, Session, SideError, weights_of
from ms_omni.errors import InputError
from tests.parallel.launching import ROOT, msrun

WORK = Scenario("work", "a part", "work", {"n": 1})
COUNTED = Scenario("steps/text", "a part", "count", counted=True)


class FakeSide:
    """Notes every request; the first `compiles` runs build a graph; kinds in `broken` fail."""

    def __init__(self, name, log, compiles=0, broken=(), second=2.0):
        self.name, self.log, self.compiles, self.broken, self.second = name, log, compiles, broken, second

    def load(self, **settings):
        self._note("load")
        return {"load_s": self.second, "software": self.name}

    def run(self, kind, settings):
        self._note(kind)
        self.compiles -= 1
        return {"token_s": self.second, "compiled": int(self.compiles >= 0)}

    def close(self):
        self.log.append((self.name, "close"))

    def _note(self, what):
        self.log.append((self.name, what))
        if what in self.broken:
            raise SideError(f"{self.name}: {what} failed")


def session(log, ours=None, reference=None, repetitions=2, **options):
    sides = [
        lambda: FakeSide("ms_omni", log, **(ours or {})),
        lambda: FakeSide("reference", log, second=3.0, **(reference or {})),
    ]
    return Session(sides, [{}, {}], repetitions, **options)


def test_both_sides_take_turns():
    log = []
    outcome = session(log).run([WORK, COUNTED], measure_load=False)
    turns = [name for name, what in log if what == "work"]
    assert turns == ["ms_omni", "reference"] * 3  # a warm-up and two repetitions of each
    assert [name for name, what in log if what == "count"] == ["ms_omni"]
    assert log[-2:] == [("ms_omni", "close"), ("reference", "close")]
    assert outcome.results[0].ours.runs == (2.0, 2.0) and outcome.results[0].ratio == 1.5
    assert outcome.counts == {"steps/text": {"token_s": 2.0, "compiled": 0}}
    assert outcome.about["reference"] == {"software": "reference"} and not outcome.failures


def test_loading_is_measured_in_fresh_processes_after_one_that_does_not_count():
    log = []
    outcome = session(log).run([], measure_load=True)
    one_turn = [(name, what) for name in ("ms_omni", "reference") for what in ("load", "close")]
    assert log[:12] == one_turn * 3
    assert [len(item.ours.runs) for item in outcome.results] == [2]


def test_warm_up_goes_on_until_nothing_is_compiled():
    log = []
    outcome = session(log, ours={"compiles": 2}).run([WORK], measure_load=False)
    assert [name for name, what in log if what == "work"][:4] == ["ms_omni"] * 3 + ["reference"]
    assert outcome.recompiled == 0
    assert session([], ours={"compiles": 5}).run([WORK], measure_load=False).recompiled == 1  # four warm-ups at most


def test_a_scenario_that_fails_is_named_and_the_next_one_runs():
    log = []
    other = Scenario("other", "a part", "other")
    outcome = session(log, reference={"broken": ("work",)}).run([WORK, other], measure_load=False)
    assert outcome.failures == ["work: reference: work failed"]
    assert [item.scenario for item in outcome.results] == ["other"]


def test_a_reference_that_cannot_load_leaves_ours():
    outcome = session([], reference={"broken": ("load",)}).run([WORK], measure_load=False)
    assert outcome.failures == ["reference: load failed"]
    assert [item.reference for item in outcome.results] == [None]


def test_nothing_is_measured_without_our_side():
    log = []
    outcome = session(log, ours={"broken": ("load",)}).run([WORK], measure_load=True)
    assert outcome.failures and not outcome.results and ("reference", "work") not in log


def test_an_interruption_keeps_what_was_measured():
    log = []

    def interrupted(text):
        if text.startswith("other"):
            raise KeyboardInterrupt

    outcome = session(log, show=interrupted).run([WORK, Scenario("other", "a part", "other")], measure_load=False)
    assert [item.scenario for item in outcome.results] == ["work"] and "interrupted" in outcome.failures[0]
    assert log[-2:] == [("ms_omni", "close"), ("reference", "close")]


def test_a_side_in_this_process_loads_once_and_that_counts():
    loads = []

    def load(**settings):
        loads.append(settings)
        return {"load_s": 2.0, "peak_gb": 1.0, "software": "x"}

    outcome = Session([lambda: LocalSide(load, lambda kind, settings: {"token_s": 1.0})], [{"model": "m"}], 2).run(
        [WORK], measure_load=False
    )
    assert loads == [{"model": "m"}]
    assert [(item.scenario, item.metric) for item in outcome.results] == [
        ("load", "load_s"),
        ("load", "peak_gb"),
        ("work", "token_s"),
    ]


@pytest.mark.slow
def test_two_processes_count_what_they_send_each_other(tiny_checkpoint, tmp_path):
    options = ("--geometry", tiny_checkpoint, "--only", "steps/text", "--repetitions", 1, "--out", tmp_path / "out")
    job = msrun(2, tmp_path / "job", ROOT / "launch/benchmark.py", *options)
    assert job.code == 0, job.explain()
    counts = json.loads((tmp_path / "out" / "benchmark.json").read_text())["counts"]["steps/text"]
    assert counts["collectives_per_token"] > 0 and counts["collective_bytes_per_token"] > 0


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


def test_weights_are_written_once(tmp_path):
    shown = []
    first = weights_of("tiny", tmp_path, 3, shown.append)
    stamp = (first / "config.json").stat().st_mtime_ns
    assert weights_of("tiny", tmp_path, 3, shown.append) == first == tmp_path / "tiny-seed3" and len(shown) == 1
    assert (first / "config.json").stat().st_mtime_ns == stamp


def test_a_checkpoint_is_taken_as_it_is_and_a_bare_config_gets_weights(tiny_checkpoint, tmp_path):
    assert weights_of(str(tiny_checkpoint), tmp_path, 0) == tiny_checkpoint
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text((tiny_checkpoint / "config.json").read_text())
    assert weights_of(str(bare), tmp_path, 0) == tmp_path / "bare-seed0"
    assert list((tmp_path / "bare-seed0").glob("*.safetensors"))


def test_several_processes_write_none(tmp_path):
    with pytest.raises(InputError, match="ms-omni tiny DIR --geometry mid.*--geometry DIR"):
        weights_of("mid", tmp_path, 0, may_write=False)
    assert not list(tmp_path.iterdir())
