"""Which implementation of the operators this process uses, and why."""

import importlib
import os
import warnings

import mindspore as ms

IMPLEMENTATIONS = ("cpu", "reference")


def choose():
    """Returns the module whose functions are used, and the reason in words. Raises `ValueError` for an unknown name."""
    name = os.environ.get("MS_OMNI_OPS")
    if name is not None and name not in IMPLEMENTATIONS:
        raise ValueError(f"MS_OMNI_OPS={name!r} is not an implementation; choose one of {sorted(IMPLEMENTATIONS)}")
    device = ms.get_context("device_target")
    if name is None and device != "CPU":
        return _module("reference"), f"the device is {device}"
    if name == "reference":
        return _module("reference"), "MS_OMNI_OPS=reference"
    try:
        return _module("cpu"), "the device is CPU" if name is None else "MS_OMNI_OPS=cpu"
    except OSError as error:
        warnings.warn(f"the slower reference operators are used: {error}", stacklevel=2)
        return _module("reference"), str(error)


def rows(operators, module, reason):
    """`[(operator, implementation, reason), ...]` of a chosen module."""
    return [_row(name, getattr(module, name), module, reason) for name in operators]


def _row(name, function, module, reason):
    home = function.__module__
    implementation = home.rpartition(".")[2]
    if home != module.__name__:
        reason = f"{module.__name__.rpartition('.')[2]} has none of its own"
    return name, implementation, reason


def _module(name):
    return importlib.import_module(f"{__package__}.{name}")
