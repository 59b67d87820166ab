"""Every form of every operator on every case that the check on a device tries, operator by operator and as a graph."""

from collections.abc import Callable, Iterator
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn

from ms_omni.modeling.ops.ascend import Ascend
from ms_omni.modeling.ops.ascend_cases import KINDS
from ms_omni.modeling.ops.ascend_check import tensor
from ms_omni.quantised import Quantised

from .kernel_log import KernelLog, Launches


def every_form() -> Iterator[tuple[str, str, Callable[..., Any]]]:
    """(label, operator, function)."""
    for operator in KINDS:
        yield operator, operator, getattr(Ascend, operator)
        for form in Ascend.OTHER_FORMS.get(operator, ()):
            yield f"{operator}.{form.__name__}", operator, form


def run_form(log: KernelLog, operator: str, form: Callable[..., Any], graph: bool) -> Launches:
    """The kernels of all cases of an operator, in bfloat16; graph: as one compiled graph, without the codes, which the host lays out
    before: graphs have them in whole layers.
    """
    found = [case for kind in KINDS[operator] for case in kind.cases(np.random.default_rng(5), False)]
    if graph:
        found = [case for case in found if not any(isinstance(value, Quantised) for value in case)]
    cases = [tuple(tensor(value, ms.bfloat16) for value in case) for case in found]
    if graph:
        compiled = ms.jit(_AllCases(form, cases), jit_level="O0")
        inputs = ms.mutable(tuple(value for case in cases for value in case if _varies(value)))
        log.skip()
        compiled(inputs)
        return log.built()
    log.skip()
    for case in cases:
        form(*case)
    return log.launched()


def _varies(value: Any) -> bool:
    """Whether an argument is an input of a graph: a tensor, or several; all else is a part of the graph."""
    first = value[0] if isinstance(value, tuple) else value
    return isinstance(first, Tensor) and not isinstance(first, Parameter)


class _AllCases(nn.Cell):
    """Calls a form with every case; what varies is an input, in the order of the cases."""

    def __init__(self, form, cases):
        super().__init__()
        self.form = form
        self.cases = tuple(tuple(_varies(value) for value in case) for case in cases)
        for number, case in enumerate(cases):
            for place, value in enumerate(case):
                if not _varies(value):
                    setattr(self, f"given{number}_{place}", value)

    def construct(self, inputs):
        results, used = (), 0
        for number, case in enumerate(self.cases):
            arguments = ()
            for place, is_input in enumerate(case):
                if is_input:
                    arguments = (*arguments, inputs[used])
                    used = used + 1
                else:
                    arguments = (*arguments, getattr(self, f"given{number}_{place}"))
            results = (*results, self.form(*arguments))
        return results
