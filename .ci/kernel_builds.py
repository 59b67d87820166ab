"""The builds of the C++ kernels that can be made here: compilers times widths of vectors, for this processor and for aarch64."""

import importlib
import os
import sys
import types
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.ops import emulated  # noqa: E402

COMPILERS = ("g++", "clang++")
WIDTHS = ("x86-64-v2", "x86-64-v3", "x86-64-v4", "native")
CROSS = ("aarch64-linux-gnu-g++", "clang++ --target=aarch64-linux-gnu")  # run under qemu-user: see tests/ops/emulated.py
CROSS_WIDTHS = ("armv8-a", "armv8.4-a+sve")
FILES = ("dense", "attention", "wave", "fused", "layers", "kernels")


def part(name: str) -> types.ModuleType:
    """A module of `ms_omni.modeling.ops` without the package itself: that imports MindSpore."""
    package = "ops_alone"
    sys.modules.setdefault(package, types.ModuleType(package)).__path__ = [str(ROOT / "ms_omni" / "modeling" / "ops")]
    return importlib.import_module(f"{package}.{name}")


class Build(NamedTuple):
    """One compiler and width for the kernels."""

    compiler: str
    width: str

    @property
    def name(self) -> str:
        return f"{self.compiler} {self.width}"

    @property
    def emulated(self) -> bool:
        return self.compiler in CROSS

    @property
    def environment(self) -> dict[str, str]:
        return {"CXX": self.compiler, "MS_OMNI_MARCH": self.width}

    def library(self, file: str) -> str:
        """Path of one of its libraries, compiled if need be. Raises `OSError` as `build.py` does."""
        if self.emulated:
            emulated.install()
        module = part("build")
        before = dict(os.environ)
        os.environ.update(self.environment)
        try:
            return module.library(file)
        finally:
            os.environ.clear()
            os.environ.update(before)


def builds_here(compilers=COMPILERS, widths=WIDTHS) -> list[Build]:
    """Those that can be compiled and run on this machine; says in one line each what is left out, and why."""
    found = []
    for build in (Build(compiler, width) for width in widths for compiler in compilers):
        if build.emulated != (build.width in CROSS_WIDTHS):
            continue
        try:
            build.library("turn")  # the quickest
            found.append(build)
        except OSError as error:
            print(f"left out: {build.name}: {error}", flush=True)
    return found
