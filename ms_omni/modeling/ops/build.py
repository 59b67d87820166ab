"""Libraries of this folder's C++ files: those that came compiled with the wheel, where the processor supports them, else compiled on
first use and stored in the user's own cache (see `private_cache.py`).

`CXX` names the compiler (default g++; clang++ will do), `MS_OMNI_MARCH` the processor that it compiles for in the
compiler's own names (`-march`): the default is native, and x86-64-v2, x86-64-v3 and x86-64-v4 stand for widths of vectors;
on aarch64 (armv8-a and later) they are NEON's. Where either is set, no library of the wheel is used.
"""

import ctypes
import hashlib
import os
import shlex
import subprocess

from . import private_cache

FOLDER = os.path.dirname(os.path.abspath(__file__))
# No flag may let the compiler reorder sums or fuse operations: equal rows have equal bits in any batch.
FLAGS = (
    *("-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared", "-pthread"),
    "-fno-schedule-insns",  # for aarch64 GCC would load so far ahead that sums in registers go to memory
)
PROCESSOR_KEYS = ("model name", "flags", "CPU part", "Features")
COMPILE_LIMIT_S = 300


PREBUILT = os.path.join(FOLDER, "prebuilt")
# Libraries that a wheel may contain, the best first: flags beside -march, and the processor's flags (in Linux's names) that it needs.
# Matrix units and products of bytes are detected at run time (`has_tiles`, `has_vnni`), so code for them is harmless where there are none.
WIDTHS = {
    "x86-64-v4": (("-mamx-tile", "-mamx-bf16", "-mavx512vnni"), {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}),
    "x86-64-v3": ((), {"avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"}),
    "armv8-a": ((), {"asimd"}),
}


def library(name: str) -> str:
    """Path of the library of `<name>.cpp`. Raises `OSError` with one line with the reason where there is none."""
    return _prebuilt(name) or _compiled(name)


def prebuild(folder: str, width: str) -> None:
    """Compiles all files for one of `WIDTHS` into `folder`/prebuilt, where `library` looks. Raises `OSError`."""
    compiler, (flags, _) = shlex.split(os.environ.get("CXX") or "g++"), WIDTHS[width]
    target = os.path.join(folder, "prebuilt", width)
    os.makedirs(target, exist_ok=True)
    for name in sorted(file.removesuffix(".cpp") for file in os.listdir(FOLDER) if file.endswith(".cpp")):
        command = [compiler[0], *FLAGS, "-s", f"-march={width}", *flags, *compiler[1:], source(name)]
        _run([*command, "-o", os.path.join(target, f"{name}.so")])


def _prebuilt(name):
    """Path of a library that came with the wheel and works here, or None."""
    if os.environ.get("CXX") or os.environ.get("MS_OMNI_MARCH") or not os.path.isdir(PREBUILT):
        return None
    has = {word for line in _processor() for word in line.split()}
    for width, (_, needed) in WIDTHS.items():
        path = os.path.join(PREBUILT, width, f"{name}.so")
        if os.path.isfile(path) and needed <= has:
            try:
                loaded = ctypes.CDLL(path)
            except OSError:  # linked to a newer libc
                continue
            _register(loaded)
            return path
    return None


def _compiled(name):
    compiler = shlex.split(os.environ.get("CXX") or "g++")
    processor = os.environ.get("MS_OMNI_MARCH") or "native"
    version = _run([*compiler, "--version"])
    settings = repr((compiler, version, FLAGS, processor, _processor())).encode()
    key = hashlib.sha256(_text(name) + settings).hexdigest()[:16]
    command = [compiler[0], *FLAGS, f"-march={processor}", *compiler[1:], source(name)]  # options beside its name win
    path = private_cache.cached_file(f"{name}-{key}.so", lambda target: _run([*command, "-o", target]))
    loaded = ctypes.CDLL(path)
    missing = loaded.ms_omni_missing
    missing.restype = ctypes.c_char_p
    if missing():
        raise OSError(f"MS_OMNI_MARCH={processor} asks for {missing().decode()}, which this processor does not have")
    _register(loaded)
    return path


def vectors() -> str:
    """Which vectors the kernels work with, and how wide those are: "AVX2, 8 floats". Raises `OSError` as `library` does."""
    words = ctypes.CDLL(library("kernels")).ms_omni_vectors
    words.restype = ctypes.c_char_p
    return words().decode()


def source(name: str) -> str:
    """Path of a C++ file of this package."""
    return os.path.join(FOLDER, f"{name}.cpp")


def _text(name):
    """The file and every header beside it, which it may include."""
    headers = sorted(os.path.join(FOLDER, file) for file in os.listdir(FOLDER) if file.endswith(".h"))
    text = b""
    for path in (source(name), *headers):
        with open(path, "rb") as file:
            text += file.read()
    return text


def _run(command):
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_LIMIT_S)
    except FileNotFoundError:
        raise OSError(f"there is no C++ compiler {command[0]!r} (CXX names another one)") from None
    except subprocess.TimeoutExpired:
        raise OSError(f"{command[0]} did not finish in {COMPILE_LIMIT_S} s") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no message"]
        raise OSError(f"{command[0]} failed: {next((line for line in lines if 'error' in line), lines[0])}")
    return done.stdout


def _processor():
    """What `-march=native` depends on: a cache directory may be shared by several machines."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            return sorted({line.strip() for line in file if line.startswith(PROCESSOR_KEYS)})
    except OSError:
        return list(os.uname())


# ---- how many threads a kernel uses ------------------------------------------------------------------------------------

_libraries: list[ctypes.CDLL] = []
_limit: int | None = None


def available_threads() -> int:
    """Threads of a kernel: `OMP_NUM_THREADS`, else one per processor that this process may use, in equal parts for the ranks of a job.

    Read from Python's own copy of the environment: MindSpore sets the variable when it is imported, to half of the processors and 8 at most.
    """
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1  # macOS
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if wanted.isdigit() and int(wanted):
        return min(int(wanted), processors)
    ranks = os.environ.get("MS_WORKER_NUM", "")
    return max(processors // int(ranks) if ranks.isdigit() and int(ranks) else processors, 1)


def limit_threads(count: int | None) -> None:
    """From now on kernels use so many threads, or (None) again all that are available."""
    global _limit
    _limit = count
    for library in _libraries:
        _set_threads(library)


def _register(library: ctypes.CDLL) -> None:
    """Sets the number of threads of a library of kernels, now and whenever it changes."""
    _libraries.append(library)
    _set_threads(library)


def _set_threads(library):
    library.ms_omni_use_threads(_limit or available_threads())
