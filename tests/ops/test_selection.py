"""Which implementation is used, and what is said when there is no such one."""

import inspect
import os
import subprocess
import sys

from ms_omni.modeling import ops
from ms_omni.modeling.ops import reference, select


def test_every_operator_is_documented_and_has_a_reference_with_the_same_arguments():
    public = {name for name, value in vars(ops).items() if inspect.isfunction(value) and not name.startswith("_")}
    questions = {
        "describe",
        "graph_expert_rows",
        "prepare",
        "recording",
        "refusal",
        "settle",
        "stop_recording",
    }  # asked about operators, not computed by them
    assert public - questions == {*ops.OPERATORS, *ops.FUSED}
    assert not any(hasattr(reference, name) for name in ops.FUSED)  # the cells are their reference
    for name in ops.OPERATORS:
        documented, implemented = getattr(ops, name), getattr(reference, name)
        assert documented.__doc__, name
        assert list(inspect.signature(documented).parameters) == list(inspect.signature(implemented).parameters), name


def test_describe_names_each_operator_once():
    described = ops.describe()
    assert [row[0] for row in described] == [*ops.OPERATORS, *ops.FUSED]
    assert {row[1] for row in described} <= {*select.IMPLEMENTATIONS, "cells"}
    assert {row[1] for row in select.rows(ops.FUSED, reference, "a reason")} == {"cells"}


def test_an_implementation_can_be_forced(monkeypatch):
    monkeypatch.setenv("MS_OMNI_OPS", "reference")
    assert select.choose() == (reference, "MS_OMNI_OPS=reference")


def test_an_unknown_implementation_is_one_clear_error():
    code = "import ms_omni.modeling.ops"
    run = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "MS_OMNI_OPS": "cuda"}, capture_output=True, text=True
    )
    assert run.returncode == 1
    assert run.stderr.strip().splitlines()[-1] == (
        "ValueError: MS_OMNI_OPS='cuda' is not an implementation; "
        "choose one of ['ascend', 'ascend-emulated', 'cpu', 'reference']"
    )
