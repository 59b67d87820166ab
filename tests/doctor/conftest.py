"""Faults put into an environment: each test names one and expects one line that says what to do."""

import os
import platform
import stat
from pathlib import Path

import pytest

from ms_omni.doctor.runner import CHECKS, Options, run_check

BOARD = "NPU ID : 0\nSoftware Version : {driver}\nFirmware Version : 7.5.0.1.129\nCompatibility : {fits}\n"
USAGE = "NPU ID : 0\nHBM Capacity(MB) : 65536\nHBM Usage Rate(%) : 25\n"


@pytest.fixture
def child(monkeypatch):
    """`child("disk", XDG_CACHE_HOME=...)`: the findings of a check, run as `ms-omni doctor` runs it."""

    def run(name, options=None, limit_s=None, **environment):
        for key, value in environment.items():
            monkeypatch.setenv(key, str(value))
        check = next(check for check in CHECKS if check.name == name)
        check = check if limit_s is None else type(check)(check.name, check.title, check.where, limit_s)
        return run_check(check, options or Options())

    return run


@pytest.fixture
def distribution(tmp_path):
    """`distribution("numpy", "2.1.0")`: a folder that makes Python believe that this version is installed."""

    def make(name, version):
        folder = tmp_path / "packages"
        info = folder / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        return folder

    return make


@pytest.fixture
def module(tmp_path):
    """`module("av", code)`: a folder in which a module of that name runs this code when it is imported."""

    def make(name, code):
        folder = tmp_path / "modules"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.py").write_text(code)
        return folder

    return make


@pytest.fixture
def program(tmp_path):
    """`program("npu-smi", script)`: a PATH on which this shell script comes first."""

    def make(name, script):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        path = folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return f"{folder}{os.pathsep}{os.environ['PATH']}"

    return make


@pytest.fixture
def ascend(tmp_path, monkeypatch):
    """`ascend(driver=..., cann=...)`: options for a simulated /usr/local/Ascend; None leaves a part out."""
    for name in ("ASCEND_HOME_PATH", "ASCEND_TOOLKIT_HOME", "ASCEND_OPP_PATH"):
        monkeypatch.delenv(name, raising=False)

    def make(driver="24.1.rc3", cann="8.3.RC1", firmware="7.5.0.1.129", sourced=True):
        root = tmp_path / "Ascend"
        root.mkdir()
        toolkit = root / "ascend-toolkit" / "latest"
        for path, text in (
            (root / "driver" / "version.info", driver and f"package_version=x\nVersion={driver}\n"),
            (root / "firmware" / "version.info", firmware and f"Version={firmware}\n"),
            (
                toolkit / f"{platform.machine()}-linux" / "ascend_toolkit_install.info",
                cann and f"package_name=Ascend-cann-toolkit\nversion={cann}\ninnerversion=V1\n",
            ),
        ):
            if text:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
        if sourced:
            monkeypatch.setenv("ASCEND_OPP_PATH", str(toolkit / "opp"))
        return Options(ascend_root=str(root))

    return make


@pytest.fixture
def npu_smi(program, monkeypatch):
    """`npu_smi(driver=..., fits=...)`: an npu-smi that knows one NPU."""

    def make(driver="24.1.rc3", fits="OK", fails=False):
        script = (
            "echo dcmi initialize failed; exit 255"
            if fails
            else f"""
case "$*" in
  "info -l") printf 'Card Count : 1\\nNPU ID : 0\\nChip Count : 1\\n';;
  *board*) printf '{BOARD.format(driver=driver, fits=fits).replace(chr(10), chr(92) + "n")}';;
  *usages*) printf '{USAGE.replace("%", "%%").replace(chr(10), chr(92) + "n")}';;
esac"""
        )
        monkeypatch.setenv("PATH", program("npu-smi", script))

    return make


def at_level(findings, level):
    """The findings of one level."""
    return [finding for finding in findings if finding.level == level]


def the_one(findings, level):
    """The only finding of that level, which says what to do."""
    (finding,) = at_level(findings, level)
    assert finding.do and "\n" not in finding.what + finding.do, finding
    return finding


ROOT = Path(__file__).resolve().parents[2]
