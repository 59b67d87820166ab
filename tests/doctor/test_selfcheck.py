"""The choice of operators, operators that compute wrongly, and the self-check."""

import os
from unittest import mock

import numpy as np
import pytest

from ms_omni.doctor import selfcheck
from ms_omni.doctor.runner import Options
from ms_omni.errors import DeviceError
from ms_omni.modeling.ops.ascend_cases import KINDS
from tests.doctor.conftest import at_level, the_one


def test_operators_that_work(child):
    findings = child("operators")
    assert not at_level(findings, "error") and not at_level(findings, "warning")
    assert f"{len(KINDS)} operators compute what numpy does, in float32" in findings[-1].what
    assert any("rms_norm" in finding.what for finding in at_level(findings, "note"))


@pytest.mark.parametrize("chosen", ["reference", "ascend-emulated"])
def test_other_implementations_pass_too(child, chosen):
    findings = child("operators", MS_OMNI_OPS=chosen)
    assert not at_level(findings, "error") and "forces the choice" in " ".join(
        item.what for item in at_level(findings, "note")
    )


def test_a_name_that_is_no_implementation(child):
    finding = the_one(child("operators", MS_OMNI_OPS="nonsense"), "error")
    assert "MS_OMNI_OPS='nonsense' is not an implementation" in finding.what and "unset MS_OMNI_OPS" in finding.do


def test_boosted_layers(child):
    (finding,) = [found for found in child("operators", MS_OMNI_BOOST="1") if "MS_OMNI_BOOST" in found.what]
    assert finding.what == "MS_OMNI_BOOST=1 has no effect: these operators are not those of Ascend"
    findings = child("operators", MS_OMNI_OPS="ascend-emulated", MS_OMNI_BOOST="1")
    assert not at_level(findings, "error") and "decode layers have kernels that come with MindSpore" in str(findings)
    finding = the_one(child("operators", MS_OMNI_BOOST="yes"), "error")
    assert finding.what.startswith("MS_OMNI_BOOST='yes' is neither 1 ") and finding.do.startswith("unset MS_OMNI_BOOST")


def test_no_compiler(child, tmp_path):
    findings = child("operators", CXX="/no/such/g++", XDG_CACHE_HOME=tmp_path)
    assert not at_level(findings, "error")  # it falls back
    finding = the_one(findings, "warning")
    assert "no C++ compiler '/no/such/g++'" in finding.what and "install g++" in finding.do


@pytest.mark.parametrize("name", ["linear", "route_topk", "expert_load"])
@pytest.mark.parametrize("fault", ["off", "shape", "nan", "raises"])
def test_an_operator_that_is_broken(monkeypatch, name, fault):
    from ms_omni.modeling import ops

    right = getattr(ops.implementation(), name)

    def broken(*arguments):
        if fault == "raises":
            raise RuntimeError("the kernel was not found")
        result = right(*arguments)
        first = result[0] if isinstance(result, tuple) else result
        first = {"off": first * 1.02, "shape": first.reshape(-1)[1:], "nan": first * float("nan")}[fault]
        return (first, *result[1:]) if isinstance(result, tuple) else first

    monkeypatch.setattr(ops.implementation(), name, staticmethod(broken))
    with mock.patch.dict(KINDS, {name: KINDS[name]}, clear=True):
        finding = at_level(list(selfcheck.operators(Options())), "error")[0]
    assert finding.what.startswith(f"an operator computes wrongly: {name} ") and "MS_OMNI_OPS=reference" in finding.do


def test_a_device_that_cannot_compute_an_operator(monkeypatch):
    from ms_omni.modeling import ops

    def settle(_):
        raise DeviceError("operator clip: no form of it works on this device")

    monkeypatch.setattr(ops, "settle", settle)
    assert the_one(list(selfcheck.operators(Options())), "error").what.startswith("operator clip: no form")


def test_the_self_check_passes(child):
    findings = child("selfcheck")
    assert {finding.level for finding in findings} == {"ok"}
    assert all(stage in findings[0].what for stage in ("image", "video", "audio", "text", "talker", "predictor", "code2wav"))


@pytest.mark.slow
def test_the_self_check_finds_a_stage_that_is_off(monkeypatch):
    from ms_omni.modeling import ops

    right = ops.snake_beta
    monkeypatch.setattr(ops, "snake_beta", lambda x, alpha, beta: right(x, alpha * 1.05, beta))
    finding = the_one(selfcheck.stages(Options()), "error")
    assert finding.what.startswith("code2wav: off by")


def test_the_stored_values_are_alive():
    stored = np.load(selfcheck.STORED)
    stages = [name for name in stored if "." not in name]
    assert len(stages) == 7
    for name in stages:
        assert stored[name].size == selfcheck.STORED_VALUES and stored[name].std() > 0.1
        assert selfcheck.distance(name, stored[name], stored) == 0
        assert (
            1e-3 < selfcheck.limit_of(name, "bfloat16", stored) < 0.5 and selfcheck.limit_of(name, "float32", stored) == 1e-3
        )
        assert selfcheck.distance(name, stored[name] * np.nan, stored) == float("inf")
        assert selfcheck.distance(name, stored[name][::-1], stored) > selfcheck.limit_of(name, "bfloat16", stored)
    assert os.path.getsize(selfcheck.STORED) < 50_000
