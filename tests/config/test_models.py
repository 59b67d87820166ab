"""Model classes and the configurations that they are built from."""

import pytest

from ms_omni import Qwen3OmniMoeThinkerConfig, Qwen3OmniMoeThinkerForConditionalGeneration
from ms_omni.errors import ConfigError
from tests.config import geometry


class Foreign:
    """A configuration of another library."""

    def to_dict(self):
        return geometry.THINKER


def test_a_model_takes_objects_of_other_libraries_and_keeps_those_of_ours():
    model = Qwen3OmniMoeThinkerForConditionalGeneration(Foreign())
    assert model.config == Qwen3OmniMoeThinkerConfig(**geometry.THINKER)
    assert Qwen3OmniMoeThinkerForConditionalGeneration(model.config).config is model.config


def test_values_set_before_a_model_is_built_are_what_it_has():
    config = Qwen3OmniMoeThinkerConfig(**geometry.THINKER)
    config.text_config.num_hidden_layers = 1
    assert len(Qwen3OmniMoeThinkerForConditionalGeneration(config).model.layers) == 1
    config.text_config.num_experts = 1
    with pytest.raises(ConfigError, match="text_config.num_experts_per_tok: got 2, expected at most num_experts = 1"):
        Qwen3OmniMoeThinkerForConditionalGeneration(config)
