"""Which implementation computes the operators in this process, and why: the one chosen, or `Reference` for a gradient."""

import functools
import importlib
import inspect
import os
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import mindspore as ms
from mindspore.common.api import _pynative_executor
from mindspore.ops.composite import base

from ...locking import exclusive
from .reference import Reference

IMPLEMENTATIONS = ("ascend", "ascend-emulated", "cpu", "reference")
EMULATION = "tests.ascend_emulation"
OPERATORS: dict[str, Callable[..., Any]] = {}
"""Every operator of the interface, in the order of their declaration."""
BOOST = "MS_OMNI_BOOST"
"""Decode layers in kernels that come with MindSpore (infer_boost), two launches fewer each."""
DISABLED_KERNELS = "MS_DISABLE_INTERNAL_KERNELS_LIST"
"""Names of MindSpore's own kernels that it must not use; it reads this when it chooses the first kernel."""
Interface = TypeVar("Interface", bound=Callable[..., Any])


def operator(interface: Interface) -> Interface:
    """Declares an operator: a call of it is a call of the method of that name of the implementation in use.

    While MindSpore records a pass for its gradient the method is that of `Reference`, since kernels may have none. A graph
    is compiled from the method itself, as MindSpore's parser reads the source of `__wrapped__`.
    """
    name = interface.__name__
    with_gradient = getattr(Reference, name, None)

    @functools.wraps(interface)
    def dispatched(*args: Any, **kwargs: Any) -> Any:
        function = None
        if recording():
            Recorded.calls += 1
            function = with_gradient
        return (function or call.__wrapped__)(*args, **kwargs)

    call: Any = dispatched
    call.__signature__ = inspect.signature(interface)
    call.__wrapped__ = getattr(_implementation, name, None)
    OPERATORS[name] = call
    return call


def choose() -> tuple[type[Reference], str]:
    """The implementation to use, and the reason in words. Raises `ValueError` for an unknown name in `MS_OMNI_OPS`, or an unknown value of
    `MS_OMNI_BOOST`.
    """
    prepare_boost()
    name = os.environ.get("MS_OMNI_OPS")
    if name is not None and name not in IMPLEMENTATIONS:
        raise ValueError(f"MS_OMNI_OPS={name!r} is not an implementation; choose one of {sorted(IMPLEMENTATIONS)}")
    device = ms.get_context("device_target")
    reason = f"the device is {device}" if name is None else f"MS_OMNI_OPS={name}"
    if name is None:
        name = {"CPU": "cpu", "Ascend": "ascend"}.get(device, "reference")
    if name == "ascend-emulated":
        _emulate()
        name, reason = "ascend", f"{reason}, numpy stands in for its kernels"
    try:
        return getattr(_module(name), name.capitalize()), reason
    except OSError as error:
        warnings.warn(f"the slower reference operators are used: {error}", stacklevel=2)
        return Reference, str(error)


def _module(name):
    return importlib.import_module(f"{__package__}.{name}")


def _emulate():
    """Numpy behind the primitives that `ascend` uses, for the rest of the process."""
    _module("ascend")
    try:
        emulation = importlib.import_module(EMULATION)
    except ModuleNotFoundError as error:
        if not EMULATION.startswith(str(error.name)):
            raise
        raise ValueError(
            "MS_OMNI_OPS=ascend-emulated needs the kernels in numpy, which are in a clone of the repository and not in the "
            "wheel; start Python in the clone's folder or name another implementation"
        ) from error
    emulation.install()


def boost_wanted() -> bool:
    """Whether the switch is on. Raises `ValueError` for a value that it does not have."""
    value = os.environ.get(BOOST, "")
    if value not in ("", "0", "1"):
        raise ValueError(
            f"{BOOST}={value!r} is neither 1 (boosted decode layers, on Ascend) nor 0; set one of them or unset it"
        )
    return value == "1"


def prepare_boost() -> None:
    """Where the switch is on: disables MindSpore's own SwiGLU, which raises without an attribute that only its fusions set. Kernels that
    the user has listed stay disabled.
    """
    names = [name for name in os.environ.get(DISABLED_KERNELS, "").split(",") if name]
    if boost_wanted() and "Swiglu" not in names:
        os.environ[DISABLED_KERNELS] = ",".join([*names, "Swiglu"])


_implementation, _reason = choose()


def implementation() -> type[Reference]:
    """The class whose methods the operators are."""
    return _implementation


def use(chosen: type[Reference]) -> None:
    """Makes the methods of another class the operators. A graph that is already compiled does not change."""
    global _implementation
    _implementation = chosen
    for name, call in OPERATORS.items():
        call.__wrapped__ = getattr(chosen, name, None)


def settle(dtype: ms.Type) -> None:
    """Lets an implementation compare itself with `Reference`, before the first model of a dtype is built.

    This may replace operators, so no graph may have been compiled with them before.
    """
    settled = _implementation.settled(dtype)
    if settled is not _implementation:
        use(settled)


def describe() -> list[tuple[str, str, str]]:
    """Returns `[(operator, implementation, reason), ...]`: what each operator resolves to, and why."""
    return [_row(name, _implementation, _reason) for name in OPERATORS]


def _row(name, chosen, reason):
    own, origin = chosen.__name__.lower(), owner(chosen, name)
    if origin is None:
        return name, "cells", f"{own} has none: the cells run it operator by operator"
    if origin is Reference and chosen is not Reference:
        reason = f"{own} has none of its own"
    return name, origin.__name__.lower(), chosen.OUTCOMES.get(name, reason)


def owner(chosen: type[Reference], name: str) -> type[Reference] | None:
    """The class that an operator of an implementation comes from: the first in the line of descent with this function."""
    function = _function(chosen, name)
    line = reversed(chosen.__mro__)
    return None if function is None else next(cls for cls in line if _function(cls, name) is function)


def _function(cls, name):
    method = inspect.getattr_static(cls, name, None)
    return getattr(method, "__func__", method)


# ---- recording for a gradient ----------------------------------------------------------------------------------------
#
# MindSpore has one record for all threads, so one thread at a time takes a gradient, and no other computes meanwhile.


class Recorded:
    """calls: number of operators recorded for a gradient, after which weights may have changed in place."""

    calls = 0


def recording() -> bool:
    """Whether MindSpore records what is computed, to take its gradient."""
    return _pynative_executor.requires_grad()


def stop_recording() -> None:
    """After an error: MindSpore does not stop recording when a recorded pass fails, and would record all that follows."""
    if recording():
        _pynative_executor.clear_res()


def _guard(operation):
    """Makes `mindspore.grad`, `value_and_grad` and whatever else uses `operation` take the lock."""
    plain = operation.__call__

    @functools.wraps(plain)
    def call(self, *args, **kwargs):
        return exclusive(plain(self, *args, **kwargs))

    operation.__call__ = call


_guard(base._Grad)
_guard(base.GradOperation)
