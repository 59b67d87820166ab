"""Plans as tables: who holds what of every parameter, and what is no plan."""

import json

import numpy as np
import pytest

from ms_omni.config import Qwen3OmniMoeConfig, load_named_config
from ms_omni.errors import InputError
from ms_omni.parallel import Placement, Plan, Row
from ms_omni.parallel.plan import ONCE, REPLICATE, expert_parallel_plan, split, splits_heads

PLACEMENTS = [
    (REPLICATE, (5, 3), [(5, 3)] * 4),
    (split(0), (8, 3), [(2, 3)] * 4),
    (split(0), (7, 3), [(1, 3), (2, 3), (2, 3), (2, 3)]),
    (split(1, unit=2), (3, 8), [(3, 2)] * 4),
    (split(0, unit=2, copies=2), (8, 3), [(4, 3)] * 4),
    (ONCE, (5,), [(5,)] * 4),
]


@pytest.mark.parametrize("placement, shape, expected", PLACEMENTS)
def test_parts_of_all_ranks_are_the_whole(placement, shape, expected):
    parts = [placement.slice(shape, rank, 4) for rank in range(4)]
    assert [part.local_shape for part in parts] == expected
    whole = np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(shape)
    joined = np.zeros(shape, np.float32)
    for part in parts:
        local = np.zeros(part.local_shape, np.float32)
        local[part.filled] = whole[part.index]
        assert part.is_whole == (local.shape == shape and (local == whole).all())
        part.put(joined, local)
    assert (joined == whole).all()


def test_copies_are_neighbours():
    parts = [split(0, unit=2, copies=2).slice((8, 3), rank, 4) for rank in range(4)]
    assert [part.start for part in parts] == [0, 0, 4, 4]


@pytest.mark.parametrize("placement, shape", [(split(0), (3, 2)), (split(0, unit=2), (7, 2)), (split(0, copies=3), (8, 2))])
def test_what_cannot_be_cut(placement, shape):
    with pytest.raises(InputError, match=r"weight over 4 ranks \(plan 'mine'\): an axis of . in units of . cannot be cut"):
        Plan("mine", (Row("weight", placement),)).slices({"weight": shape}, 0, 4)


def test_all_that_is_wrong_with_a_table_is_said_at_once():
    plan = Plan("mine", (Row(r"layers\.<n>\.w", REPLICATE), Row(r".*\.w", REPLICATE), Row("idle", REPLICATE)))
    with pytest.raises(InputError) as error:
        plan.placements(["layers.10.w", "head.b", "head.w"])
    assert str(error.value).splitlines()[1:] == [
        "  layers.10.w: placed by 2 rows",
        "  head.b: placed by no rows",
        r"  row layers\.<n>\.w: matches no parameter",
        "  row idle: matches no parameter",
    ]
    with pytest.raises(InputError, match=r"\.\.\. and 7 more"):
        Plan("mine", ()).placements([f"p{n}" for n in range(17)])


@pytest.mark.parametrize("geometry, ranks", [("tiny", 2), ("tiny", 4), ("odd", 2), ("odd", 3)])
def test_experts_heads_and_vocabulary_are_split_and_nothing_is_lost(geometry, ranks, model_of):
    model = model_of(geometry)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.parameters_and_names()}
    places = [expert_parallel_plan(model.config, ranks).slices(shapes, rank, ranks) for rank in range(ranks)]
    text = model.config.thinker_config.text_config
    for name, shape in shapes.items():
        parts = [place[name] for place in places]
        covered = np.zeros(shape, int)
        for part in parts:
            covered[part.index] += 1
        assert (covered >= 1).all(), name
        if ".experts." in name and name.startswith("thinker."):
            assert (covered == 1).all() and sum(part.length for part in parts) == text.num_experts
        if name.endswith("q_proj.weight") and name.startswith("thinker.model."):
            assert (covered == (1 if splits_heads(text, ranks) else ranks)).all()


@pytest.mark.parametrize("ranks, wanted, expected", [(2, None, True), (4, None, True), (3, None, False), (2, False, False)])
def test_heads_are_split_where_they_divide(ranks, wanted, expected):
    text = load_named_config("instruct").thinker_config.text_config  # 32 heads, 4 kv heads
    assert splits_heads(text, ranks, wanted) is expected


def test_what_so_many_ranks_cannot_share():
    config = load_named_config("instruct")
    with pytest.raises(InputError, match="32 attention heads with 4 kv heads cannot be split over 3 ranks"):
        expert_parallel_plan(config, 3, split_heads=True)
    with pytest.raises(InputError, match="128 experts cannot be shared by 129 ranks"):
        expert_parallel_plan(config, 129)


def test_a_model_without_speech_has_no_rows_for_it(checkpoint_of):
    content = json.loads((checkpoint_of("tiny") / "config.json").read_text())
    config = Qwen3OmniMoeConfig.from_dict({**content, "enable_audio_output": False})
    assert not any("talker" in row.pattern for row in expert_parallel_plan(config, 2).rows)
    assert Placement() == REPLICATE
