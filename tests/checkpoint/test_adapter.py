"""LoRA adapters merged by `convert`: every kind that is an addition to weights, alone and on the way to codes; others are refused."""

import json
import math

import numpy as np
import pytest

from ms_omni.checkpoint import CheckpointReader, convert
from ms_omni.checkpoint.safetensors import DTYPES, Pending, dtype_name, write_file
from ms_omni.errors import CheckpointError
from tests.checkpoint.conftest import bits, rewrite, tensors_of
from tests.checkpoint.test_convert import assert_same_tensors

QUERY = "thinker.model.layers.1.self_attn.q_proj"  # [128, 64]
EXPERT = "thinker.model.layers.2.mlp.experts.3.down_proj"  # [64, 48]
TABLE = "thinker.model.embed_tokens"  # [512, 64]
HEAD = "thinker.lm_head"
ENCODER = "thinker.audio_tower.layers.0.fc1"
CONVOLUTION = "thinker.audio_tower.conv2d2"
PEFT = "base_model.model."


def numbers(*shape, seed=0):
    return (np.random.default_rng([seed, *shape]).standard_normal(shape) * 0.1).astype(np.float32)


def write_adapter(folder, tensors, **settings):
    """An adapter as PEFT's `save_pretrained` lays it out; a setting None is left out."""
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none", "target_modules": ["q_proj"], **settings}
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    pending = [
        Pending(name, dtype_name(value.dtype), value.shape, lambda value=value: value) for name, value in tensors.items()
    ]
    write_file(folder / "adapter_model.safetensors", pending, {"format": "pt"}, lambda nbytes: None)
    return folder


def factors(module, outputs, inputs, rank=4, prefix=PEFT, seed=0):
    return {
        f"{prefix}{module}.lora_A.weight": numbers(rank, inputs, seed=seed),
        f"{prefix}{module}.lora_B.weight": numbers(outputs, rank, seed=seed + 1),
    }


def product(tensors, module, prefix=PEFT):
    return tensors[f"{prefix}{module}.lora_B.weight"] @ tensors[f"{prefix}{module}.lora_A.weight"]


def merged(source, adapter, out, **options):
    report = convert(source, out, adapter=adapter, progress=False, **options)
    return tensors_of(out), report


def check(found, before, changes):
    """`changes`: `{name: wanted in float32}`; everything else is as it was, bit by bit."""
    assert found.keys() == before.keys()
    for name, value in found.items():
        assert value.dtype == before[name].dtype
        if name in changes:
            np.testing.assert_array_equal(value, changes[name].astype(value.dtype), err_msg=name)
            assert bits(value) != bits(before[name]), name
        else:
            assert bits(value) == bits(before[name]), name


def wide(before, module, word="weight"):
    return before[f"{module}.{word}"].astype(np.float32)


def test_matrices_and_experts_with_their_own_ranks_and_the_form_stays(sharded, tmp_path):
    tensors = factors(QUERY, 128, 64) | factors(EXPERT, 64, 48, rank=2, seed=5)
    adapter = write_adapter(
        tmp_path / "adapter", tensors, rank_pattern={r"experts\.\d+\.down_proj": 2}, alpha_pattern={"q_proj": 2}
    )
    found, report = merged(sharded, adapter, tmp_path / "out")
    assert report.form == "published" and report.notes == (f"merged the adapter {adapter} into 2 tensors",)
    before = tensors_of(sharded)
    changes = {
        f"{QUERY}.weight": wide(before, QUERY) + np.float32(0.5) * product(tensors, QUERY),
        f"{EXPERT}.weight": wide(before, EXPERT) + np.float32(4) * product(tensors, EXPERT),
    }
    check(found, before, changes)


def test_a_folder_in_our_form_keeps_it(sharded, tmp_path):
    tensors = factors(QUERY, 128, 64) | factors(EXPERT, 64, 48, seed=5)
    adapter = write_adapter(tmp_path / "adapter", tensors)
    merged(sharded, adapter, tmp_path / "published")
    convert(sharded, tmp_path / "ours", progress=False)
    _, report = merged(tmp_path / "ours", adapter, tmp_path / "out")
    assert report.form == "ms_omni" and CheckpointReader(tmp_path / "out").is_converted
    convert(tmp_path / "out", tmp_path / "back", progress=False)
    assert_same_tensors(tmp_path / "published", tmp_path / "back")


def test_merging_on_the_way_to_codes_is_merging_first(sharded, tmp_path):
    adapter = write_adapter(tmp_path / "adapter", factors(QUERY, 128, 64) | factors(EXPERT, 64, 48))
    merged(sharded, adapter, tmp_path / "merged")
    convert(tmp_path / "merged", tmp_path / "wanted", quantize="int4", group=32, progress=False)
    merged(sharded, adapter, tmp_path / "found", quantize="int4", group=32)
    assert_same_tensors(tmp_path / "wanted", tmp_path / "found")
    said = json.loads((tmp_path / "found" / "config.json").read_text())["quantization_config"]
    assert said["adapter"] == "adapter"


def test_an_adapter_of_the_thinker_alone_and_one_without_prefix(sharded, tmp_path):
    alone, prefix = QUERY.removeprefix("thinker."), ""
    adapter = write_adapter(tmp_path / "a", factors(alone, 128, 64, prefix=prefix))
    wanted = write_adapter(tmp_path / "b", factors(QUERY, 128, 64))
    for name in ("a", "b"):
        merged(sharded, tmp_path / name, tmp_path / f"out_{name}")
    assert_same_tensors(tmp_path / "out_a", tmp_path / "out_b")
    tensors = tensors_of(sharded)
    (tmp_path / "thinker").mkdir()
    (tmp_path / "thinker" / "config.json").write_text((sharded / "config.json").read_text())
    own = {name.removeprefix("thinker."): value for name, value in tensors.items() if name.startswith("thinker.")}
    rewrite(tmp_path / "thinker", own)
    found, _ = merged(tmp_path / "thinker", wanted, tmp_path / "out")
    assert bits(found[f"{alone}.weight"]) == bits(tensors_of(tmp_path / "out_b")[f"{QUERY}.weight"])
    assert adapter != wanted


@pytest.mark.parametrize("settings, scale", [({"use_rslora": True}, 8 / math.sqrt(4)), ({"fan_in_fan_out": True}, 2.0)])
def test_scales(sharded, tmp_path, settings, scale):
    """`fan_in_fan_out` is about layers of another kind, and PEFT resets it for the linear ones of this model."""
    tensors = factors(QUERY, 128, 64)
    found, _ = merged(sharded, write_adapter(tmp_path / "adapter", tensors, **settings), tmp_path / "out")
    before = tensors_of(sharded)
    check(found, before, {f"{QUERY}.weight": wide(before, QUERY) + np.float32(scale) * product(tensors, QUERY)})


def test_decomposed(sharded, tmp_path):
    """DoRA: rows of the sum get the lengths that were learned."""
    tensors = factors(QUERY, 128, 64)
    lengths = np.abs(numbers(128, seed=9)) + 0.5
    adapter = write_adapter(
        tmp_path / "adapter", {**tensors, f"{PEFT}{QUERY}.lora_magnitude_vector": lengths}, use_dora=True
    )
    found, _ = merged(sharded, adapter, tmp_path / "out")
    whole = wide(tensors_of(sharded), QUERY) + np.float32(2) * product(tensors, QUERY)
    wanted = lengths[:, None] * whole / np.linalg.norm(whole, axis=1, keepdims=True)
    np.testing.assert_allclose(found[f"{QUERY}.weight"].astype(np.float32), wanted, rtol=8e-3, atol=1e-6)


def test_tables_convolutions_whole_modules_and_biases(sharded, tmp_path):
    before = tensors_of(sharded)
    channels = before[f"{CONVOLUTION}.weight"].shape
    tensors = {
        f"{PEFT}{TABLE}.lora_embedding_A": numbers(4, 512),
        f"{PEFT}{TABLE}.lora_embedding_B": numbers(64, 4),
        f"{PEFT}{TABLE}.base_layer.weight": before[f"{TABLE}.weight"],  # PEFT writes it beside its factors
        f"{PEFT}{CONVOLUTION}.lora_A.weight": numbers(4, *channels[1:]),
        f"{PEFT}{CONVOLUTION}.lora_B.weight": numbers(channels[0], 4, 1, 1),
        f"{PEFT}{HEAD}.modules_to_save.weight": numbers(*before[f"{HEAD}.weight"].shape),
        **factors(ENCODER, *before[f"{ENCODER}.weight"].shape, seed=3),
        f"{PEFT}{ENCODER}.base_layer.bias": numbers(*before[f"{ENCODER}.bias"].shape),
        f"{PEFT}{ENCODER}.lora_B.bias": numbers(*before[f"{ENCODER}.bias"].shape, seed=4),
    }
    adapter = write_adapter(tmp_path / "adapter", tensors, bias="lora_only", modules_to_save=["lm_head"], lora_bias=True)
    found, report = merged(sharded, adapter, tmp_path / "out")
    assert report.notes[0].endswith("into 5 tensors")
    grid = np.einsum(
        "or,rikl->oikl",
        tensors[f"{PEFT}{CONVOLUTION}.lora_B.weight"][..., 0, 0],
        tensors[f"{PEFT}{CONVOLUTION}.lora_A.weight"],
    )
    table = tensors[f"{PEFT}{TABLE}.lora_embedding_B"] @ tensors[f"{PEFT}{TABLE}.lora_embedding_A"]
    wanted = {
        f"{TABLE}.weight": wide(before, TABLE) + 2 * table.T,
        f"{CONVOLUTION}.weight": wide(before, CONVOLUTION) + 2 * grid,
        f"{HEAD}.weight": tensors[f"{PEFT}{HEAD}.modules_to_save.weight"],
        f"{ENCODER}.weight": wide(before, ENCODER) + 2 * product(tensors, ENCODER),
        f"{ENCODER}.bias": tensors[f"{PEFT}{ENCODER}.base_layer.bias"] + 2 * tensors[f"{PEFT}{ENCODER}.lora_B.bias"],
    }
    for name, value in found.items():
        if name in wanted:
            np.testing.assert_allclose(value.astype(np.float32), wanted[name], rtol=8e-3, atol=1e-3)
        else:
            assert bits(value) == bits(before[name]), name


def test_one_error_lists_all_that_does_not_fit(sharded, tmp_path):
    nan = numbers(4, 64)
    nan[1, 1] = np.nan
    tensors = {
        **factors("thinker.model.layers.9.self_attn.q_proj", 128, 64),
        **factors(EXPERT, 64, 50),
        **factors("thinker.model.layers.0.self_attn.k_proj", 64, 64, rank=3),
        f"{PEFT}{HEAD}.lora_A.weight": nan,
        f"{PEFT}{QUERY}.oft_r": numbers(2, 2),
    }
    adapter = write_adapter(
        tmp_path / "adapter",
        tensors,
        alpha_pattern={"(": 3},
        target_parameters=["experts.gate_up_proj"],
        init_lora_weights="pissa_niter_4",
    )
    with pytest.raises(CheckpointError, match="cannot be merged into .*, 9 problems") as error:
        convert(sharded, tmp_path / "out", adapter=adapter, progress=False)
    for words in (
        "alpha_pattern says 3 for '('",
        "target_parameters is set: it changes stacked parameters",
        "init_lora_weights is 'pissa_niter_4', which changes the model below",
        "layers.9.self_attn.q_proj.weight: is changed by the adapter, but the checkpoint has no such tensor",
        f"{EXPERT}.weight: is [64, 48] in the checkpoint, [64, 50] in the adapter",
        "k_proj: lora_A is [3, 64] and lora_B [64, 3], expected [4, inputs] and [outputs, 4]",
        f"{HEAD}.lora_A.weight: holds NaN",
        f"{HEAD}: has lora_A, expected lora_A and lora_B",
        "oft_r: no tensor of a LoRA adapter has such a name",
    ):
        assert words in str(error.value), words
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3', expected 'LORA'"),
        ({"r": 0}, "r is 0, expected a number over 0"),
        ({"lora_alpha": None}, "lora_alpha is None, expected a number over 0"),
        ({"layer_replication": [[0, 2]]}, "layer_replication is set: it repeats layers"),
        ({"kasa_config": {"beta": 1}}, "kasa_config is set: it cuts singular values off"),
        ({"init_lora_weights": "lora_ga"}, "init_lora_weights is 'lora_ga', which changes the model below"),
        ({"rank_pattern": 8}, "rank_pattern is 8, expected an object"),
        ({"alpha_pattern": ["q_proj"]}, "alpha_pattern is ['q_proj'], expected an object"),
        ({"use_dora": True}, f"{QUERY}: has no lora_magnitude_vector, but use_dora is True"),
    ],
)
def test_settings_that_cannot_be_merged(sharded, tmp_path, settings, words):
    adapter = write_adapter(tmp_path / "adapter", factors(QUERY, 128, 64), **settings)
    with pytest.raises(CheckpointError, match="cannot be merged") as error:
        convert(sharded, tmp_path / "out", adapter=adapter, progress=False)
    assert words in str(error.value)


def test_lengths_that_the_settings_do_not_know(sharded, tmp_path):
    """PEFT would not use them."""
    tensors = factors(QUERY, 128, 64) | {f"{PEFT}{QUERY}.lora_magnitude_vector": np.ones(128, np.float32)}
    adapter = write_adapter(tmp_path / "adapter", tensors)
    with pytest.raises(CheckpointError, match=f"{QUERY}: has lora_magnitude_vector, but use_dora is None"):
        convert(sharded, tmp_path / "out", adapter=adapter, progress=False)


@pytest.mark.parametrize("name", ["default", "mine", "A", "weight"])
def test_names_with_the_adapters_own(name, sharded, tmp_path):
    """As in the state of a running model, and in what some trainers write."""
    before, plain = tensors_of(sharded), factors(QUERY, 128, 64)
    plain |= {f"{PEFT}{TABLE}.lora_embedding_A": numbers(4, 512), f"{PEFT}{TABLE}.lora_embedding_B": numbers(64, 4)}
    plain[f"{PEFT}{HEAD}.modules_to_save.weight"] = numbers(*before[f"{HEAD}.weight"].shape)
    named = {}
    for key, value in plain.items():
        stem, end = (key.removesuffix(".weight"), ".weight") if key.endswith(".weight") else (key, "")
        named[f"{stem}.{name}{end}"] = value
    merged(sharded, write_adapter(tmp_path / "plain", plain), tmp_path / "wanted")
    merged(sharded, write_adapter(tmp_path / "named", named), tmp_path / "found")
    assert_same_tensors(tmp_path / "wanted", tmp_path / "found")


def test_several_adapters_in_a_file(sharded, tmp_path):
    tensors = factors(QUERY, 128, 64)
    for name in ("mine", "yours"):
        tensors |= {key.replace(".weight", f".{name}.weight"): value for key, value in factors(EXPERT, 64, 48).items()}
    tensors[f"{PEFT}{QUERY}.lora_A.mine.weight"] = tensors[f"{PEFT}{QUERY}.lora_A.weight"]
    with pytest.raises(CheckpointError, match="4 problems") as error:
        merged(sharded, write_adapter(tmp_path / "adapter", tensors), tmp_path / "out")
    for words in (
        "adapter_model.safetensors holds the adapters mine, yours, expected one",
        f"is the second lora_A of {QUERY}",
        f"is the second lora_B of {EXPERT}",
    ):
        assert words in str(error.value), words


def test_folders_that_hold_no_adapter(sharded, tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere has no adapter_config.json; expected the folder of an adapter"):
        convert(sharded, tmp_path / "out", adapter=tmp_path / "nowhere", progress=False)
    adapter = write_adapter(tmp_path / "adapter", {})
    with pytest.raises(CheckpointError, match=r"adapter_model.safetensors holds no tensors"):
        convert(sharded, tmp_path / "out", adapter=adapter, progress=False)
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    with pytest.raises(
        CheckpointError, match=r"holds adapter_model.bin, expected adapter_model.safetensors; save the adapter"
    ):
        convert(sharded, tmp_path / "out", adapter=adapter, progress=False)
    write_adapter(tmp_path / "short", factors(QUERY, 128, 64))
    path = tmp_path / "short" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match=r"adapter_model.safetensors: is truncated"):
        convert(sharded, tmp_path / "out", adapter=tmp_path / "short", progress=False)


def test_it_is_not_merged_into_codes(sharded, tmp_path):
    adapter = write_adapter(tmp_path / "adapter", factors(QUERY, 128, 64))
    convert(sharded, tmp_path / "small", quantize="int8", progress=False)
    with pytest.raises(CheckpointError, match="is quantised, and an adapter is merged into weights before they are rounded"):
        convert(tmp_path / "small", tmp_path / "out", adapter=adapter, progress=False)


def test_bfloat16_factors(sharded, tmp_path):
    tensors = {name: value.astype(DTYPES["BF16"]) for name, value in factors(QUERY, 128, 64).items()}
    found, _ = merged(sharded, write_adapter(tmp_path / "adapter", tensors), tmp_path / "out")
    before = tensors_of(sharded)
    a, b = (tensors[f"{PEFT}{QUERY}.lora_{part}.weight"].astype(np.float32) for part in "AB")
    check(found, before, {f"{QUERY}.weight": wide(before, QUERY) + np.float32(2) * (b @ a)})
