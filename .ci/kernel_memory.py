"""Runs tests on kernels that were compiled with AddressSanitizer and UBSan: the first access outside an array ends the run.

    python .ci/kernel_memory.py [TESTS]         by default those of the kernels; compiling takes minutes

MindSpore's tensors lie in a pool that no sanitizer can see into, so this file is a pytest plugin too: it has the C++
entries called with numpy arrays of their own (tests/ops/entries.py).
"""

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
TESTS = (
    *("tests/ops/test_refusals.py", "tests/ops/test_cpu_kernels.py::test_kernel", "tests/ops/test_cpu_dense.py"),
    *("tests/ops/test_fused.py::test_code_frame", "tests/ops/test_convolution.py", "tests/modeling/test_code2wav_stable.py"),
    *("tests/ops/test_layers.py", "tests/ops/test_stored.py"),
)
SELECTION = "not graph and not operator_says and not pieces_equal"  # a graph needs MindSpore's own call
OPTIONS = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -g1 -O1"


def main() -> int:
    libraries = [
        subprocess.run(["g++", f"-print-file-name={name}.so"], capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan", "libubsan", "libstdc++")
    ]
    environment = {
        "CXX": f"g++ {OPTIONS}",
        "LD_PRELOAD": " ".join(libraries),
        # of MindSpore and Python, not of the kernels
        "ASAN_OPTIONS": "detect_leaks=0:alloc_dealloc_mismatch=0:new_delete_type_mismatch=0:detect_odr_violation=0",
        "PYTHONPATH": os.pathsep.join(map(str, (HERE.parent, HERE))),
    }
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "kernel_memory",
        *(sys.argv[1:] or (*TESTS, "-k", SELECTION)),
    ]
    return subprocess.run(command, cwd=HERE.parent, env={**os.environ, **environment}).returncode


def pytest_configure():
    from mindspore import ops

    from tests.ops import entries

    ops.Custom = entries.Custom


if __name__ == "__main__":
    sys.exit(main())
