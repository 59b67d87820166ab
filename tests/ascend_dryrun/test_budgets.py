"""What the whole model may cost on Ascend: nothing raises, no kernel that CANN builds or the host computes, so many launches.

Counted on the MindSpore that runs the tests, 2.7.1 or newer; where the versions differ the budget is the larger number.
"""

import pytest

from ms_omni import ascend
from ms_omni.parallel import hardware

from .run import WHOLE

STEP = hardware.GRAPH
SAMPLER = 15


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


def test_the_encoders(dry):
    found = dry("encoders")
    check(found)
    assert found["launches_per_layer"] == {"vision": 12, "audio": 9} and found["launches"] == 648


def test_a_chunk_of_a_prompt(dry):
    found = dry("prefill")
    check(found)
    assert found["launches"] == STEP.thinker(layers=48, cards=1, chunk=True)


def test_the_choice_of_sixteen_rows(dry):
    """With the launch that writes new penalties."""
    found = dry("sampler")
    check(found)
    assert found["launches"] == STEP.choice + STEP.penalties <= SAMPLER
    assert found["launches_per_layer"] == {
        "greedy": 1,
        "sampled": 8,
        "greedy with penalties": 7,
        "sampled with penalties": 13,
        "new penalties": 1,
    }


@pytest.mark.slow
def test_the_vocoder(dry):
    found = dry("vocoder")
    check(found)
    assert found["launches"] <= hardware.VOCODER == 701


@pytest.mark.slow
@pytest.mark.parametrize("part, planned", [("thinker", STEP.thinker(48, 1)), ("talker", STEP.talker(20))])
def test_a_step_as_a_graph(dry, part, planned):
    found = dry(part)
    check(found)
    assert found["launches"] == planned
    assert found["launches_per_layer"] == {part: {"thinker": 22, "talker": 28}[part]}


@pytest.mark.slow
@pytest.mark.parametrize(
    "part, planned", [("thinker", hardware.BOOSTED.thinker(48, 1)), ("talker", hardware.BOOSTED.talker(20))]
)
def test_a_boosted_step(dry, part, planned):
    """MindSpore's own kernels are asked for their tiling too, which refuses queries that are not `[N, H, D]`."""
    found = dry(part, boost=True)
    assert not found["raised"] and set(found["names"]) == {"aclnn", "internal"}
    assert set(found["names"]["internal"]) == {"AddRmsNorm", "ApplyRotaryPosEmb", "PagedAttention", "ReshapeAndCache"}
    assert found["launches"] == planned
    assert found["launches_per_layer"] == {part: {"thinker": 20, "talker": 26}[part]}


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["int8", "int4"])
@pytest.mark.parametrize("part", ["thinker", "talker", "prefill"])
def test_codes_launch_no_more_in_a_layer(dry, part, storage):
    """The thinker's head is three products and their concatenation."""
    found = dry(part, storage=storage)
    check(found)
    name, planned = ("talker", STEP.talker(20)) if part == "talker" else ("thinker", STEP.thinker(48, 1, part == "prefill"))
    assert found["launches"] == planned + (3 if part == "thinker" else 0) and ascend.launches(151_936) == 4
    assert found["layers"][name]["names"]["aclnn"]["GroupedMatmulV4" if part != "prefill" else "grouped_matmul_v4"] == 2


@pytest.mark.slow
def test_boosted_codes(dry):
    found = dry("talker", boost=True, storage="int4")
    assert not found["raised"] and set(found["names"]) == {"aclnn", "internal"}
    assert found["launches"] == hardware.BOOSTED.talker(20)


@pytest.mark.slow
def test_codes_on_one_of_two_cards(dry):
    found = dry("thinker", "ep", 2, 1, storage="int4")
    check(found)
    assert found["kernels"]["aclnn"] == STEP.thinker(48, cards=2) + ascend.launches(151_936 // 2) - 1


@pytest.mark.slow
def test_a_frame_as_a_graph(dry):
    found = dry("frame")
    check(found)
    assert found["launches"] == STEP.codes(*hardware.FRAME)


@pytest.mark.slow
def test_a_step_on_one_of_two_cards(dry):
    found = dry("thinker", "ep", 2, 1)
    check(found)
    assert found["kernels"]["aclnn"] == STEP.thinker(48, cards=2)


@pytest.mark.slow
@pytest.mark.parametrize("kind", WHOLE)
def test_the_miniature_from_its_files_to_an_answer(dry, kind):
    found = dry("whole")
    assert not found["raised"]
    check(found["answers"][kind] | {"raised": {}})
