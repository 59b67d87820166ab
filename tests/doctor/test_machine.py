"""Wrong and broken packages, a MindSpore that does not start, too little memory or disk, folders to write to, ports and msrun."""

import re
import shutil
import socket
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ms_omni import runtime
from ms_omni.checkpoint.convert import convert
from ms_omni.doctor import machine, speed
from ms_omni.doctor.machine import requirements
from ms_omni.doctor.runner import Options, one_line
from tests.doctor.conftest import ROOT, at_level, the_one
from tests.generation import small


def test_enough_memory(child):
    assert not at_level(child("memory"), "error")


def test_too_little_memory(monkeypatch):
    monkeypatch.setattr(runtime, "available_gb", lambda: 0.7)
    finding = the_one(machine.memory(Options()), "error")
    assert "0.7 GB of memory are free (of the machine)" in finding.what


def test_a_limit_of_the_shell(monkeypatch):
    monkeypatch.setattr(
        runtime.resource, "getrlimit", lambda kind: (10**9 if kind == runtime.resource.RLIMIT_AS else -1, -1)
    )
    assert "1.0 GB of memory are free (ulimit -v)" in the_one(machine.memory(Options()), "error").what


def test_a_limit_of_the_container(tmp_path, monkeypatch):
    for name, value in (("limit", 3 * 10**9), ("use", 2 * 10**9)):
        (tmp_path / name).write_text(str(value))
    monkeypatch.setattr(runtime, "GROUP_LIMITS", (str(tmp_path / "limit"),))
    monkeypatch.setattr(runtime, "GROUP_USES", (str(tmp_path / "use"),))
    assert "1.0 GB of memory are free (limit of the container)" in the_one(machine.memory(Options()), "error").what


def test_a_checkpoint_that_does_not_fit(tmp_path, monkeypatch):
    with open(tmp_path / "model.safetensors", "wb") as file:
        file.truncate(7_600_000_000)  # takes no room on the disk
    monkeypatch.setattr(machine, "free_memory_gb", lambda: (8.0, "of the machine"))
    finding = the_one(machine.memory(Options(str(tmp_path))), "warning")
    assert "7.6 GB of weights" in finding.what and "up to 8.4 GB" in finding.what
    assert "holds no *.safetensors" in the_one(machine.memory(Options(str(tmp_path / "none"))), "error").what


def test_codes_that_no_card_multiplies_with_are_named(tmp_path, monkeypatch):
    """Of a small checkpoint, whose talker has sizes that fill no lines."""
    source = small.write(tmp_path / "source", layers=1)
    convert(source, tmp_path / "codes", quantize="int4", group=32, progress=False)
    monkeypatch.setattr(machine.ascend, "is_present", lambda options: True)
    first, *others = [finding.what for finding in machine.memory(Options(str(tmp_path / "codes")))][2:]
    assert first.startswith("on a card ") and first.endswith("matrices in 4 and 8 bits stay so")
    assert any(
        "talker.model.layers.0.self_attn.q_proj.weight become bfloat16 there: CANN multiplies" in what for what in others
    )
    assert len(list(machine.memory(Options(str(source))))) == 2


def test_too_little_disk(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**8))
    findings = list(machine.disk(Options()))
    assert "has 0.10 GB free" in the_one(findings, "warning").what and "TMPDIR" in the_one(findings, "error").do


def test_a_cache_folder_that_cannot_be_written_to(child, tmp_path):
    (tmp_path / "file").write_text("")
    finding = the_one(child("disk", XDG_CACHE_HOME=tmp_path / "file"), "warning")
    assert f"the cache folder {tmp_path}/file/ms_omni cannot be written to" in finding.what
    assert finding.do.startswith("set XDG_CACHE_HOME")


def test_a_temporary_folder_that_is_not_there(child):
    assert "TMPDIR names /no/such/folder" in the_one(child("disk", TMPDIR="/no/such/folder"), "warning").what


def test_a_message_is_one_line():
    text = one_line("Allocate memory\nfailed\n\n----------------\n- C++ Call Stack:\nfile.cc:1 f")
    assert text == "Allocate memory failed" and len(one_line("x" * 1000)) == 300


def test_loopback_that_is_down(monkeypatch):
    def refuse(*_):
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(speed, "echo", refuse)
    finding = the_one(speed.loopback(Options()), "warning")
    assert "127.0.0.1" in finding.what and "ip link set lo up" in finding.do
    monkeypatch.setattr(speed.ascend, "device_files", lambda: ["/dev/davinci0", "/dev/davinci1"])
    the_one(speed.loopback(Options()), "error")  # two NPUs are of use together only


def test_msrun_is_not_tried_then(monkeypatch):
    def refuse(*_):
        raise OSError("down")

    monkeypatch.setattr(speed, "echo", refuse)
    assert [finding.level for finding in speed.msrun(Options())] == ["note"]


def test_a_port_that_is_taken(monkeypatch):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen(1)
        monkeypatch.setattr(speed, "MSRUN_PORT", holder.getsockname()[1])
        finding = the_one(speed.loopback(Options()), "warning")
    assert "--master_port" in finding.do


def test_no_msrun(monkeypatch):
    monkeypatch.setattr(speed, "launcher", lambda: None)
    assert "msrun is not found" in the_one(speed.msrun(Options()), "warning").what


@pytest.mark.parametrize("script, what", [("exit 3", "failed"), ("sleep 60", "did not finish in 2 s")])
def test_an_msrun_that_fails_or_hangs(program, monkeypatch, script, what):
    path = program("msrun", script).partition(":")[0]
    monkeypatch.setattr(speed, "launcher", lambda: f"{path}/msrun")
    monkeypatch.setattr(speed, "JOB_LIMIT_S", 2)
    assert what in the_one(speed.msrun(Options()), "warning").what


@pytest.mark.slow
def test_msrun_that_works(child):
    right, measured, _ = child("msrun")
    assert "2 processes under msrun sum over" in right.what and "large sums" in measured.what


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
