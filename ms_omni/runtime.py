"""The one place that talks to MindSpore's global state: device, compute dtype, context."""

import contextlib
import gc
import io
import os
import re
import resource
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil

from .errors import InputError, caller_level
from .locking import exclusive, restore_interrupts


@dataclass(frozen=True)
class Runtime:
    """device: "CPU" or "Ascend"; dtype: MindSpore dtype of weights and activations; reason: why that dtype."""

    device: str
    dtype: Any
    reason: str


def require_mindspore() -> ModuleType:
    """Imports MindSpore, or raises `ImportError` with one line that says what to install, or where it cannot run."""
    if sys.platform == "win32":
        raise ImportError(
            "the model does not run on Windows itself; install ms_omni in WSL 2 (the processor and `ms-omni plan` work here)"
        )
    try:
        with uncollected():
            import mindspore
    except Exception as error:  # a broken installation fails with anything from ImportError to OSError
        raise ImportError(
            f"ms_omni needs MindSpore 2.7.1 or newer, and importing it failed: {type(error).__name__}: {error}. "
            "Install it with: pip install mindspore==2.7.1"
        ) from None
    return mindspore


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Around what makes many objects that all stay: collections of garbage would find nothing, and take a sixth of the time of
    MindSpore's import.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


@exclusive
def setup(dtype: Any = None) -> Runtime:
    """Prepares MindSpore for inference and returns the `Runtime`. Safe to call more than once.

    dtype: see `dtype_name`. On CPU, which computes in float32 only, the half types give a warning and float32: the weights
    are the same numbers, and a script that was written for Ascend runs. Raises `InputError` for an unknown dtype.
    """
    ms = require_mindspore()
    device = ms.get_context("device_target")
    if device == "CPU":
        _prepare_cpu(ms)
    _read_first_tensor(ms)
    return Runtime(device, *_resolve_dtype(ms, device, dtype))


CARDS = {"910b": re.compile("910B", re.I), "910c": re.compile("910_93|910C", re.I)}
"""What MindSpore calls the cards of `configs/hardware`."""


def card() -> tuple[str | None, str]:
    """Which file of `configs/hardware` describes this process's device, or None; and what MindSpore calls it. The device itself is
    not asked, so that may be done before anything else is.
    """
    device = require_mindspore().get_context("device_target")
    if device != "Ascend":
        return None, device
    from mindspore._c_expression import MSContext

    name = MSContext.get_instance().get_ascend_soc_version() or "an Ascend without a name"
    return next((known for known, pattern in CARDS.items() if pattern.search(name)), None), name


def choose_device(target: str, number: int | None = None) -> None:
    """The device that this process computes on, before anything else: "CPU" or "Ascend", and the number of the card."""
    require_mindspore().set_device(target, **({} if number is None else {"device_id": number}))


def _read_first_tensor(ms):
    """Beside numpy 2, MindSpore 2.10 fails where it first reads a number, and only there; numpy prints a page about it, and
    a handler of MindSpore's own is left in the place of Python's for SIGINT.
    """
    import numpy  # not above: the supervisors of a job import this module and stay small

    if int(numpy.__version__.split(".")[0]) >= 2:
        with contextlib.suppress(SystemError), contextlib.redirect_stderr(io.StringIO()):
            ms.Tensor([0]).reshape(1)
        restore_interrupts()


def _prepare_cpu(ms):
    # MindSpore's asynchronous dispatch threads fight with the kernels' pool on CPU: synchronous launches are 10x
    # faster there. On Ascend the overlap is what one wants.
    if os.environ.get("MS_OMNI_ASYNC_CPU") != "1":
        ms.runtime.launch_blocking()


DTYPES = {
    "float32": ("float", "fp32", "f32"),
    "bfloat16": ("bf16",),
    "float16": ("half", "fp16", "f16"),
}
"""Names of the dtypes to compute in, and what else they are called."""


def dtype_name(dtype: Any) -> str | None:
    """ "float32", "bfloat16" or "float16", or None for the device's own.

    dtype: a name ("bf16", "torch.bfloat16"), a dtype of MindSpore, PyTorch or numpy, "auto", None, or a dict of one for each
    part of a model that are all the same. Raises `InputError` for another.
    """
    if isinstance(dtype, Mapping):
        names = {dtype_name(value) for value in dtype.values()}
        if len(names) == 1:
            return names.pop()
        raise InputError(f"dtype is {dtype!r}: the parts of a model are computed in one dtype; give one")
    text = dtype.__name__ if isinstance(dtype, type) else str(dtype)
    name = text.rpartition(".")[2].lower()
    if dtype is None or name == "auto":
        return None
    for known, others in DTYPES.items():
        if name == known or name in others:
            return known
    raise InputError(f"dtype {dtype!r} is unknown; use one of {', '.join(DTYPES)} or 'auto'")


def _resolve_dtype(ms, device, dtype):
    name = dtype_name(dtype)
    if name is None:
        if device == "CPU":
            return ms.float32, "MindSpore's CPU kernels compute in float32"
        return ms.bfloat16, "the published weights are bfloat16 and Ascend computes in it"
    if device == "CPU" and name != "float32":
        reason = f"MindSpore has no {name} kernels on CPU; the same weights are computed with in float32"
        warnings.warn(reason, stacklevel=caller_level())
        return ms.float32, reason
    return getattr(ms, name), "as asked for"


GROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
GROUP_USES = ("/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory/memory.usage_in_bytes")


def free_memory_gb() -> tuple[float, str]:
    """(GB that this process may still take, which limit that is)."""
    found = [(available_gb(), "of the machine")]
    for limit, use in zip(GROUP_LIMITS, GROUP_USES):
        allowed, used = _number(limit), _number(use)
        if allowed is not None and used is not None and allowed < 1 << 60:
            found.append(((allowed - used) / 1e9, "limit of the container"))
    for kind, why in ((resource.RLIMIT_AS, "ulimit -v"), (resource.RLIMIT_DATA, "ulimit -d")):
        limit, _ = resource.getrlimit(kind)
        if limit != resource.RLIM_INFINITY:
            found.append((limit / 1e9, why))
    return min(found)


def available_gb() -> float:
    """Of the machine, without swapping."""
    return psutil.virtual_memory().available / 1e9


def processors() -> int:
    """Those that this process may use; macOS says no more than how many there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _number(path):
    try:
        return int(Path(path).read_text(encoding="ascii"))
    except (OSError, ValueError):  # not there, or "max"
        return None
