"""The kernels as ARM processors would run them: cross-built, and called under qemu-user.

These are a look at what no other test sees; `.ci/kernels.py` runs the tests of the kernels themselves on such builds.
"""

import ctypes

import numpy as np
import pytest

from ms_omni.modeling.ops import build
from tests.ops import emulated

if emulated.missing():
    pytest.skip(f"no kernels for aarch64: {emulated.missing()}", allow_module_level=True)


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """`turn.cpp`, the quickest to compile, for processors with SVE."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ctypes, "CDLL", emulated.CDLL)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("CXX", "aarch64-linux-gnu-g++")
        patch.setenv("MS_OMNI_MARCH", "armv8.2-a+sve")
        yield ctypes.CDLL(build.library("turn"))


@pytest.mark.parametrize("rows, columns", [(1, 1), (4, 4), (13, 37), (66, 9)])
def test_every_bfloat16_is_widened_and_transposed(library, rows, columns):
    x = np.arange(rows * columns, dtype=np.uint16).reshape(rows, columns) * 97
    y = np.full((columns, rows + 3), 5, np.float32)
    library.ms_omni_turn_bfloat16(x.ctypes.data, columns, y.ctypes.data, rows + 3, rows, columns)
    assert np.array_equal(y[:, :rows].view(np.uint32), x.T.astype(np.uint32) << 16)
    assert (y[:, rows:] == 5).all()


def test_a_processor_without_what_was_asked_for_is_told_so(library, monkeypatch):
    monkeypatch.setenv("MS_OMNI_EMULATOR", "qemu-aarch64-static -cpu cortex-a57")
    missing = emulated.Library(library._name).ms_omni_missing
    missing.restype = ctypes.c_char_p
    assert missing() == b"atomics of ARMv8.1"
