"""Simulated installations of driver, firmware and CANN, and a simulated npu-smi."""

from types import SimpleNamespace

import pytest

from ms_omni.doctor import ascend as checks
from ms_omni.doctor.ascend import numbers
from ms_omni.doctor.runner import Options
from tests.doctor.conftest import at_level, the_one


def test_a_machine_without_npu(child, tmp_path):
    options = Options(ascend_root=str(tmp_path / "none"))
    assert [finding.what for finding in list(checks.software(options))] == [checks.NO_NPU]
    assert at_level(list(checks.devices(options)), "ok")


def test_versions_that_go_together(child, ascend):
    findings = list(checks.software(ascend()))
    assert {finding.level for finding in findings} == {"ok"}
    assert [finding.what for finding in findings][:2] == ["driver 24.1.rc3", "firmware 7.5.0.1.129"]
    assert "CANN 8.3.RC1" in findings[2].what


@pytest.mark.parametrize(
    "broken, level, what, do",
    [
        ({"driver": None}, "warning", "driver's version cannot be read", "install driver 24.1.RC3 or newer"),
        ({"driver": "23.0.3"}, "warning", "NPU driver 23.0.3 is older than 24.1.RC3", "restart the machine"),
        ({"driver": "24.1.rc2"}, "warning", "NPU driver 24.1.rc2 is older", "install driver 24.1.RC3"),
        ({"driver": "unknown"}, "warning", "has no line 'version='", "install driver"),
        ({"cann": None}, "error", "CANN is not found in", f"install CANN {' or '.join(checks.accepted_cann())}"),
        ({"cann": "unreadable"}, "warning", "CANN's version cannot be read", "install CANN"),
        ({"cann": "8.0.RC2"}, "warning", "CANN 8.0.RC2 in", "if something fails, install CANN"),
        ({"cann": "99.5.0"}, "warning", f"was made for {' or '.join(checks.accepted_cann())}", "if something fails"),
        ({"sourced": False}, "error", "the environment of CANN is not set", "set_env.sh"),
    ],
)
def test_a_fault(child, ascend, broken, level, what, do):
    finding = the_one(list(checks.software(ascend(**broken))), level)
    assert what in finding.what and do in finding.do


def test_the_versions_of_cann_are_those_that_mindspore_itself_names(monkeypatch, tmp_path):
    """Each of them is right here; and a MindSpore that names none, or is none, gives a warning."""
    from mindspore.run_check._check_version import AscendEnvChecker

    known = checks.accepted_cann()
    assert list(known) == AscendEnvChecker("").version and "8.3" in known
    monkeypatch.setattr(checks, "accepted_cann", lambda: ("9.1", "10.0"))
    options = Options(ascend_root=str(tmp_path))
    home = tmp_path / "cann" / "compiler"
    home.mkdir(parents=True)
    for version, level in (("9.1.0.1.20", "ok"), ("10.0.RC1", "ok"), ("10.1.RC1", "warning")):
        (home / "version.info").write_text(f"Version={version}\n")
        assert [item.level for item in checks.software(options) if "CANN " + version in item.what] == [level]
    monkeypatch.setattr(checks, "accepted_cann", lambda: ())
    assert any("does not say which CANN" in item.what for item in at_level(list(checks.software(options)), "warning"))


@pytest.mark.parametrize("text", [None, "class AscendEnvChecker:\n    pass", "class AscendEnvChecker(", "self.version = 3"])
def test_a_mindspore_that_names_no_versions(text, tmp_path, monkeypatch):
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda _: SimpleNamespace(submodule_search_locations=[tmp_path]))
    if text is not None:
        (tmp_path / "run_check").mkdir()
        (tmp_path / "run_check" / "_check_version.py").write_text(text)
    assert checks.accepted_cann() == ()
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda _: None)
    assert checks.accepted_cann() == ()


def test_cann_elsewhere_is_named_by_its_environment(child, ascend, tmp_path):
    options = ascend(cann=None)
    home = tmp_path / "cann"
    (home / "compiler").mkdir(parents=True)
    (home / "compiler" / "version.info").write_text("Version=8.3.0.1.200\n")
    assert "CANN 8.3.0.1.200" in child("ascend", options, ASCEND_HOME_PATH=home)[2].what


def test_a_version_file_that_is_a_folder(child, ascend):
    from pathlib import Path

    options = ascend(driver=None)
    (Path(options.ascend_root) / "driver" / "version.info").mkdir(parents=True)
    assert "Is a directory" in the_one(list(checks.software(options)), "warning").what


def test_order():
    versions = ["23.0.3", "24.1.RC2", "24.1.rc3", "24.1.0", "24.1.0.3", "25.0.RC1", "25.2.1", "25.3.RC1"]
    assert sorted(versions, key=checks.order) == versions


def test_an_npu(child, ascend, npu_smi, monkeypatch):
    npu_smi()
    options = ascend()
    findings = list(checks.devices(options))
    assert (
        "NPU 0: software version 24.1.rc3, firmware version 7.5.0.1.129, 49.2 of 65.5 GB free"
        in at_level(findings, "ok")[0].what
    )
    assert "no /dev/davinci*" in the_one(findings, "error").what  # this machine has none


def test_driver_and_firmware_apart(child, ascend, npu_smi):
    npu_smi(fits="NOK")
    assert any(
        "driver and firmware do not go together" in item.what for item in at_level(list(checks.devices(ascend())), "error")
    )


def test_an_npu_smi_that_fails(child, ascend, npu_smi):
    npu_smi(fails=True)
    assert any("dcmi initialize failed" in item.what for item in at_level(list(checks.devices(ascend())), "error"))


def test_an_npu_smi_that_hangs(ascend, program, monkeypatch):
    monkeypatch.setenv("PATH", program("npu-smi", "exec sleep 60"))
    monkeypatch.setattr(checks, "SMI_LIMIT_S", 1)
    assert any("did not answer" in item.what for item in at_level(checks.devices(ascend()), "error"))


def test_a_device_that_may_not_be_opened(ascend, monkeypatch, tmp_path):
    device = tmp_path / "davinci0"
    device.write_text("")
    monkeypatch.setattr(checks, "device_files", lambda: [device])
    monkeypatch.setattr(checks.os, "access", lambda path, mode: False)
    monkeypatch.setattr(checks.shutil, "which", lambda name: None)
    assert "HwHiAiUser" in the_one(checks.devices(ascend()), "error").do


@pytest.mark.parametrize("text, expected", [("8.3.RC1", (8, 3)), ("25.2.0", (25, 2, 0)), ("x", ())])
def test_numbers(text, expected):
    assert numbers(text) == expected
