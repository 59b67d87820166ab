"""Measured constants beside those of `ms-omni plan`."""

import json
import math

import pytest

from ms_omni.doctor import speed
from ms_omni.parallel.hardware import TO_MEASURE, load_hardware
from tests.doctor.conftest import at_level, the_one


def test_every_constant_is_measured(monkeypatch):
    from ms_omni.modeling import ops
    from ms_omni.runtime import setup

    monkeypatch.setattr(speed, "LEAST_S", 1e-3)
    monkeypatch.setattr(speed, "CHAIN", 3)
    monkeypatch.setattr(speed, "SIZES", {"CPU": (1 << 10, 64)})
    found = speed.measure(ops, setup())
    assert set(found) <= set(speed.UNITS) and all(0 < value < math.inf for value in found.values())
    hardware = load_hardware("910b")
    assert set(found) <= set(speed.constants(hardware, 2)) == set(speed.UNITS)
    assert {name.partition(".")[0] for name in hardware.estimates} - set(speed.UNITS) == {"launch_us"}


def test_figures_stand_beside_those_of_plan():
    found = {"memory_gb_per_s": 1500.0, "graph": 5.5, "eager": 40.0, "all_reduce_gb_per_s": 5.0}
    findings = list(speed.compared(found, "910b", "bfloat16", 2))
    assert (
        at_level(findings, "ok")[0].what
        == "bfloat16: memory 1.5e+03 GB/s (plan: 1600), a launch in a graph 5.5 us (plan: 5)"
    )
    slow = the_one(findings, "warning")
    assert "a launch one by one 40 us (plan: 15), large sums 5 GB/s (plan: 18)" in slow.what
    assert "configs/hardware/910b.json" in slow.do and "--hardware" in slow.do
    unknown = list(speed.compared({"memory_gb_per_s": 3.0}, None, "float32"))
    assert [finding.level for finding in unknown] == ["ok", "note"] and speed.NO_PLAN in unknown[1].what


def test_links_are_measured_for_two_cards_and_for_all(monkeypatch):
    jobs = []

    def job(program, folder, workers):
        jobs.append(workers)
        measured = {
            "card": "910b",
            "name": "ascend910b",
            "hccl": ["HCCL_X=1"],
            "found": {"all_gather_gb_per_s": 100.0 if workers == 4 else 30.0},
        }
        return 0, "sum is right\n" * workers + f"measured {json.dumps(measured)}\n"

    monkeypatch.setattr(speed, "run_job", job)
    monkeypatch.setattr(speed.ascend, "device_files", lambda: [f"/dev/davinci{number}" for number in range(4)])
    lines = [finding.what for finding in speed.msrun(None)]
    assert jobs == [2, 4] and lines == [
        "2 processes under msrun sum over HCCL",
        "HCCL_X=1",
        "between 2 processes: large gathers 30 GB/s (plan: 38)",
        "4 processes under msrun sum over HCCL",
        "between 4 processes: large gathers 100 GB/s (plan: 64)",
    ]


def test_a_card_without_settings_is_named():
    unknown, processor = ({"card": None, "name": name, "hccl": []} for name in ("Ascend310P", "CPU"))
    (finding,) = speed.hccl_settings(unknown)
    assert finding.what == "HCCL is left as it is: for Ascend310P no settings are known"
    assert not list(speed.hccl_settings(processor))


def test_what_is_to_be_measured_are_commands_that_there_are():
    """And every estimate of the hardware's is replaced by one of them."""
    from ms_omni.bench.scenarios import GROUPS
    from ms_omni.doctor.runner import CHECKS

    lines = [finding.what for finding in speed.to_confirm()][1:]
    names = {check.name for check in CHECKS}
    for command, _ in TO_MEASURE:
        only = command.partition("--only ")[2].split(",") if "--only" in command else []
        assert set(only) <= (names if "doctor" in command else set(GROUPS))
    assert len(lines) == len(TO_MEASURE)
    assert all(any(estimate in text for text in lines) for estimate in load_hardware("910b").estimates)


@pytest.mark.parametrize("device, named", [("Ascend", True), ("CPU", False)])
def test_commands_to_measure_are_named_where_there_are_cards(device, named, monkeypatch):
    from ms_omni import runtime
    from ms_omni.modeling import ops

    monkeypatch.setattr(runtime, "setup", lambda: runtime.Runtime(device, "BFloat16", ""))
    monkeypatch.setattr(runtime, "card", lambda: ("910b", "ascend910b") if named else (None, "CPU"))
    monkeypatch.setattr(ops, "settle", lambda _: None)
    monkeypatch.setattr(speed, "measure", lambda *_: {"graph": 5.0})
    found = [finding.what for finding in speed.rates(None)]
    assert all(any(command in text for text in found) == named for command, _ in TO_MEASURE)
