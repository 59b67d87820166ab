"""Every form of every operator on every case that the check on a device tries, operator by operator and as a graph."""

from collections.abc import Callable, Iterator
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn

from ms_omni.modeling.ops.ascend import Ascend
from ms_omni.modeling.ops.ascend_cases import CASES, Buffer

from .kernel_log import KernelLog, Launches


def every_form() -> Iterator[tuple[str, str, Callable[..., Any]]]:
    """(label, operator, function)."""
    for operator in CASES:
        others = {form.__name__: form for form in Ascend.OTHER_FORMS.get(operator, ())}
        yield operator, operator, getattr(Ascend, operator)
        for name, form in others.items():
            yield f"{operator}.{name}", operator, form


def run_form(log: KernelLog, operator: str, form: Callable[..., Any], graph: bool) -> Launches:
    """The kernels of all cases of an operator, in bfloat16; graph: as compiled graphs."""
    launches = Launches.none()
    for case in CASES[operator](np.random.default_rng(5)):
        arguments = [_given(value) for value in case]
        call = _as_graph(form, arguments) if graph else form
        inputs = [value for value in arguments if _varies(value)] if graph else arguments
        log.skip()
        call(*inputs)
        launches += log.built() if graph else log.launched()
    return launches


def _given(value: Any) -> Any:
    """As `ascend_cases` says: float32 arrays in bfloat16, float64 arrays in float32, a `Buffer` as a Parameter."""
    if isinstance(value, tuple):
        return tuple(map(_given, value))
    if isinstance(value, Buffer):
        return Parameter(_given(value.array), name="buffer")
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype == np.float64:
        return Tensor(value.astype(np.float32))
    return Tensor(value).astype(ms.bfloat16) if value.dtype == np.float32 else Tensor(value)


def _varies(value: Any) -> bool:
    """Whether an argument is an input of a graph: a tensor, or several; all else is a part of the graph."""
    first = value[0] if isinstance(value, tuple) else value
    return isinstance(first, Tensor) and not isinstance(first, Parameter)


def _as_graph(form: Callable[..., Any], arguments: list[Any]) -> Callable[..., Any]:
    varies = tuple(map(_varies, arguments))

    class Graph(nn.Cell):
        def __init__(self):
            super().__init__()
            for place, value in enumerate(arguments):
                if not varies[place]:
                    setattr(self, f"given{place}", value)

        def construct(self, *inputs):
            given, used = (), 0
            for place, is_input in enumerate(varies):
                if is_input:
                    given = (*given, inputs[used])
                    used = used + 1
                else:
                    given = (*given, getattr(self, f"given{place}"))
            return form(*given)

    compiled = ms.jit(Graph(), jit_level="O0")
    return lambda *inputs: compiled(*(ms.mutable(value) if isinstance(value, tuple) else value for value in inputs))
