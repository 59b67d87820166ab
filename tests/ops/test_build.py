"""Compiling the kernels and keeping them: whose files are loaded, damaged libraries, compilers, widths of vectors."""

import ctypes
import os
import platform
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ms_omni.modeling.ops import build, private_cache

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


@pytest.fixture
def written(monkeypatch):
    """A stand-in for compiling: `library()` keeps a file with the content given, and counts how often it was made."""
    made = []

    def library(content=b"code" * 99):
        def make(path):
            made.append(path)
            Path(path).write_bytes(content)

        return Path(private_cache.cached_file("a.so", make)), len(made)

    return library


def test_a_compiled_library_works_and_is_found_again():
    path = build.library("turn")
    before = os.stat(path).st_mtime_ns
    assert build.library("turn") == path and os.stat(path).st_mtime_ns == before and works(path)


def link(path):
    shutil.move(path, path.with_suffix(".other"))
    path.symlink_to(path.with_suffix(".other"))


def folder(path):
    path.unlink()
    (path / "in").mkdir(parents=True)


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:200]),
    "one byte short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "text": lambda path: path.write_text("text"),
    "changed": lambda path: path.write_bytes(b"x" + path.read_bytes()[1:]),
    "writable by the group": lambda path: path.chmod(0o770),
    "writable by all": lambda path: path.chmod(0o707),
    "a link": link,
    "a link to nothing": lambda path: (path.unlink(), path.symlink_to("nothing")),
    "a folder": folder,
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_what_is_not_as_it_was_written_is_made_anew(written, damage, cache):
    path, made = written()
    whole = path.read_bytes()
    damage(path)
    assert written() == (path, made + 1) == written()
    assert path.read_bytes() == whole and stat.S_IMODE(path.lstat().st_mode) == 0o700
    assert not list(cache.glob("*.part"))


def foreign(path):
    try:
        os.chown(path, 12345, -1)
    except PermissionError:
        pytest.skip("only root can give a file away")


def test_a_file_of_another_user_is_made_anew(written):
    path, made = written()
    foreign(path)
    assert written() == (path, made + 1) and path.stat().st_uid == os.geteuid()


def test_the_folder_is_the_users_alone_whatever_the_umask(written, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "new" / "cache"))
    before = os.umask(0)
    try:
        path, _ = written()
    finally:
        os.umask(before)
    assert path.parent == tmp_path / "new" / "cache" / "ms_omni"
    assert {stat.S_IMODE(item.stat().st_mode) for item in (path, *path.parents[:3])} == {0o700}


def test_what_lies_in_a_folder_that_others_may_write_to_is_not_loaded(written, cache):
    path, made = written()
    cache.chmod(0o777)
    assert written() == (path, made + 1) and stat.S_IMODE(cache.stat().st_mode) == 0o700


def everybodys(cache):
    cache.parent.chmod(0o777)


def linked(cache):
    (cache.parent / "other").mkdir(mode=0o700)
    cache.symlink_to(cache.parent / "other")


def of_another(cache):
    cache.mkdir()
    foreign(cache)


@pytest.mark.parametrize("spoil", [everybodys, linked, of_another, lambda cache: cache.write_text("")])
def test_a_cache_that_cannot_be_trusted_is_left_alone_with_a_word(written, cache, spoil):
    spoil(cache)
    private_cache._warn.cache_clear()
    with pytest.warns(UserWarning, match=f"not kept in {cache}.* this process compiles its own"):
        path, made = written()
    assert path.parent not in (cache, cache.parent / "other") and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert written() == (path, made)  # kept for this process, said once


def test_two_processes_may_compile_at_once(cache):
    program = "import ctypes; from ms_omni.modeling.ops import build; print(ctypes.CDLL(build.library('turn'))._name)"
    program = (
        f"import sys, types, pathlib; m = types.ModuleType('ops'); m.__path__ = [{build.FOLDER!r}]; sys.modules['ops'] = m; "
        + (program.replace("ms_omni.modeling.ops", "ops"))
    )
    processes = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = {process.communicate()[0] for process in processes}
    assert len(printed) == 1 and [process.returncode for process in processes] == [0, 0]
    assert os.listdir(cache) == [Path(printed.pop().strip()).name]


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


@pytest.fixture
def prebuilt(tmp_path, monkeypatch):
    """Libraries as a wheel brings them, of the file that compiles fastest."""
    monkeypatch.delenv("CXX")
    monkeypatch.setattr(build, "PREBUILT", str(tmp_path / "wheel" / "prebuilt"))
    there = os.listdir
    monkeypatch.setattr("os.listdir", lambda folder: ["turn.cpp"] if folder == build.FOLDER else there(folder))
    width = "x86-64-v3" if platform.machine() == "x86_64" else "armv8-a"
    if not build.WIDTHS[width][1] <= {word for line in build._processor() for word in line.split()}:
        pytest.skip(f"this processor is none of {width}")
    build.prebuild(str(tmp_path / "wheel"), width)
    return Path(build.PREBUILT) / width / "turn.so"


def test_what_came_compiled_is_used_without_a_compiler(prebuilt, monkeypatch, cache):
    monkeypatch.setenv("PATH", "")
    assert build.library("turn") == str(prebuilt) and works(str(prebuilt)) and not cache.exists()


def test_what_came_compiled_is_passed_over_where_somebody_asks_or_it_cannot_be_loaded(prebuilt, monkeypatch, cache):
    monkeypatch.setenv("CXX", COMPILERS[0])
    assert Path(build.library("turn")).parent == cache
    monkeypatch.delenv("CXX")
    prebuilt.write_bytes(b"no library")
    assert COMPILERS[0] != "g++" or Path(build.library("turn")).parent == cache


@pytest.mark.skipif(not shutil.which("aarch64-linux-gnu-g++"), reason="no compiler for aarch64 here")
def test_kernels_are_compiled_ahead_for_another_machine(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "aarch64-linux-gnu-g++")
    there = os.listdir
    monkeypatch.setattr("os.listdir", lambda folder: ["turn.cpp"] if folder == build.FOLDER else there(folder))
    build.prebuild(str(tmp_path), "armv8-a")
    header = (tmp_path / "prebuilt/armv8-a/turn.so").read_bytes()[:20]
    assert header[:4] == b"\x7fELF" and header[18] == 183  # EM_AARCH64


def test_what_came_compiled_for_another_processor_is_passed_over(prebuilt, monkeypatch):
    monkeypatch.setattr(build, "_processor", lambda: ["flags : fpu sse2"])
    monkeypatch.setenv("PATH", "")
    with pytest.raises(OSError, match="no C\\+\\+ compiler"):
        build.library("turn")
