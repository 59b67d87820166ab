"""The table of shapes says what the cells are, for every geometry that comes along and for what configurations may say."""

import copy
import math

import mindspore as ms
import pytest

from ms_omni import Qwen3OmniMoeConfig, Qwen3OmniMoeForConditionalGeneration
from ms_omni.checkpoint.shapes import parameter_shapes
from ms_omni.config import load_named_config
from ms_omni.modeling.layer import lazy_parameters


def built_shapes(config):
    with lazy_parameters(ms.float32):
        model = Qwen3OmniMoeForConditionalGeneration(config)
    return {name: tuple(parameter.shape) for name, parameter in model.parameters_and_names()}


@pytest.mark.parametrize("name", ["tiny", "odd", "mini"])
def test_the_table_is_what_the_cells_are(name):
    config = load_named_config(name)
    assert parameter_shapes(config) == built_shapes(config)


def changed(**text):
    data = copy.deepcopy(load_named_config("tiny").to_dict())
    data["thinker_config"]["text_config"].update(text)
    data["thinker_config"]["tie_word_embeddings"] = text.get("tie_word_embeddings", False)
    data["talker_config"]["text_config"]["attention_bias"] = text.get("attention_bias", False)
    data["thinker_config"]["audio_config"]["num_mel_bins"] = 37
    data["thinker_config"]["vision_config"]["deepstack_visual_indexes"] = []
    return Qwen3OmniMoeConfig.from_dict(data)


@pytest.mark.parametrize(
    "text", [{"attention_bias": True}, {"tie_word_embeddings": True}, {"mlp_only_layers": [0]}, {"decoder_sparse_step": 2}]
)
def test_options_of_a_configuration_change_both(text):
    config = changed(**text)
    assert parameter_shapes(config) == built_shapes(config) != parameter_shapes(load_named_config("tiny"))


def test_the_published_models_have_as_many_elements_as_their_files():
    assert sum(map(math.prod, parameter_shapes(load_named_config("instruct")).values())) == 35_259_818_545
    assert not [name for name in parameter_shapes(load_named_config("thinking")) if not name.startswith("thinker.")]
