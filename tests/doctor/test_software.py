"""Wrong versions, missing and broken packages, a MindSpore that does not start."""

import re

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ms_omni.doctor import machine
from ms_omni.doctor.machine import requirements
from ms_omni.doctor.runner import Options
from tests.doctor.conftest import ROOT, at_level, the_one


def test_what_is_checked_is_what_pyproject_asks_for():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (listed,) = re.findall(r"^dependencies = \[(.*?)^\]", text, re.DOTALL | re.MULTILINE)
    # Some versions of setuptools write huggingface-hub for huggingface_hub; it is the same package.
    assert {canonicalize_name(item.name) for item in requirements()} == {
        canonicalize_name(re.match(r"[\w-]+", line)[0]) for line in re.findall(r'^ *"([^"]+)"', listed, re.MULTILINE)
    }


@pytest.mark.parametrize(
    "name, version, wanted",
    [
        ("mindspore", "2.5.0", "mindspore<2.11,>=2.7.1"),
        ("mindspore", "2.11.0", "mindspore<2.11,>=2.7.1"),
        ("numpy", "1.25.2", "numpy<3,>=1.26"),
        ("transformers", "4.40.0", "transformers<6,>=4.57.1"),
        ("transformers", "6.0.0", "transformers<6,>=4.57.1"),
    ],
)
def test_a_wrong_version(child, distribution, name, version, wanted):
    finding = the_one(child("packages", PYTHONPATH=distribution(name, version)), "error")
    assert finding.what == f"{name} {version} is installed, expected {wanted}"
    assert finding.do == f"pip install '{wanted}'"


def test_a_missing_package(monkeypatch):
    monkeypatch.setattr(machine, "requirements", lambda: [Requirement("no_such_thing<3")])
    finding = the_one(machine.packages(Options()), "error")
    assert (finding.what, finding.do) == ("no_such_thing is not installed", "pip install 'no_such_thing<3'")


def test_versions_that_are_right(child):
    assert not at_level(child("packages"), "error") and not at_level(child("python"), "error")


@pytest.mark.parametrize(
    "name, what, package",
    [
        ("soundfile", "sounds", "soundfile"),
        ("av", "videos", "av"),
        ("soxr", "resampling of sounds", "soxr"),
        ("PIL", "pictures", "pillow"),
    ],
)
def test_a_media_library_that_does_not_load(child, module, name, what, package):
    folder = module(name, "raise OSError('libsomething.so.1: cannot open shared object file')")
    finding = the_one(child("media", PYTHONPATH=folder), "error")
    assert finding.what.startswith(f"{what} cannot be read: OSError: libsomething.so.1")
    assert finding.do == f"pip install --force-reinstall --no-deps {package}"


def test_media_libraries_that_work(child):
    assert [finding.level for finding in child("media")] == ["ok"]


@pytest.mark.parametrize(
    "code, what",
    [
        ("raise OSError('libmindspore_core.so: cannot open shared object file')", "OSError: libmindspore_core.so"),
        ("import os; os.abort()", "signal 6 (SIGABRT)"),
        ("import sys; sys.exit(3)", "exit code 3"),
        ("import time; time.sleep(60)", "did not end within 4 s"),
    ],
)
def test_a_mindspore_that_does_not_start(child, module, code, what):
    finding = the_one(child("mindspore", limit_s=4, PYTHONPATH=module("mindspore", code)), "error")
    assert what in finding.what


def test_another_mindspore_in_the_way(child, module):
    code = "__version__ = '2.2.0'\ndef get_context(name): return 'CPU'\n"
    finding = the_one(child("mindspore", PYTHONPATH=module("mindspore", code)), "error")
    assert "is 2.2.0" in finding.what and "PYTHONPATH" in finding.do


def test_mindspore_that_works(child):
    assert [finding.level for finding in child("mindspore")] == ["ok"]
