"""The order of turns, warm-ups, and what becomes of failures."""

import json

import pytest

from ms_omni.bench.scenarios import Scenario
from ms_omni.bench.session import LocalSide, Session, SideError
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
