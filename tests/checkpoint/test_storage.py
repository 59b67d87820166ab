"""What is stored how when weights are quantised, and what a folder comes to."""

import pytest

from ms_omni.checkpoint.shapes import parameter_shapes
from ms_omni.checkpoint.storage import KEPT, TABLE, matrix_shape, row_of, scheme, storage_of, stored_bytes
from ms_omni.config import load_named_config
from ms_omni.errors import InputError
from ms_omni.quantised import Storage

PUBLISHED = parameter_shapes(load_named_config("instruct"))
DENSE = "thinker.model.layers.3.mlp.down_proj.weight"


def share(shapes, storages):
    stored = sum(stored_bytes(name, shape, storages.get(name)) for name, shape in shapes.items())
    return stored / sum(stored_bytes(name, shape, None) for name, shape in shapes.items())


@pytest.mark.parametrize("quantize, group, most", [("int8", None, 0.54), ("int4", 128, 0.31), ("int4", None, 0.31)])
def test_the_published_model_with_all_scales_is_small_enough(quantize, group, most):
    for embeddings in (False, True):
        storages = scheme(PUBLISHED, quantize, group, embeddings).storages(PUBLISHED)
        assert 0.28 < share(PUBLISHED, storages) <= most
        assert ("thinker.model.embed_tokens.weight" in storages) is embeddings


def test_bytes_of_a_matrix_are_codes_and_scales():
    assert stored_bytes("thinker.lm_head.weight", (499, 72), Storage(8)) == 499 * 72 + 499 * 2
    stack = "thinker.model.layers.0.mlp.experts.gate_up"
    assert matrix_shape(stack, (8, 64, 96)) == (8, 96, 64)
    assert stored_bytes(stack, (8, 64, 96), Storage(4, 32)) == 8 * 96 * (32 + 2 * 2)
    assert stored_bytes(stack, (8, 64, 96), Storage(4, 64, "float32", "float32")) == 8 * 96 * (32 + 4 + 4)


def test_each_row_places_something_and_says_why():
    shapes = dict.fromkeys([*PUBLISHED, DENSE], ())
    assert {row_of(name).pattern for name in shapes} == {row.pattern for row in TABLE}
    assert all(len(row.reason) > 20 for row in TABLE)
    vectors = [name for name, shape in PUBLISHED.items() if row_of(name).pattern == ".*" and len(shape) > 1]
    assert vectors == []


@pytest.mark.parametrize("part", ["mlp.gate", "input_layernorm", "self_attn.q_norm", "self_attn.q_proj.bias"])
def test_routers_norms_and_biases_stay(part):
    name = f"thinker.model.layers.0.{part}".removesuffix(".bias") + (".bias" if "bias" in part else ".weight")
    assert row_of(name).stored == KEPT and storage_of(name, (128, 2048), 4, 128) is None


def test_the_head_has_8_bits_and_an_encoder_none():
    assert storage_of("thinker.lm_head.weight", (152064, 2048), 4, 128) == Storage(8)
    assert storage_of("thinker.audio_tower.layers.0.fc1.weight", (5120, 1280), 4, 128) is None
    assert storage_of("talker.code_predictor.model.layers.0.self_attn.q_proj.weight", (2048, 1024), 8) is None


def test_the_group_is_the_largest_that_divides():
    assert [scheme(PUBLISHED, "int4").group, scheme(parameter_shapes(load_named_config("mini")), "int4").group] == [128, 32]


def test_what_a_group_does_not_divide_is_listed_once_per_kind():
    shapes = parameter_shapes(load_named_config("mini"))
    with pytest.raises(InputError) as error:
        scheme(shapes, "int4", 64)
    lines = str(error.value).splitlines()
    assert lines[0] == "groups of 64 do not divide the inputs of these matrices; take group 32:"
    assert lines[1:] == [
        "  thinker.model.layers.*.mlp.experts.down (4 of them): 96 inputs",
        "  talker.model.layers.*.mlp.shared_expert.down_proj.weight (3 of them): 96 inputs",
    ]
    with pytest.raises(InputError, match="down has 96 inputs, which are no whole groups of 64; take one of 32"):
        storage_of("thinker.model.layers.0.mlp.experts.down", (16, 96, 256), 4, 64)


def test_inputs_that_no_block_divides_have_8_bits():
    shapes = parameter_shapes(load_named_config("tiny"))  # experts of 48 and 24, a talker of 48
    storages = scheme(shapes, "int4", 32).storages(shapes)
    assert storages["thinker.model.layers.0.mlp.experts.gate_up"] == Storage(4, 32)
    assert storages["thinker.model.layers.0.mlp.experts.down"] == Storage(8)
    with pytest.raises(InputError, match="no matrix has a number of inputs that 32 divides.*take int8"):
        scheme(parameter_shapes(load_named_config("odd")), "int4")


def test_words_that_mean_nothing_are_refused():
    for quantize, group, words in (
        ("int2", None, "quantize is 'int2', expected one of int8, int4"),
        ("int8", 64, "group is for int4"),
        ("int4", 48, "group is 48, expected one of 128, 64, 32"),
    ):
        with pytest.raises(InputError, match=words):
            scheme(PUBLISHED, quantize, group)
    vocoder = {name: shape for name, shape in PUBLISHED.items() if name.startswith("code2wav.")}
    with pytest.raises(InputError, match="nothing to quantise"):
        scheme(vocoder, "int8")
