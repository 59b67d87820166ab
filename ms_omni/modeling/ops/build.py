"""Compiles this folder's C++ files on first use and keeps the libraries in the user's cache directory."""

import hashlib
import os
import subprocess
import tempfile

FOLDER = os.path.dirname(os.path.abspath(__file__))
# Sums may be reordered, which is what lets them be vectorised; infinities and NaN keep their meaning.
FLAGS = (
    "-std=c++17",
    "-O3",
    "-march=native",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-signed-zeros",
    "-fassociative-math",
    "-fPIC",
    "-shared",
    "-pthread",
)
PROCESSOR_KEYS = ("model name", "flags", "CPU part", "Features")
COMPILE_LIMIT_S = 300


def library(name):
    """Path of the library compiled from `<name>.cpp`. Raises `OSError` with one line that says why there is none."""
    compiler = os.environ.get("CXX", "g++")
    version = _run([compiler, "-dumpfullversion", "-dumpversion"]).strip()
    settings = repr((compiler, version, FLAGS, _processor())).encode()
    key = hashlib.sha256(_text(name) + settings).hexdigest()[:16]
    folder = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "ms_omni")
    path = os.path.join(folder, f"{name}-{key}.so")
    if not os.path.exists(path):
        os.makedirs(folder, exist_ok=True)
        _compile(compiler, source(name), path)
    return path


def source(name):
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


def _compile(compiler, file, path):
    # Under a name of its own first: another process must never load half a library.
    handle, temporary = tempfile.mkstemp(suffix=".so", dir=os.path.dirname(path))
    os.close(handle)
    try:
        _run([compiler, *FLAGS, file, "-o", temporary])
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


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
