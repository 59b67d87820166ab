"""`convert` to codes and back: what stands in the folder, what stays, what is refused."""

import json
import math
import re
import shutil
import warnings

import ml_dtypes
import numpy as np
import pytest

from ms_omni.checkpoint import CheckpointReader, convert, inspect_checkpoint
from ms_omni.checkpoint.open import as_published, open_checkpoint
from ms_omni.checkpoint.rounding import rounded
from ms_omni.checkpoint.shapes import parameter_shapes
from ms_omni.checkpoint.storage import scheme, stored_bytes
from ms_omni.config import Qwen3OmniMoeConfig
from ms_omni.errors import CheckpointError, InputError
from ms_omni.parallel.export import convert_for_ranks
from ms_omni.quantised import Storage, dequantised
from ms_omni.tiny import write_tiny_checkpoint
from tests.checkpoint.conftest import bits, rewrite, tensors_of
from tests.checkpoint.test_convert import assert_same_tensors

WAYS = {"tiny": ("int4", 32), "odd": ("int8", None)}


@pytest.fixture(scope="module", params=list(WAYS))
def folders(request, tmp_path_factory):
    """(the published folder, the quantised one, word, group). Tests must not change them."""
    place = tmp_path_factory.mktemp(request.param)
    write_tiny_checkpoint(place / "source", geometry=request.param, shards=2)
    word, group = WAYS[request.param]
    convert(place / "source", place / "small", quantize=word, group=group, shard_bytes=1_000_000, progress=False)
    return place / "source", place / "small", word, group


def test_codes_are_the_published_matrices_rounded_and_the_rest_is_as_it_was(folders):
    source, small, word, group = folders
    config = Qwen3OmniMoeConfig.from_pretrained(source)
    storages = scheme(parameter_shapes(config), word, group).storages(parameter_shapes(config))
    stored, published = tensors_of(small), tensors_of(source)
    reader = open_checkpoint(small)
    assert {name for name in reader.entries if reader.storage(name)} == storages.keys()
    for name, storage in storages.items():
        assert reader.storage(name) == storage
        if name.endswith(".experts.gate_up"):
            stem = name.removesuffix("gate_up")
            matrix = np.concatenate([published[f"{stem}2.{part}_proj.weight"] for part in ("gate", "up")])
            codes, scales = stored[name][2], stored[f"{name}_scale"][2]
        elif name.endswith(".experts.down"):
            matrix = published[name.removesuffix("down") + "2.down_proj.weight"]
            codes, scales = stored[name][2], stored[f"{name}_scale"][2]
        else:
            matrix, codes, scales = published[name], stored[name], stored[f"{name}_scale"]
        wanted = rounded(matrix, storage)
        assert bits(codes) == bits(wanted.codes) and bits(scales) == bits(wanted.scales), name
    for name, value in stored.items():
        if name.removesuffix("_scale") not in storages and "patch_embed.proj.weight" not in name:
            assert bits(value) == bits(published[name]), name


def test_the_folder_has_the_size_that_is_predicted_and_says_how_it_was_made(folders):
    source, small, word, group = folders
    shapes = parameter_shapes(Qwen3OmniMoeConfig.from_pretrained(source))
    storages = scheme(shapes, word, group).storages(shapes)
    assert sum(value.nbytes for value in tensors_of(small).values()) == sum(
        stored_bytes(name, shape, storages.get(name)) for name, shape in shapes.items()
    )
    said, before = (json.loads((folder / "config.json").read_text()) for folder in (small, source))
    described = said.pop("quantization_config")
    assert said == before
    assert (described["quant_method"], described["bits"], described["group_size"]) == ("ms_omni", int(word[3:]), group or -1)
    assert "scales searched" in described["rounding"] and described["made_by"].startswith("ms_omni ")
    summary = inspect_checkpoint(small)
    assert summary.form == "ms_omni" and summary.unmatched == () and summary.quantisation == described
    assert summary.nbytes == sum(value.nbytes for value in tensors_of(small).values())
    assert summary.elements == sum(math.prod(shape) for shape in shapes.values())
    (talker,) = (part for part in summary.parts if part.part == "talker decoder")
    assert set(talker.dtypes) == {"BF16", "int8"} | ({"int4/32"} if word == "int4" else set())


def test_back_again_it_is_the_published_checkpoint_dequantised(folders, tmp_path):
    source, small, *_ = folders
    report = convert(small, tmp_path / "back", progress=False)
    assert report.form == "published"
    assert (tmp_path / "back" / "config.json").read_text().split() == (source / "config.json").read_text().split()
    reader = open_checkpoint(small)
    parts = as_published(reader).parts
    back, before = tensors_of(tmp_path / "back"), tensors_of(source)
    assert back.keys() == before.keys()
    changed = {name for name in back if bits(back[name]) != bits(before[name])}
    for name, value in back.items():
        assert value.dtype == before[name].dtype and value.shape == before[name].shape
        assert (reader.storage(parts[name][0]) is not None) == (name in changed), name
    for name in changed:
        error = np.abs(back[name].astype(np.float32) - before[name].astype(np.float32)).max()
        assert error < 0.25 * np.abs(before[name].astype(np.float32)).max(), name
    head = "thinker.lm_head.weight"
    if head in back:
        wanted = dequantised(rounded(before[head], Storage(8))).astype(ml_dtypes.bfloat16)
        assert bits(back[head]) == bits(wanted)


def test_a_folder_in_our_form_gives_the_same(folders, tmp_path):
    source, small, word, group = folders
    convert(source, tmp_path / "ours", progress=False)
    convert(tmp_path / "ours", tmp_path / "small", quantize=word, group=group, progress=False)
    assert_same_tensors(small, tmp_path / "small")
    metadata = [next(iter(CheckpointReader(folder).metadata.values())) for folder in (small, tmp_path / "small")]
    assert metadata[0] == metadata[1]


def test_the_table_of_tokens_by_option(folders, tmp_path):
    source, _, word, group = folders
    convert(source, tmp_path / "small", quantize=word, group=group, embeddings=True, progress=False)
    reader = open_checkpoint(tmp_path / "small")
    assert reader.storage("thinker.model.embed_tokens.weight") == Storage(8)
    assert json.loads((tmp_path / "small" / "config.json").read_text())["quantization_config"]["embeddings"] is True


def test_a_thinker_alone(tmp_path):
    write_tiny_checkpoint(tmp_path / "start")
    tensors = tensors_of(tmp_path / "start")
    rewrite(
        tmp_path / "start", {name.removeprefix("thinker."): value for name, value in tensors.items() if "thinker." in name}
    )
    convert(tmp_path / "start", tmp_path / "small", quantize="int4", progress=False)
    reader = open_checkpoint(tmp_path / "small")
    assert reader.storage("model.layers.0.self_attn.q_proj.weight") == Storage(4)
    assert reader.storage("model.layers.0.self_attn.o_proj.weight") == Storage(4, 64)
    convert(tmp_path / "small", tmp_path / "back", progress=False)
    assert tensors_of(tmp_path / "back").keys() == tensors_of(tmp_path / "start").keys()


def test_what_has_8_bits_because_no_block_divides_is_said(tmp_path):
    write_tiny_checkpoint(tmp_path / "start")
    report = convert(tmp_path / "start", tmp_path / "small", quantize="int4", group=32, progress=False)
    assert report.notes[0].startswith("int4 in groups of 32: ")
    assert "8 bits instead of 4 where 32 does not divide" in report.notes[1]
    assert "thinker.model.layers.*.mlp.experts.down" in report.notes[1]


def test_a_group_that_does_not_divide_is_one_error_that_lists_matrices(sharded, tmp_path):
    with pytest.raises(InputError, match=r"groups of 128 do not divide.*take group 64 or 32") as error:
        convert(sharded, tmp_path / "small", quantize="int4", group=128, progress=False)
    assert "thinker.model.layers.*.mlp.experts.gate_up (4 of them): 64 inputs" in str(error.value)
    assert "self_attn.q_proj.weight" in str(error.value) and list(tmp_path.iterdir()) == []


def test_rounding_twice_is_refused(folders, tmp_path):
    with pytest.raises(CheckpointError, match="is quantised already, and what is rounded twice loses more"):
        convert(folders[1], tmp_path / "again", quantize="int8", progress=False)
    assert list(tmp_path.iterdir()) == []


def test_numbers_that_are_not_finite_name_their_tensor(damaged, tmp_path):
    tensors, name = tensors_of(damaged), "thinker.model.layers.1.mlp.experts.3.up_proj.weight"
    tensors[name][1, 2] = np.nan
    rewrite(damaged, tensors)
    with pytest.raises(CheckpointError, match=re.escape(f"{name} holds NaN or infinite numbers")):
        convert(damaged, tmp_path / "small", quantize="int8", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_a_scale_that_is_missing_or_of_another_shape_is_said(folders, tmp_path):
    small = shutil.copytree(folders[1], tmp_path / "small")
    tensors = tensors_of(small)
    scales = [name for name in tensors if name.endswith("q_proj.weight_scale")]
    tensors.pop(scales[0])
    tensors[scales[1]] = tensors[scales[1]][:-1]
    rewrite(small, tensors, {"format": "ms_omni"})
    with pytest.raises(CheckpointError, match="2 problems") as error:
        convert(small, tmp_path / "back", progress=False)
    assert scales[0] in str(error.value) and scales[1] in str(error.value)


def test_a_scale_that_is_not_finite_is_said(folders, tmp_path):
    small = shutil.copytree(folders[1], tmp_path / "small")
    tensors = tensors_of(small)
    scale = next(name for name in tensors if name.endswith("o_proj.weight_scale"))
    tensors[scale][-1, -1] = np.nan
    rewrite(small, tensors, {"format": "ms_omni"})
    expected = re.escape(scale.removesuffix("_scale")) + ".* holds NaN or infinite numbers"
    with pytest.raises(CheckpointError, match=expected):
        convert(small, tmp_path / "back", progress=False)
    with pytest.raises(CheckpointError, match=expected):
        convert_for_ranks(small, tmp_path / "cut", 2, "ep", progress=False)


def test_descriptions_of_weights_that_are_no_longer_so_are_left_behind(folders, tmp_path):
    small = shutil.copytree(folders[1], tmp_path / "small")
    (small / "quantize_config.json").write_text("{}")
    convert(small, tmp_path / "back", progress=False)
    assert not (tmp_path / "back" / "quantize_config.json").exists()


@pytest.mark.parametrize("bits, group", [(8, None), (4, 32)])
def test_numbers_too_small_for_a_scale_become_zero(bits, group):
    storage = Storage(bits, group)
    numbers = np.zeros((2, 64), np.float32)
    numbers[:, ::2] = 1e-39 * 2 ** (bits - 1)  # the scale has no inverse in float32
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        codes = rounded(numbers, storage)
    assert np.abs(dequantised(codes)).max() <= 1e-36
