"""Compiling the kernels and keeping them: damaged libraries, compilers, widths of vectors."""

import ctypes
import os
import platform
import shutil
from pathlib import Path

import pytest

from ms_omni.modeling.ops import build

COMPILERS = [name for name in ("g++", "clang++") if shutil.which(name)]
if not COMPILERS:
    pytest.skip("no C++ compiler here", allow_module_level=True)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, and the first compiler that is here."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", COMPILERS[0])
    monkeypatch.delenv("MS_OMNI_MARCH", raising=False)
    return tmp_path / "ms_omni"


def works(path):
    return hasattr(ctypes.CDLL(path), "ms_omni_turn_float32")


def test_what_is_damaged_is_compiled_anew():
    path = Path(build.library("turn"))
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"text", whole[:-1], whole[:500] + b"x" + whole[501:]):
        path.unlink()  # a library that is loaded must not change under the process
        path.write_bytes(damaged)
        assert build.library("turn") == str(path) and path.stat().st_size >= 0.9 * len(whole) and works(path)


def test_a_folder_in_its_place_is_left_alone(cache):
    path = Path(build.library("turn"))
    path.unlink()
    path.mkdir()
    with pytest.raises(OSError):
        build.library("turn")
    assert os.listdir(cache) == [path.name]


@pytest.mark.parametrize("compiler", COMPILERS)
def test_each_compiler_and_width_has_a_library_of_its_own(compiler, monkeypatch):
    monkeypatch.setenv("CXX", compiler)
    native = build.library("turn")
    monkeypatch.setenv("CXX", f"{compiler} -g")  # options with it are its own
    assert build.library("turn") != native and works(native)
    if platform.machine() == "x86_64":
        monkeypatch.setenv("MS_OMNI_MARCH", "x86-64-v2")
        assert works(build.library("turn")) and build.library("turn") != native


@pytest.mark.parametrize("compiler", COMPILERS)
def test_an_unknown_width_is_named(compiler, monkeypatch, cache):
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setenv("MS_OMNI_MARCH", "no-such-processor")
    with pytest.raises(OSError, match=r"error: .*no-such-processor"):
        build.library("turn")
    assert not os.listdir(cache)


@pytest.mark.skipif(
    platform.machine() != "x86_64" or "avx512f" in Path("/proc/cpuinfo").read_text(), reason="this processor has them all"
)
def test_a_width_that_the_processor_lacks_is_refused_before_it_runs(monkeypatch):
    monkeypatch.setenv("MS_OMNI_MARCH", "x86-64-v4")
    with pytest.raises(OSError, match="MS_OMNI_MARCH=x86-64-v4 asks for AVX-512"):
        build.library("turn")
