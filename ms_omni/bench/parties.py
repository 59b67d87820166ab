"""The parties of a benchmark: how each is started."""

import subprocess
import sys
from pathlib import Path

from ..errors import InputError
from .side import ChildSide, HereSide

REFERENCE_SCRIPT = Path(__file__).resolve().parents[2] / "tests" / "reference" / "benchmark.py"
IMPORT_LIMIT_S = 120


def our_party(out, threads):
    """A function that starts this model in a process of its own."""
    command = [sys.executable, "-m", "ms_omni.bench.worker"]
    return lambda: ChildSide("ms_omni", command, out / "ms_omni.log", threads)


def here():
    """A function that makes this process a party: one rank of a job of msrun."""
    from . import worker

    return lambda: HereSide(worker.load, worker.run)


def reference_party(python, out, threads):
    """A function that starts the reference."""
    return lambda: ChildSide("reference", [str(python), str(REFERENCE_SCRIPT)], out / "reference.log", threads)


def other_party(root, out, threads):
    """A function that starts another version of this model: the one in the checkout `root`, by its own code."""
    command = [sys.executable, "-m", "ms_omni.bench.worker"]
    return lambda: ChildSide(root.name, command, out / f"{root.name}.log", threads, root=root)


def check_other(root):
    """The folder of a checkout of this project. Raises `InputError` if it is none."""
    root = root.resolve()
    if not (root / "ms_omni" / "bench" / "worker.py").is_file():
        raise InputError(f"--beside {root}: there is no ms_omni/bench/worker.py; name a checkout of another version")
    if root == Path(__file__).resolve().parents[2]:
        raise InputError(f"--beside {root}: that is the version which runs; name a checkout of another one")
    return root


def check_reference(python):
    """Raises `InputError` unless `python` can run the reference."""
    if python is None:
        raise InputError("--reference needs --reference-python PATH, an interpreter with tests/reference/requirements.txt")
    if not REFERENCE_SCRIPT.is_file():
        raise InputError(f"--reference needs {REFERENCE_SCRIPT}, which comes with a checkout of the repository")
    code = "import torch, importlib.metadata as m; print(m.version('transformers'))"
    try:
        done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, timeout=IMPORT_LIMIT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InputError(f"--reference-python {python} cannot be run: {error}") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(
            f"--reference-python {python} cannot run the reference: {reason}; install tests/reference/requirements.txt there"
        )
