"""Which operators are used and why, and whether each computes what it should."""

import os
import warnings

import numpy as np

from .finding import error, note, ok, one_line, warning
from .formulas import cases

TOLERANCES = {"float32": 2e-3, "float16": 2e-2, "bfloat16": 6e-2}  # of the largest value; a wrong one is off by far more


def table_and_numbers(_):
    """Findings on the choice of operators and on their numbers in the precision that this device computes in."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            from ..modeling import ops
        except ValueError as reason:  # MS_OMNI_OPS
            yield error(one_line(reason), "unset MS_OMNI_OPS, or set it to a name that is listed there")
            return
        from ..runtime import setup

        runtime = setup()
        ops.settle(runtime.dtype)
    yield from _choice(ops, runtime, [one_line(item.message) for item in said])
    wrong = [line for line in (compare(ops, *case, runtime.dtype) for case in cases()) if line]
    for line in wrong:
        yield error(f"an operator computes wrongly: {line}", _advice(runtime.device))
    if not wrong:
        yield ok(f"{sum(1 for _ in cases())} operators compute what numpy does, in {str(runtime.dtype).lower()}")


def _choice(ops, runtime, said):
    yield ok(f"{runtime.device}, {str(runtime.dtype).lower()}: {runtime.reason}")
    groups = {}
    for name, implementation, reason in ops.describe():
        groups.setdefault((implementation, reason), []).append(name)
    for (implementation, reason), names in groups.items():
        yield note(f"{implementation} ({reason}): {', '.join(names)}")
    slow = [line for line in said if "slower reference operators" in line]
    for line in slow:
        yield warning(line, "install g++ (apt install g++, yum install gcc-c++), or name a compiler in CXX")
    for line in said:
        if line not in slow and "operator" in line:
            yield warning(line, "it runs with the reference operator; report the line if versions match the table")
    if os.environ.get("MS_OMNI_OPS"):
        yield note(f"MS_OMNI_OPS={os.environ['MS_OMNI_OPS']} forces the choice")


def compare(ops, name, arguments, expected, dtype):
    """None when operator `name` gives what is expected, else a line that says how far off it is."""
    try:
        result = getattr(ops, name)(*(_tensor(name, place, value, dtype) for place, value in enumerate(arguments)))
        actual = (result[0] if isinstance(result, tuple) else result).float().asnumpy().astype(np.float64)
    except Exception as reason:
        return f"{name} fails: {type(reason).__name__}: {one_line(reason, 150)}"
    if actual.shape != expected.shape:
        return f"{name} gives the shape {list(actual.shape)}, expected {list(expected.shape)}"
    off = np.abs(actual - expected).max() / np.abs(expected).max()
    limit = TOLERANCES[str(dtype).lower()]
    return None if off <= limit else f"{name} is off by {off:.2g} of its largest value, {limit:g} is allowed"


def _tensor(name, place, value, dtype):
    from mindspore import Tensor

    if not isinstance(value, np.ndarray):
        return value
    tensor = Tensor(value)
    exact = value.dtype != np.float32 or (name, place) in FLOAT32
    return tensor if exact else tensor.astype(dtype)


FLOAT32 = {("rotary", 1), ("rotary", 2), ("attention", 3), ("experts", 3), ("route_topk", 0)}
"""Arguments that are float32 in every precision: (operator, place)."""


def _advice(device):
    if device == "CPU":
        return "try MS_OMNI_OPS=reference; if that computes rightly, remove ~/.cache/ms_omni, else reinstall mindspore"
    return "try MS_OMNI_OPS=reference; if that is wrong too, compare the versions of MindSpore, CANN and driver"
