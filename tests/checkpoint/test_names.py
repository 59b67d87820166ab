"""The rule table against the published checkpoint's 28,010 names."""

import gzip
import json
import math
from collections import Counter
from pathlib import Path

import pytest

from ms_omni.checkpoint import RULES, place, sources
from ms_omni.checkpoint.names import IGNORE, part_of, patch_shape_of
from ms_omni.config import Qwen3OmniMoeThinkerConfig, load_named_config
from tests.checkpoint.conftest import lazy

NAMES = Path(__file__).parent / "data" / "published_names.txt.gz"
MILLIONS = {  # from the published checkpoint
    "thinker decoder": 30_221,
    "thinker head": 311,
    "audio encoder": 648,
    "vision encoder": 539,
    "talker decoder": 3_167,
    "talker projections": 13,
    "codec head": 3,
    "code predictor": 142,
    "code2wav": 216,
}


@pytest.fixture(scope="module")
def published() -> dict[str, tuple[int, ...]]:
    with gzip.open(NAMES, "rt") as lines:
        split = [line.split(" ", 1) for line in lines if line.strip()]
    return {name: tuple(json.loads(shape)) for name, shape in split}


@pytest.fixture(scope="module")
def parameters() -> dict[str, tuple[int, ...]]:
    from ms_omni.model import Qwen3OmniMoeForConditionalGeneration

    model = lazy(Qwen3OmniMoeForConditionalGeneration, load_named_config("instruct"))
    cells = dict(model.parameters_and_names())
    assert all(parameter.has_init for parameter in cells.values()), "a parameter owns memory before loading"
    return {name: tuple(parameter.shape) for name, parameter in cells.items()}


def test_each_name_matches_one_rule_and_every_rule_but_the_constants_is_needed(published):
    assert len(published) == 28_010
    used = {rule for name in published for rule in RULES if rule.pattern.fullmatch(name)}
    for name in published:
        assert sum(rule.pattern.fullmatch(name) is not None for rule in RULES) == 1, name
    spare = {rule.pattern.pattern for rule in RULES if rule not in used and rule.transform != IGNORE}
    assert spare == {r"thinker\.model\.layers\.\d+\.mlp\.(gate|up|down)_proj\.weight"}, "dense layers, elsewhere"


def test_each_name_goes_to_one_place_and_every_parameter_is_filled(published, parameters):
    filled = Counter()
    for name, shape in published.items():
        spot = place(name)
        assert spot.target in parameters, name
        filled[spot.target] += math.prod(shape)
    assert filled == {name: math.prod(shape) for name, shape in parameters.items()}
    slices = Counter((spot.target, spot.transform, spot.expert) for spot in map(place, published))
    assert max(slices.values()) == 1


def test_the_inverse_gives_the_list_back(published, parameters):
    patch_shape = patch_shape_of(load_named_config("instruct").thinker_config.vision_config)
    back = [source for name, shape in parameters.items() for source in sources(name, shape, patch_shape)]
    assert len(back) == len(published)
    assert {source.name: source.shape for source in back} == published
    for source in back:
        spot = place(source.name)
        assert (spot.transform, spot.expert) == (source.transform, source.expert)


def test_parts_of_the_model_have_the_published_sizes(published, parameters):
    counted = Counter()
    for name, shape in published.items():
        counted[place(name).part] += math.prod(shape)
    assert sum(counted.values()) == 35_259_818_545
    assert {part: round(size / 1e6) for part, size in counted.items()} == MILLIONS
    ours = Counter()
    for name, shape in parameters.items():
        ours[part_of(name)] += math.prod(shape)
    assert ours == counted


@pytest.mark.parametrize("name", ["thinking", "captioner"])
def test_thinker_geometries_have_the_same_names(name, published):
    from ms_omni.model import Qwen3OmniMoeForConditionalGeneration, Qwen3OmniMoeThinkerForConditionalGeneration

    config = load_named_config(name)
    model = lazy(Qwen3OmniMoeForConditionalGeneration, config)
    names = {name for name, _ in model.parameters_and_names()}
    assert names == {place(source).target for source in published if source.startswith("thinker.")}
    assert isinstance(config.thinker_config, Qwen3OmniMoeThinkerConfig)
    alone = lazy(Qwen3OmniMoeThinkerForConditionalGeneration, config.thinker_config)
    assert {f"thinker.{name}" for name, _ in alone.parameters_and_names()} == names


@pytest.mark.parametrize(
    "name",
    [
        "thinker.model.layers.0.mlp.experts.0.gate_proj.bias",
        "thinker.model.layers.x.input_layernorm.weight",
        "thinker.model.norm.weight.extra",
        "model.norm.weight",
        "talker.lm_head.weight",
        "",
    ],
)
def test_other_names_match_no_rule(name):
    assert place(name) is None


def test_constants_that_some_versions_save_are_ignored():
    for name in (
        "code2wav.code_offset",
        "code2wav.pre_transformer.rotary_emb.inv_freq",
        "thinker.visual.rotary_pos_emb.inv_freq",
        "thinker.audio_tower.positional_embedding.positional_embedding",
        "talker.model.rotary_emb.original_inv_freq",
    ):
        assert place(name).transform == IGNORE
