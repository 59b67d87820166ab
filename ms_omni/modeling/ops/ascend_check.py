"""Compares forms of operators with their formulas on the device, called by themselves and as part of a graph.

`python -c "from ms_omni.modeling.ops.ascend_check import main; main()"` does it as a process of its own, which a fault of the
device may end: `ascend_settle.py` starts it, reads its results, and continues after the form that ended it.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn

from ...quantised import Quantised
from . import formulas
from .ascend_cases import KINDS, Buffer, Kind
from .ascend_step_cases import STEP_FORMS
from .reference import Reference

TOLERANCE = {ms.float32: 2e-3, ms.float16: 1e-2, ms.bfloat16: 2e-2}
"""Largest difference relative to the largest expected value. Rounding stays below; a wrong meaning (mask polarity, order
of experts, pairing of channels, ...) is off by the size of the numbers. float32 may be rounded to HF32 on Ascend."""
EAGER, GRAPH = "called", "compiled"
Result = float | str
"""Of a comparison: the largest difference, or a line about what was raised."""


class Row(NamedTuple):
    """One comparison: a form (its number among the operator's) on all cases of a kind, called or compiled."""

    operator: str
    kind: str
    form: int
    mode: str


def forms(implementation: type[Reference], operator: str) -> tuple[Callable, ...]:
    """The ways in which an implementation can compute an operator, the preferred one first, `Reference`'s last; of a step see `STEP_FORMS`."""
    if operator in STEP_FORMS:
        return STEP_FORMS[operator]
    others = implementation.OTHER_FORMS.get(operator, ())
    return tuple(dict.fromkeys((getattr(implementation, operator), *others, getattr(Reference, operator))))


def rows_of(operator: str, kind: Kind, form: int, full: bool) -> tuple[list[Row], list[Row]]:
    """All comparisons of a form on a kind, and those of them that must be right for it to be used. full: see `examine`."""
    if operator in STEP_FORMS and form:
        return [], []
    called, compiled = (Row(operator, kind.name, form, mode) for mode in (EAGER, GRAPH))
    if not full:
        return [called], [called]
    if not kind.called:
        return [compiled], [compiled]
    return [called, compiled], [called, compiled] if kind.compiled else [called]


def is_right(result: Result | None, dtype: ms.Type) -> bool:
    """Whether a result is a difference that rounding explains."""
    return isinstance(result, float) and 0 <= result <= TOLERANCE[dtype]


def examine(
    implementation: type[Reference], dtype: ms.Type, full: bool, known: dict[Row, Result]
) -> Iterator[tuple[Row, Result | None]]:
    """Yields (row, None) before a comparison and (row, its result) after it.

    Known results are not computed again, and after a form that is right for a kind no other is compared. full: at the published sizes
    and as part of graphs too, which takes minutes.
    """
    known = dict(known)
    on_card = ms.get_context("device_target") == "Ascend"
    for operator, kinds in {**KINDS, **implementation.steps(dtype)}.items():
        for kind in kinds if full or not on_card else (kind for kind in kinds if kind.called):
            cases: list[Any] = []
            for number, form in enumerate(forms(implementation, operator)):
                rows, needed = rows_of(operator, kind, number, full)
                for row in (row for row in rows if row not in known):
                    yield row, None
                    cases = cases or prepared(operator, kind, dtype, full)
                    known[row] = compare(form, cases, dtype, row.mode)
                    yield row, known[row]
                if all(is_right(known[row], dtype) for row in needed):
                    break


def prepared(operator: str, kind: Kind, dtype: ms.Type, published: bool) -> list[tuple[tuple, list[np.ndarray]]]:
    """`[(arguments, expected arrays), ...]`; the formula gets the arguments as they are rounded for the operator."""
    examples = []
    for case in kind.cases(np.random.default_rng(5), published):
        expected = getattr(formulas, operator)(*(_array(tensor(value, dtype)) for value in case))
        examples.append((case, [np.asarray(part) for part in (expected if isinstance(expected, tuple) else (expected,))]))
    return examples


def compare(form: Callable, cases: list[tuple[tuple, list[np.ndarray]]], dtype: ms.Type, mode: str) -> Result:
    """The largest difference over all cases, relative to the scale of what is expected; infinite for NaN."""
    worst = 0.0
    try:
        for case, expected in cases:
            inputs = [tensor(value, dtype) for value in case]
            actual = (form if mode == EAGER else getattr(form, "compiled", None) or compiled(form))(*inputs)
            parts = actual if isinstance(actual, tuple) else (actual,)
            worst = max([worst, *(_difference(_array(part), wanted) for part, wanted in zip(parts, expected, strict=True))])
            for buffer in (value for value in inputs if isinstance(value, Parameter)):
                worst = max(worst, _difference(_array(buffer), expected[0]))  # the operator writes in place
    except Exception as error:  # CANN and MindSpore report what they do not support as almost anything
        return in_short(error)
    return worst


def compiled(form: Callable) -> Callable:
    """A form as all of a graph; a buffer belongs to the cell, as the model's do."""

    class Graph(nn.Cell):
        def __init__(self, buffer):
            super().__init__(auto_prefix=False)
            self.buffer = buffer

        @ms.jit
        def construct(self, *args):
            return form(*args) if self.buffer is None else form(self.buffer, *args)

    def call(*args):
        writes = isinstance(args[0], Parameter)
        return Graph(args[0] if writes else None)(*args[writes:])

    return call


def tensor(value: Any, dtype: ms.Type) -> Any:
    """float32 arrays in the dtype under test, float64 arrays in float32 whatever the dtype, all else as it is."""
    if isinstance(value, tuple):
        return _like(value, [tensor(item, dtype) for item in value])
    if isinstance(value, Buffer):
        return Parameter(tensor(value.array, dtype))
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype == np.float64:
        return Tensor(value.astype(np.float32))
    return Tensor(value).astype(dtype) if value.dtype == np.float32 else Tensor(value)


def _like(several, items):
    return Quantised(*items) if isinstance(several, Quantised) else tuple(items)


def _array(value):
    if isinstance(value, tuple):
        return _like(value, map(_array, value))
    if not isinstance(value, Tensor):
        return value
    return (value.astype(ms.float32) if value.dtype in TOLERANCE else value).asnumpy()


def _difference(actual, expected):
    if actual.shape != expected.shape:
        raise ValueError(f"result of shape {actual.shape}, expected {expected.shape}")
    if not np.isfinite(actual).all():
        return float("inf")
    gap = np.abs(actual - expected.astype(np.float64)).max(initial=0.0)
    return float(gap / max(np.abs(expected).max(initial=0.0), 1e-6))


def in_short(error: BaseException) -> str:
    """Its type and first line."""
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0][:300]}"


def main() -> None:
    """Compares as the arguments say (JSON: dtype, full, known) and prints a line of JSON before and after each row.

    An error may leave the device unable to compute; then this process ends, so that the other forms are not counted as wrong.
    """
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print to stdout too
    request = json.load(sys.stdin)
    from .dispatch import implementation

    known = {Row(*row): result for row, result in request["known"]}
    for row, result in examine(implementation(), getattr(ms, request["dtype"]), request["full"], known):
        print(json.dumps([row, result]), file=answer, flush=True)
        if isinstance(result, str) and not _computes():
            os._exit(1)
    print(json.dumps("done"), file=answer, flush=True)
    os._exit(0)  # a library that crashes while it is unloaded does not change the results


def _computes():
    try:
        return (Tensor(np.ones(4, np.float32)) + 1).asnumpy().tolist() == [2.0] * 4
    except Exception:
        return False
