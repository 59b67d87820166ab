"""Compares operators with `Reference` in float32 on the device, and chooses between their forms.

This happens before the first model is built (`ops.settle`), never inside a graph: later on an operator is what it is. All
processes compare the same numbers; should one device fail where another does not, only the operators of that process
change. No operator communicates, so the sequence of collectives is the same either way.
"""

import warnings

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor

from .ascend_cases import CASES, Buffer
from .reference import Reference

TOLERANCE = {ms.float32: 2e-3, ms.float16: 1e-2, ms.bfloat16: 2e-2}
"""Largest difference relative to the largest expected value. Rounding stays below; a wrong meaning (mask polarity, order
of experts, pairing of channels, ...) is off by the size of the numbers. float32 may be rounded to HF32 on Ascend."""


class NoReference(Exception):
    """The reference operator itself fails on this device."""


def settled(implementation, dtype):
    """A subclass that computes each operator by the first of its forms that agrees with `Reference` on this device in dtype;
    the class itself where that has been done.

    What has been replaced by `Reference` for one dtype stays replaced for all, what has been left for another form is not
    tried again.
    """
    if dtype in implementation.SETTLED:
        return implementation
    methods, others, outcomes = {}, {}, {}
    for name in CASES:
        if name in implementation.REPLACED:
            continue
        forms = (getattr(implementation, name), *implementation.OTHER_FORMS.get(name, ()))
        function, outcomes[name] = choose(name, forms, dtype)
        methods[name] = staticmethod(function)
        others[name] = forms[forms.index(function) + 1 :] if function in forms else None
    return type(
        implementation.__name__,
        (implementation,),
        {
            **methods,
            "OTHER_FORMS": others,
            "OUTCOMES": {**implementation.OUTCOMES, **outcomes},
            "REPLACED": implementation.REPLACED | {name for name, left in others.items() if left is None},
            "SETTLED": implementation.SETTLED | {dtype},
        },
    )


def choose(operator, candidates, dtype):
    """The first candidate that agrees with `Reference`, or `Reference`'s with a warning; and why, in one line.

    candidates: functions, the preferred one first; `Reference`'s own may be among them, which then has to compute in
    `dtype` what it computes in float32. Where `Reference` fails itself, the first candidate that runs is all there is.
    """
    complaints, last = [], getattr(Reference, operator)
    for function in candidates:
        label = f"{function.__name__}: " if len(candidates) > 1 else ""
        try:
            gap = largest_difference(operator, function, dtype)
        except NoReference as error:
            return function, "; ".join([*complaints, f"{label}runs, compared with nothing: reference fails with {error}"])
        except Exception as error:  # CANN and MindSpore report what they do not support as almost anything
            complaints.append(f"{label}{_in_short(error)}")
            continue
        if gap <= TOLERANCE[dtype]:
            verdict = f"{label}agrees with reference, largest difference {gap:.1e} in {_name(dtype)}"
            return function, "; ".join([*complaints, verdict])
        complaints.append(f"{label}off by {gap:.2g} of its scale in {_name(dtype)}, allowed {TOLERANCE[dtype]:g}")
    reason = "; ".join(complaints)
    instead = "there is no other form" if last in candidates else "reference is used instead of the fused kernels"
    warnings.warn(f"operator {operator}: {instead} ({reason})", stacklevel=5)
    return last, reason


def largest_difference(operator, function, dtype):
    """Over all cases of the operator, relative to the scale; the reference gets the same rounded inputs in float32."""
    worst = 0.0
    for case in CASES[operator](np.random.default_rng(5)):
        inputs = [_tensor(value, dtype) for value in case]
        exact = [_widened(value) for value in inputs]
        actual = _arrays(function(*inputs))
        try:
            expected = _arrays(getattr(Reference, operator)(*exact))
        except Exception as error:
            raise NoReference(_in_short(error)) from error
        worst = max([worst, *map(_difference, actual, expected)])
    return worst


def _tensor(value, dtype):
    """float32 arrays in the dtype under test, float64 arrays in float32 whatever the dtype, all else as it is."""
    if isinstance(value, tuple):
        return tuple(_tensor(item, dtype) for item in value)
    if isinstance(value, Buffer):
        return Parameter(_tensor(value.array, dtype))
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype == np.float64:
        return Tensor(value.astype(np.float32))
    return Tensor(value).astype(dtype) if value.dtype == np.float32 else Tensor(value)


def _widened(value):
    if isinstance(value, tuple):
        return tuple(_widened(item) for item in value)
    if isinstance(value, Parameter):
        return Parameter(value.astype(ms.float32).copy())
    return value.astype(ms.float32) if isinstance(value, Tensor) and value.dtype in TOLERANCE else value


def _arrays(result):
    results = result if isinstance(result, tuple) else (result,)
    return [_widened(item).asnumpy() for item in results]


def _difference(actual, expected):
    if actual.shape != expected.shape:
        raise ValueError(f"result of shape {actual.shape}, expected {expected.shape}")
    if not np.isfinite(actual).all():
        return float("inf")
    gap = np.abs(actual.astype(np.float64) - expected).max(initial=0.0)
    return float(gap / max(np.abs(expected).max(initial=0.0), 1e-6))


def _in_short(error):
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"


def _name(dtype):
    return str(dtype).lower()
