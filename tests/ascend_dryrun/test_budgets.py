"""What the whole model may cost on Ascend: nothing raises, no kernel that CANN builds or the host computes, so many launches.

Counted on the MindSpore that runs the tests, 2.7.1 or newer; where the versions differ the budget is the larger number.
"""

import pytest

from .run import WHOLE


def check(found: dict) -> None:
    """Nothing raised, and all kernels are aclnn ones of CANN or collectives."""
    assert not found["raised"]
    assert {kind: names for kind, names in found["names"].items() if kind not in ("aclnn", "hccl")} == {}


def check_forms(found: dict, way: str) -> None:
    assert not found["raised"]
    for label, ways in found["forms"].items():
        assert set(ways[way]["names"]) == {"aclnn"}, label


def test_every_form_operator_by_operator(dry):
    check_forms(dry("forms:eager"), "eager")


@pytest.mark.slow
def test_every_form_in_a_graph(dry):
    check_forms(dry("forms:graph"), "graph")


@pytest.mark.parametrize("part, layers", [("prefill", {"thinker": 39}), ("encoders", {"vision": 26, "audio": 12})])
def test_what_runs_operator_by_operator(dry, part, layers):
    found = dry(part)
    check(found)
    assert found["launches_per_layer"] == layers


@pytest.mark.slow
def test_the_vocoder(dry):
    found = dry("vocoder")
    check(found)
    assert found["launches"] <= 701


@pytest.mark.slow
@pytest.mark.parametrize("part, per_layer", [("thinker", 29), ("talker", 38)])
def test_a_step_as_a_graph(dry, part, per_layer):
    found = dry(part)
    check(found)
    assert found["launches_per_layer"][part] <= per_layer


@pytest.mark.slow
@pytest.mark.parametrize("what", WHOLE)
def test_the_miniature_from_its_files_to_an_answer(dry, what):
    check(dry(what))
