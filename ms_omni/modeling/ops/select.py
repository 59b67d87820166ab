"""Which implementation of the operators this process uses, and why."""

import importlib
import os
import warnings

import mindspore as ms

IMPLEMENTATIONS = ("ascend", "ascend-emulated", "cpu", "reference")


def choose():
    """Returns the module whose functions are used, and the reason in words. Raises `ValueError` for an unknown name."""
    name = os.environ.get("MS_OMNI_OPS")
    if name is not None and name not in IMPLEMENTATIONS:
        raise ValueError(f"MS_OMNI_OPS={name!r} is not an implementation; choose one of {sorted(IMPLEMENTATIONS)}")
    device = ms.get_context("device_target")
    reason = f"the device is {device}" if name is None else f"MS_OMNI_OPS={name}"
    if name is None:
        name = {"CPU": "cpu", "Ascend": "ascend"}.get(device, "reference")
    if name == "ascend-emulated":
        _module("emulation").install()
        name, reason = "ascend", f"{reason}, numpy stands in for its kernels"
    try:
        return _module(name), reason
    except OSError as error:
        warnings.warn(f"the slower reference operators are used: {error}", stacklevel=2)
        return _module("reference"), str(error)


def settle(module, dtype):
    """Lets an implementation that checks itself do so for a dtype (see `ops.settle`)."""
    if hasattr(module, "settle"):
        module.settle(dtype)


def rows(operators, module, reason):
    """`[(operator, implementation, reason), ...]` of a chosen module."""
    outcomes = getattr(module, "OUTCOMES", {})
    return [_row(name, getattr(module, name, None), module, outcomes.get(name, reason)) for name in operators]


def _row(name, function, module, reason):
    short = module.__name__.rpartition(".")[2]
    if function is None:
        return name, "cells", f"{short} has none: the cells run it operator by operator"
    own = function.__module__.rpartition(".")[2].startswith(short)  # its own file or one that belongs to it
    if not own and name not in getattr(module, "OUTCOMES", {}):
        reason = f"{short} has none of its own"
    return name, short if own else function.__module__.rpartition(".")[2], reason


def _module(name):
    return importlib.import_module(f"{__package__}.{name}")
