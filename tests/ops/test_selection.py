"""Which implementation is used, and what is said when there is no such one."""

import inspect
import os
import subprocess
import sys

import pytest

from ms_omni.modeling import ops
from ms_omni.modeling.ops import dispatch
from ms_omni.modeling.ops.ascend import Ascend
from ms_omni.modeling.ops.reference import Reference

IMPLEMENTATIONS = [Reference, Ascend]
try:
    from ms_omni.modeling.ops.cpu import Cpu

    IMPLEMENTATIONS.append(Cpu)
except OSError:  # no compiler
    pass


def test_every_operator_is_documented_and_every_implementation_has_its_arguments():
    public = {name for name, value in vars(ops).items() if inspect.isfunction(value) and not name.startswith("_")}
    machinery = {name for name in public if getattr(ops, name).__module__ != ops.__name__}
    questions = {
        "graph_expert_rows",
        "keeps_bfloat16",
        "vectors",
        "chooses",
        "pages_prompts",
        "caches_codes",
        "fuses_encoders",
        "reads_chunks",
        "packs",
        "place",
        "prepare",
        "refusal",
    }  # asked about operators, not computed by them
    assert public - machinery - questions == {*dispatch.OPERATORS}
    for name, documented in dispatch.OPERATORS.items():
        assert documented is getattr(ops, name) and documented.__doc__, name
        for implementation in IMPLEMENTATIONS:
            method = getattr(implementation, name, None)
            assert method is None or list(inspect.signature(method).parameters) == list(
                inspect.signature(documented).parameters
            ), (implementation, name)


def test_every_method_is_an_operator_or_asked_about_them():
    questions = {"packs", "place", "prepare", "refusal", "settled", "steps"}
    for implementation in IMPLEMENTATIONS:
        methods = {name for name, value in vars(implementation).items() if isinstance(value, (staticmethod, classmethod))}
        assert methods <= dispatch.OPERATORS.keys() | questions


def test_describe_says_which_class_an_operator_comes_from(use_operators):
    class Other(Reference):
        @staticmethod
        def silu(x):
            return x

        gelu = staticmethod(Reference.gelu)

    use_operators(Other)
    described = ops.describe()
    assert [row[0] for row in described] == [*dispatch.OPERATORS]
    rows = {name: (used, why) for name, used, why in described}
    assert rows["silu"][0] == "other" and rows["silu"][1] != "other has none of its own"
    assert rows["gelu"] == rows["linear"] == ("reference", "other has none of its own")
    assert {name for name, row in rows.items() if row[0] == "cells"} == {
        "decoder_step",
        "decoder_chunk",
        "code_frame",
        "encoder_states",
        "projector",
    }


def test_another_implementation_is_used_at_once_by_whoever_holds_an_operator(use_operators):
    class Other(Reference):
        silu = staticmethod(lambda x: "other")

    held = ops.silu
    use_operators(Other)
    assert held is ops.silu and held(None) == "other"


def test_an_implementation_can_be_forced(monkeypatch):
    monkeypatch.setenv("MS_OMNI_OPS", "reference")
    assert dispatch.choose() == (Reference, "MS_OMNI_OPS=reference")


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


def test_an_unknown_value_of_the_switch_is_one_clear_error(monkeypatch):
    monkeypatch.setenv("MS_OMNI_BOOST", "on")
    with pytest.raises(ValueError, match="MS_OMNI_BOOST='on' is neither 1 .* nor 0; set one of them or unset it"):
        dispatch.choose()


@pytest.mark.parametrize(
    "switch, listed, then",
    [
        ("1", None, "Swiglu"),
        ("1", "RmsNorm,Add", "RmsNorm,Add,Swiglu"),
        ("1", "Swiglu,Add", "Swiglu,Add"),
        ("0", None, None),
        ("", "Add", "Add"),
    ],
)
def test_the_switch_leaves_what_the_user_has_listed(monkeypatch, switch, listed, then):
    monkeypatch.setenv("MS_OMNI_BOOST", switch)
    monkeypatch.setenv(dispatch.DISABLED_KERNELS, listed or "")
    for _ in range(2):
        dispatch.prepare_boost()
    assert (os.environ[dispatch.DISABLED_KERNELS] or None) == then
