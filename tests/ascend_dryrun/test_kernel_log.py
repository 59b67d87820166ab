"""Lines as MindSpore 2.7.1 and 2.10 write them."""

from collections import Counter

import pytest

from .kernel_log import KernelLog, Launches

OF_2_7 = "[DEBUG] PYNATIVE(7,7f01,python):2026 [mindspore/ccsrc/pyboost/functions/auto_generate/functions.cc:1] {0}] {1} {0} function"
OF_2_10 = "[DEBUG] PYNATIVE(7,7f01,python):2026 [mindspore/ccsrc/pynative/utils/pyboost/functions/auto_generate/functions.cc:1] {0}] {1} {0} function"
RUN = "[DEBUG] PYNATIVE(7,7f02,python):2026 [mindspore/ccsrc/pynative/forward/op_graph/forward.cc:597] RunOpFrontend] RunOp name: {}"
BUILT = (
    "[INFO] DEVICE(7,7f02,python):2026 [mindspore/ccsrc/plugin/ascend/kernel_executor/ascend_kernel_executor.cc:205] "
    "GenerateKernelMod] kernel opname:{}, kernel type:{}"
)


@pytest.fixture
def log(monkeypatch):
    """A log that is given its text."""
    log = KernelLog.__new__(KernelLog)
    log.kinds = {}
    monkeypatch.setattr(log, "_text", lambda: log.text, raising=False)
    return log


def calls(line, *functions):
    """A function's line, those of what it calls, and its end."""
    inner = [text for function in functions[1:] for text in calls(line, function)]
    return [line.format(functions[0], "In"), *inner, line.format(functions[0], "Out")]


@pytest.mark.parametrize("line", [OF_2_7, OF_2_10])
def test_functions_that_launch(log, line):
    log.text = "\n".join(
        [
            *calls(line, "dense", "transpose", "contiguous"),  # what a kernel's function calls is a part of it
            *calls(line, "to_dtype", "cast"),  # what a view's function calls is not
            *calls(line, "reshape"),
            *calls(line, "slice_ext_view"),
            *calls(line, "dense"),
        ]
    )
    assert log.launched().numbers == {("dense", "aclnn"): 2, ("cast", "aclnn"): 1}


def test_operators_of_the_older_kind_are_built_once_and_launched_every_time(log):
    log.text = "\n".join([RUN.format("typeof"), RUN.format("Gather"), BUILT.format("Gather", "acl_kernel")])
    assert log.launched().numbers == {("Gather", "aclop"): 1}
    log.text = RUN.format("Gather")
    assert log.launched().numbers == {("Gather", "aclop"): 1}


def test_a_graph(log):
    kinds = ("opapi_kernel", "opapi_kernel", "acl_kernel", "host_kernel", "rt_kernel", "hccl_kernel", "internal_kernel")
    log.text = "\n".join(BUILT.format("Cast" if kind == "opapi_kernel" else kind, kind) for kind in kinds)
    found = log.built()
    assert found.kinds == {"aclnn": 2, "aclop": 1, "host": 1, "internal": 1, "hccl": 1}
    assert found.total == 5 and found.names["aclnn"] == {"Cast": 2}


def test_layers_are_what_three_have_more_than_two():
    two = Launches.none() + Launches(Counter({("Cast", "aclnn"): 5}))
    three = two + Launches(Counter({("Cast", "aclnn"): 2}))
    assert (three - two).total == 2 and (three + (three - two).times(45)).total == 97
