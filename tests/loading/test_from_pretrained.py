"""`from_pretrained` of the model classes: what scripts pass, the order of checks, other forms of weights, names."""

import gc
import json
import shutil
import warnings

import mindspore as ms
import numpy as np
import pytest

from ms_omni import (
    Qwen3OmniMoeCode2Wav,
    Qwen3OmniMoeCode2WavConfig,
    Qwen3OmniMoeConfig,
    Qwen3OmniMoeForConditionalGeneration,
    Qwen3OmniMoeProcessor,
    Qwen3OmniMoeTalkerForConditionalGeneration,
    Qwen3OmniMoeThinkerForConditionalGeneration,
    errors,
    load_arguments,
)
from ms_omni.checkpoint import CheckpointReader
from ms_omni.checkpoint.safetensors import INDEX_FILE
from ms_omni.errors import CheckpointError, ConfigError, InputError, OmniError
from ms_omni.modeling.layers import Linear
from tests.checkpoint.conftest import rewrite, tensors_of

SPOKEN = {"talker_config", "code2wav_config"}
VOCODER = Qwen3OmniMoeCode2Wav  # the quickest to load


@pytest.fixture
def copy(tiny_checkpoint, tmp_path):
    """A copy of the tiny checkpoint, to be changed."""
    return shutil.copytree(tiny_checkpoint, tmp_path / "copy")


@pytest.fixture(scope="module")
def content(tiny_checkpoint):
    return json.loads((tiny_checkpoint / "config.json").read_text())


def put(config, path, value):
    """A deep copy of a config's content with another value at `path`."""
    config = json.loads(json.dumps(config))
    *owners, last = path.split(".")
    owner = config
    for key in owners:
        owner = owner[key]
    owner[last] = value
    return config


def same_weights(model, other):
    mine, theirs = (dict(cell.parameters_and_names()) for cell in (model, other))
    return mine.keys() == theirs.keys() and all((mine[n].asnumpy() == theirs[n].asnumpy()).all() for n in mine)


@pytest.fixture
def nothing_is_built(monkeypatch):
    """Making a layer of the model is an error."""

    def fail(*_, **__):
        raise AssertionError("cells were built")

    monkeypatch.setattr(Linear, "__init__", fail)


# -- the first line of scripts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"device_map": "auto", "dtype": "auto", "attn_implementation": "flash_attention_2"},
        {"device_map": {"": 0}, "torch_dtype": "auto", "trust_remote_code": True, "low_cpu_mem_usage": True},
        {"mindspore_dtype": ms.float32, "use_flash_attention_2": True, "local_files_only": True},
        {"max_memory": {0: "20GB"}, "offload_folder": "off", "use_safetensors": True, "attn_implementation": {"": "sdpa"}},
        {"load_in_8bit": False, "quantization_config": None, "ignore_mismatched_sizes": True, "_from_auto": True},
    ],
)
def test_first_lines(tiny_checkpoint, options, monkeypatch):
    monkeypatch.setattr(load_arguments, "_warned", set())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = VOCODER.from_pretrained(pretrained_model_name_or_path=str(tiny_checkpoint), **options)
    assert model.dtype == ms.float32 and model.name_or_path == str(tiny_checkpoint)
    said = [item for item in caught if "without effect" in str(item.message)]
    assert len(said) == bool({"device_map", "max_memory"} & options.keys())
    assert all(item.filename == __file__ for item in said)


def test_a_half_type_warns_where_the_script_stands(tiny_checkpoint):
    with pytest.warns(UserWarning, match="no bfloat16 kernels on CPU") as caught:
        VOCODER.from_pretrained(tiny_checkpoint, dtype="torch.bfloat16")
    assert [item.filename for item in caught] == [__file__]


@pytest.mark.parametrize("speaks", ["yes", 1])
def test_wrong_arguments_come_before_the_folder_is_looked_at(speaks):
    load = Qwen3OmniMoeForConditionalGeneration.from_pretrained
    for options, said in (
        ({"load_in_4bit": True}, "load_in_4bit is True"),
        ({"divice_map": "auto"}, "did you mean 'device_map'"),
        ({"dtype": "int8"}, "dtype 'int8' is unknown"),
        ({"enable_audio_output": speaks}, "enable_audio_output is"),
        ({"parallel": "tp"}, "parallel is 'tp'"),
    ):
        with pytest.raises(InputError, match=said):
            load("nowhere/at/all", **options)


def test_a_missing_folder_comes_before_mindspore_is_set_up(nothing_is_built):
    with pytest.raises(CheckpointError, match="is not a folder on this machine"):
        VOCODER.from_pretrained("nowhere/at/all")
    with pytest.raises(InputError, match="got 3 as a checkpoint"):
        VOCODER.from_pretrained(3)


# -- config= and its fields ---------------------------------------------------------------------------------------------


def test_a_configuration_in_every_form(tiny_checkpoint, content, tmp_path):
    config = Qwen3OmniMoeConfig.from_pretrained(tiny_checkpoint)
    (tmp_path / "config.json").write_text(json.dumps(content))
    load = Qwen3OmniMoeThinkerForConditionalGeneration.from_pretrained
    model = load(tiny_checkpoint, config=config.thinker_config)
    assert model.config is config.thinker_config
    for given in (config, content, content["thinker_config"], tmp_path, str(tmp_path)):
        assert load(tiny_checkpoint, config=given).config == config.thinker_config
    for kind, section in ((Qwen3OmniMoeTalkerForConditionalGeneration, "talker_config"), (VOCODER, "code2wav_config")):
        assert kind.from_pretrained(tiny_checkpoint, config=config).config == getattr(config, section)
        assert kind.from_pretrained(tiny_checkpoint, config=content[section]).config == getattr(config, section)


def test_fields_of_the_configuration_as_arguments(tiny_checkpoint):
    load = Qwen3OmniMoeThinkerForConditionalGeneration.from_pretrained
    model = load(tiny_checkpoint, max_position_embeddings=77, position_id_per_seconds=25)
    assert model.config.text_config.max_position_embeddings == 77 and model.config.position_id_per_seconds == 25
    with pytest.raises(ConfigError, match="audio_token_id"):
        load(tiny_checkpoint, audio_token_id=10**9)
    with pytest.raises(CheckpointError, match="does not fit"):
        load(tiny_checkpoint, moe_intermediate_size=96)


def test_no_speech(tiny_checkpoint, content):
    load = Qwen3OmniMoeForConditionalGeneration.from_pretrained
    model = load(tiny_checkpoint, enable_audio_output=False, config=content, key_mapping={"^nothing": ""})
    assert not model.has_talker
    model.enable_talker()
    assert model.has_talker and model.config == Qwen3OmniMoeConfig.from_dict(content)
    silent = {key: value for key, value in put(content, "enable_audio_output", False).items() if key not in SPOKEN}
    assert not load(tiny_checkpoint, config=silent).has_talker
    with pytest.raises(InputError, match="has no talker"):
        load(tiny_checkpoint, config=silent, enable_audio_output=True)
    with pytest.raises(InputError, match="has no talker"):
        VOCODER.from_pretrained(tiny_checkpoint, config=Qwen3OmniMoeConfig.from_dict(silent))


def test_a_configuration_of_another_size_is_one_error(tiny_checkpoint, content, nothing_is_built):
    other = put(content, "code2wav_config.hidden_size", 4096)
    with pytest.raises(CheckpointError, match=r"tensors of another shape(?s:.*)code2wav"):
        VOCODER.from_pretrained(tiny_checkpoint, config=other["code2wav_config"])
    with pytest.raises(CheckpointError, match="ignore_mismatched_sizes=True would leave such weights untrained"):
        VOCODER.from_pretrained(tiny_checkpoint, config=other["code2wav_config"], ignore_mismatched_sizes=True)


COUNTED = (  # the largest numbers that a configuration may hold
    ("thinker_config.text_config.num_hidden_layers", 1024),
    ("thinker_config.text_config.num_experts", 4096),
    ("thinker_config.audio_config.encoder_layers", 1024),
    ("thinker_config.vision_config.depth", 1024),
    ("talker_config.text_config.num_hidden_layers", 1024),
    ("talker_config.text_config.num_experts", 4096),
    ("talker_config.code_predictor_config.num_hidden_layers", 1024),
    ("code2wav_config.num_hidden_layers", 1024),
    ("code2wav_config.upsampling_ratios", [2] * 16),
)
SHAPED = (
    ("thinker_config.audio_config.d_model", 2**17),
    ("thinker_config.vision_config.patch_size", 1024),
    ("thinker_config.vision_config.num_position_embeddings", 2**20),
    ("code2wav_config.codebook_size", 2**20),
)


@pytest.mark.parametrize("path, value", [*COUNTED, *SHAPED, ("thinker_config.text_config.num_hidden_layers", 10**9)])
def test_sizes_are_compared_with_the_file_before_anything_is_built(copy, content, nothing_is_built, path, value):
    (copy / "config.json").write_text(json.dumps(put(content, path, value)))
    with pytest.raises(CheckpointError) as caught:
        Qwen3OmniMoeForConditionalGeneration.from_pretrained(copy)
    if (path, value) in COUNTED:
        number = value if isinstance(value, int) else len(value)
        assert f"{path} says {number}, the weights have " in str(caught.value)
    else:
        assert "tensors of another shape" in str(caught.value) or f"{path}: got {value}" in str(caught.value)


def test_a_part_that_the_file_lacks_is_counted_too(copy, content, nothing_is_built):
    rewrite(copy, {name: value for name, value in tensors_of(copy).items() if not name.startswith("talker.")})
    with pytest.raises(CheckpointError, match="talker_config.text_config.num_hidden_layers says 3, the weights have 0"):
        Qwen3OmniMoeForConditionalGeneration.from_pretrained(copy)


def test_fewer_layers_may_be_asked_for(tiny_checkpoint, copy, content):
    load = Qwen3OmniMoeThinkerForConditionalGeneration.from_pretrained
    errors._warned.clear()
    with pytest.warns(UserWarning, match=r"from_pretrained: \d+ stored tensors of layers beyond .* are left out"):
        short, info = load(tiny_checkpoint, num_hidden_layers=1, output_loading_info=True)
    assert len(short.model.layers) == 1 and "thinker.model.layers.1.mlp.gate.weight" in info["unexpected_keys"]
    whole, ids = load(tiny_checkpoint), np.arange(6)[None]
    first = short(ids, output_hidden_states=True).hidden_states[0]
    assert np.array_equal(first.asnumpy(), whole(ids, output_hidden_states=True).hidden_states[0].asnumpy())
    small = put(content, "code2wav_config.num_hidden_layers", 1)
    with pytest.warns(UserWarning, match="layers beyond"):
        assert len(VOCODER.from_pretrained(tiny_checkpoint, config=small).pre_transformer.layers) == 1
    (copy / "config.json").write_text(json.dumps(small))
    with pytest.raises(CheckpointError, match="tensors that the model does not have"):  # the folder contradicts itself
        VOCODER.from_pretrained(copy)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("share", [1.0, 0.01])
def test_weights_that_are_no_numbers(copy, value, share):
    tensors = tensors_of(copy)
    name = "code2wav.pre_transformer.layers.1.mlp.up_proj.weight"
    spoiled = tensors[name].copy()
    spoiled.reshape(-1)[: int(share * spoiled.size)] = value
    rewrite(copy, {**tensors, name: spoiled})
    with pytest.raises(CheckpointError, match=f"{name} holds NaN or infinite numbers"):
        VOCODER.from_pretrained(copy)


def test_a_model_that_no_memory_holds_is_refused():
    with pytest.raises(ConfigError, match=r"a model of these sizes takes \d+\.\d GB, and this machine has"):
        VOCODER(Qwen3OmniMoeCode2WavConfig(intermediate_size=2**17, hidden_size=2**17, num_attention_heads=4096))


def test_a_long_table_of_positions_costs_nothing(copy, content):
    large = put(content, "thinker_config.audio_config.max_source_positions", 2**16)
    model = Qwen3OmniMoeThinkerForConditionalGeneration.from_pretrained(copy, config=large)
    assert len(model.audio_tower.positions) < 100


# -- other forms of weights ---------------------------------------------------------------------------------------------


def test_weights_from_the_program(tiny_checkpoint, content, tiny_model):
    published = {
        name.removeprefix("code2wav."): array
        for name, array in tensors_of(tiny_checkpoint).items()
        if name.startswith("code2wav.")
    }
    model = VOCODER.from_pretrained(None, config=content, state_dict=published)
    assert same_weights(model, tiny_model.code2wav) and model.name_or_path == ""
    ours = {name: parameter.value() for name, parameter in tiny_model.thinker.parameters_and_names()}
    load = Qwen3OmniMoeThinkerForConditionalGeneration.from_pretrained
    assert same_weights(load(tiny_checkpoint, state_dict=ours), tiny_model.thinker)
    ours.pop("model.norm.weight")
    with pytest.raises(CheckpointError, match=r"the state_dict does not fit(?s:.*)model.norm.weight"):
        load(tiny_checkpoint, state_dict=ours)
    for options in ({}, {"config": content}, {"state_dict": ours}):
        with pytest.raises(InputError, match="needs a folder or name, or config= and state_dict="):
            load(None, **options)
    for state in ({}, [1], {"a": "b"}):
        with pytest.raises(InputError, match="state_dict"):
            load(tiny_checkpoint, state_dict=state)


def test_names_of_the_file_can_be_mapped(copy, tiny_model):
    changed = {f"base.{name}".replace("code2wav.decoder", "code2wav.dec"): array for name, array in tensors_of(copy).items()}
    rewrite(copy, changed)
    with pytest.raises(CheckpointError):
        VOCODER.from_pretrained(copy)
    mapping = {r"^base\.code2wav\.dec\.": "code2wav.decoder.", r"^base\.": ""}
    assert same_weights(VOCODER.from_pretrained(copy, key_mapping=mapping), tiny_model.code2wav)
    with pytest.raises(CheckpointError, match="key_mapping makes it x, as"):
        VOCODER.from_pretrained(copy, key_mapping={".*layers.*": "x"})
    for wrong in ({"(": ""}, ["a"], {1: 2}):
        with pytest.raises(InputError, match="key_mapping"):
            VOCODER.from_pretrained(copy, key_mapping=wrong)


def test_a_variant_and_a_subfolder(copy, tmp_path, tiny_model):
    inside = shutil.move(copy, tmp_path / "repository" / "part")
    (inside / INDEX_FILE).rename(inside / "model.safetensors.index.fp32.json")
    model = VOCODER.from_pretrained(tmp_path / "repository", subfolder="part", variant="fp32")
    assert same_weights(model, tiny_model.code2wav)
    with pytest.raises(CheckpointError, match=r"expected model\.fp16\.safetensors"):
        VOCODER.from_pretrained(inside, variant="fp16")


def test_what_was_loaded(tiny_checkpoint):
    model, info = VOCODER.from_pretrained(tiny_checkpoint, output_loading_info=True)
    assert isinstance(model, VOCODER)
    assert info["missing_keys"] == info["mismatched_keys"] == info["error_msgs"] == []
    others = [name for name in CheckpointReader(tiny_checkpoint).entries if not name.startswith("code2wav.")]
    assert sorted(info["unexpected_keys"]) == sorted(others)


class Generation:
    """A generation config of another library."""

    def to_diff_dict(self):
        return {"eos_token_id": [3, 4], "pad_token_id": 5, "top_k": 1}


@pytest.mark.parametrize("given", [Generation(), {"eos_token_id": [3, 4], "pad_token_id": 5}])
def test_a_generation_config(tiny_checkpoint, given):
    load = Qwen3OmniMoeThinkerForConditionalGeneration.from_pretrained
    known = load(tiny_checkpoint, generation_config=given).generation_config
    assert tuple(known.eos_token_id) == (3, 4) and known.pad_token_id == 5
    with pytest.raises(InputError, match="generation_config"):
        load(tiny_checkpoint, generation_config=3)


def test_quantised_weights_are_refused_by_name(copy, content):
    said = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (copy / "config.json").write_text(json.dumps({**content, "quantization_config": said}))
    with pytest.raises(CheckpointError, match="quantised.*bitsandbytes"):
        VOCODER.from_pretrained(copy)


# -- names --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["hf/hub/models--Someone--Tiny/snapshots/main", "ms/models/Someone/Tiny"])
def test_models_processors_and_configurations_by_name(tiny_checkpoint, tmp_path, monkeypatch, place, content):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "ms"))
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(variable, raising=False)
    with pytest.raises(OmniError, match="hf download Someone/Tiny"):
        VOCODER.from_pretrained("Someone/Tiny")
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).symlink_to(tiny_checkpoint)
    assert VOCODER.from_pretrained("Someone/Tiny", local_files_only=True).name_or_path == "Someone/Tiny"
    assert Qwen3OmniMoeConfig.from_pretrained("Someone/Tiny").to_dict() == content
    np.testing.assert_array_equal(
        Qwen3OmniMoeProcessor.from_pretrained("Someone/Tiny", revision="main")(text="hi")["input_ids"],
        Qwen3OmniMoeProcessor.from_pretrained(tiny_checkpoint)(text="hi")["input_ids"],
    )


@pytest.mark.parametrize("collecting", [True, False])
def test_collections_of_garbage_are_as_they_were(tiny_checkpoint, collecting):
    """They are left out while cells are built."""
    (gc.enable if collecting else gc.disable)()
    try:
        VOCODER.from_pretrained(tiny_checkpoint)
        assert gc.isenabled() is collecting
    finally:
        gc.enable()
