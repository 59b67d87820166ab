"""Which operators are used and why, and whether each computes what it should."""

import os
import warnings

from ..errors import DeviceError
from .finding import error, note, ok, one_line, warning

STORAGES = ("float32", "bfloat16", "int8", "int4")


def table_and_numbers(_):
    """Findings on the choice of operators and on their numbers in the precision that this device computes in."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            from ..modeling import ops
        except ValueError as reason:  # MS_OMNI_OPS or MS_OMNI_BOOST
            yield error(one_line(reason), f"unset {str(reason).partition('=')[0]}, or set it to what is listed there")
            return
        from ..runtime import setup

        runtime = setup()
        try:
            ops.settle(runtime.dtype)
        except DeviceError as reason:
            yield error(one_line(reason, 1000), _advice(runtime.device))
            return
    yield from _choice(ops, runtime, [one_line(item.message, 1000) for item in said])
    yield from _numbers(ops, runtime)


def _choice(ops, runtime, said):
    from ..modeling.ops import ascend_boost

    yield ok(f"{runtime.device}, {str(runtime.dtype).lower()}: {runtime.reason}")
    if ops.vectors():
        yield note(f"kernels for {ops.vectors()}; matrices may lie in {', '.join(STORAGES)}, and are widened in registers")
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
            yield warning(line, "it runs in another form, more slowly; report the line if versions match the table")
    if os.environ.get("MS_OMNI_OPS"):
        yield note(f"MS_OMNI_OPS={os.environ['MS_OMNI_OPS']} forces the choice")
    if ascend_boost.wanted():
        known = ops.implementation().steps(runtime.dtype)
        if not known:
            yield note("MS_OMNI_BOOST=1 has no effect: these operators are not those of Ascend")
        elif "boosted_step" in known:
            yield note(
                "MS_OMNI_BOOST=1: decode layers have kernels that come with MindSpore, which were compared on this device"
            )


def _numbers(ops, runtime):
    """Every operator as it was chosen against its formula in numpy, on small inputs."""
    from ..modeling.ops.ascend_check import examine, is_right

    found = examine(ops.implementation(), runtime.dtype, False, {})
    rows = {row: result for row, result in found if row.form == 0 and result is not None}
    wrong = {row: result for row, result in rows.items() if not is_right(result, runtime.dtype)}
    for row, result in wrong.items():
        text = (
            f"fails: {one_line(result, 150)}" if isinstance(result, str) else f"is off by {result:.2g} of its largest value"
        )
        yield error(f"an operator computes wrongly: {row.operator} ({row.kind}) {text}", _advice(runtime.device))
    if not wrong:
        names = {row.operator for row in rows}
        yield ok(f"{len(names)} operators compute what numpy does, in {str(runtime.dtype).lower()}")


def _advice(device):
    if device == "CPU":
        return "try MS_OMNI_OPS=reference; if that computes rightly, remove ~/.cache/ms_omni, else reinstall mindspore"
    return "try MS_OMNI_OPS=reference; if that is wrong too, compare the versions of MindSpore, CANN and driver"
