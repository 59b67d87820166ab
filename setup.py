"""What pyproject.toml cannot say: folders that become packages under another name, and kernels compiled ahead.

    MS_OMNI_PREBUILT="x86-64-v3 x86-64-v4" pip wheel --no-deps .          a wheel for one kind of machine, that needs no compiler
    CXX=aarch64-linux-gnu-g++ MS_OMNI_PREBUILT=armv8-a pip wheel --no-deps .

Without the variable the wheel is for every machine, and kernels are compiled where they are used first.
"""

import importlib
import os
import shutil
import sys
import types
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

OPS = "ms_omni/modeling/ops"
PREBUILT = os.environ.get("MS_OMNI_PREBUILT", "").split()


class BuildWithKernels(build_py):
    """Compiles the kernels of MS_OMNI_PREBUILT beside the modules."""

    def run(self):
        super().run()
        if self.editable_mode:  # which would leave libraries in the source tree
            return
        # The module without its package, which imports MindSpore.
        sys.modules.setdefault("ops", types.ModuleType("ops")).__path__ = [str(Path(__file__).parent / OPS)]
        shutil.rmtree(os.path.join(self.build_lib, OPS, "prebuilt"), ignore_errors=True)  # an earlier build's
        for name in PREBUILT:
            self.announce(f"compiling kernels for {name}", level=2)
            importlib.import_module("ops.build").prebuild(os.path.join(self.build_lib, OPS), name)


class TaggedWheel(bdist_wheel):
    """Is named for the machine where kernels are in it."""

    def finalize_options(self):
        self.distribution.has_ext_modules = lambda: bool(PREBUILT)
        super().finalize_options()

    def get_tag(self):
        if not PREBUILT:
            return super().get_tag()
        machine = "x86_64" if PREBUILT[0].startswith("x86-64") else "aarch64"
        return "py3", "none", f"linux_{machine}"


setup(
    packages=[*find_packages(include=["ms_omni", "ms_omni.*"]), "ms_omni._configs", "ms_omni._miniature"],
    package_dir={"ms_omni._configs": "configs", "ms_omni._miniature": "examples/miniature"},
    cmdclass={"build_py": BuildWithKernels, "bdist_wheel": TaggedWheel},
)
