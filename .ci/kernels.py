"""Builds the C++ kernels with every compiler and for every width of vectors that are here; tests one compiler's of each width with all
tests, the others' whole layers, and whether they make the same numbers. Builds for SVE have those of NEON to make, which is all that is
tested of them: kernels use vectors of NEON, and qemu-user takes twenty times as long for what compilers make of the rest.

    python .ci/kernels.py [--compilers g++,clang++] [--widths x86-64-v2,native]
    python .ci/kernels.py --widths armv8-a              cross-built, and run under qemu-user (g++-aarch64-linux-gnu, qemu-user-static)

Uses the Python that it runs on, with the project's `[dev]` tools. What is left out, and why, is said in one line each.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from kernel_builds import COMPILERS, CROSS, CROSS_WIDTHS, FILES, ROOT, WIDTHS, Build, builds_here

TESTS = (
    "tests/ops/test_exact.py",
    "tests/ops/test_cpu_dense.py",
    "tests/ops/test_cpu_kernels.py::test_kernel",
    "tests/ops/test_fused.py::test_code_frame",
    "tests/ops/test_stored.py",
    "tests/ops/test_layers.py",
    "tests/ops/test_cpu_stored.py",
    "tests/ops/test_paged_attention.py",
    "tests/ops/test_cache_codes.py",
    "tests/modeling/test_code2wav_stable.py",
)
# With every compiler; what the others test is compared by `tests.ops.outputs`, bit by bit.
ALWAYS = (
    "tests/ops/test_fused.py::test_code_frame",
    "tests/ops/test_stored.py",
    "tests/ops/test_layers.py",
    "tests/ops/test_paged_attention.py",
    "tests/ops/test_cache_codes.py",
)
# Compiled graphs and further splits of whole streams add minutes and no other kernels.
SELECTION = "not (graph or threads or test_pieces_equal_the_whole) or (bare and 7)"
# Under qemu-user whole streams of sound take too long; what only MindSpore's own call does is not seen there.
EMULATED_TESTS = (*TESTS[:-1], "tests/ops/test_convolution.py", "tests/ops/test_refusals.py", "tests/ops/test_tables.py")
EMULATED = f"({SELECTION}) and not (operator_says or ascend)"


def run(build: Build, *command: str, **options) -> subprocess.CompletedProcess:
    environment = {**os.environ, **build.environment, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=environment, text=True, **options)


def compile_all(builds: list[Build]):
    """In as many processes as there are cores: the environment of a process names one build."""
    program = f"from kernel_builds import Build; [Build({{!r}}, {{!r}}).library(file) for file in {FILES}]"

    def compile_one(build):
        command = [sys.executable, "-c", program.format(build.compiler, build.width)]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": os.path.dirname(__file__)})

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, builds))


def test(build: Build, whole: bool) -> bool:
    """whole: all tests, else those that every compiler's kernels go through."""
    start = time.perf_counter()
    chosen = (*(TESTS if whole else ALWAYS), "-k", SELECTION)
    if build.emulated:
        chosen = ("-p", "tests.ops.emulated", *(EMULATED_TESTS if whole else ALWAYS), "-k", EMULATED)
    tests = run(build, "-m", "pytest", "-q", "-x", *chosen, capture_output=True)
    lines = tests.stdout.strip().splitlines() or tests.stderr.strip().splitlines() or ["no output"]
    print(f"{build.name}: {lines[-1]} ({time.perf_counter() - start:.0f} s)", flush=True)
    if tests.returncode:
        print(tests.stdout[-6000:], tests.stderr[-2000:])
    return tests.returncode == 0


def same_numbers(builds: list[Build]) -> bool:
    """Whether the compilers agree about every kernel at each width of vectors, bit by bit."""
    found, agree = {}, True
    for build in builds:
        through = ("-m", "tests.ops.emulated") if build.emulated else ("-m",)
        done = run(build, *through, "tests.ops.outputs", stdout=subprocess.PIPE, check=True)  # why it fails is to be seen
        digests = json.loads(done.stdout.splitlines()[-1])
        other, expected = found.setdefault("NEON" if build.emulated else build.width, (build, digests))
        different = [name for name in expected if digests[name] != expected[name]]
        if different:
            print(f"{build.name} and {other.name} differ in {', '.join(different)}")
            agree = False
    return agree


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compilers", default=",".join(COMPILERS + CROSS))
    parser.add_argument("--widths", default=",".join(WIDTHS + CROSS_WIDTHS))
    options = parser.parse_args()
    builds = builds_here(options.compilers.split(","), options.widths.split(","))
    if not builds:
        return print("no compiler, no kernels: nothing was tested") or 1
    start = time.perf_counter()
    compile_all(builds)
    print(f"{len(builds)} builds of {len(FILES)} files: {time.perf_counter() - start:.0f} s", flush=True)
    first = {build.width: build for build in reversed(builds)}
    outcomes = [test(build, build == first[build.width]) for build in builds if "sve" not in build.width]
    return 0 if all(outcomes) and same_numbers(builds) else 1


if __name__ == "__main__":
    sys.exit(main())
