"""Configurations as scripts use them: made from nothing, changed, asked, copied, compared, saved and read again."""

import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import ms_omni
from ms_omni import Qwen3OmniMoeConfig, Qwen3OmniMoeTalkerConfig, Qwen3OmniMoeTextConfig, Qwen3OmniMoeThinkerConfig
from ms_omni.config import ConfigSection, load_named_config
from ms_omni.errors import ConfigError, InputError
from tests.config import geometry

DATA = Path(__file__).parent / "data"
CLASSES = [name for name in ms_omni.__all__ if name.startswith("Qwen") and name.endswith("Config")]
SECTIONS = [cls for name in CLASSES if issubclass(cls := getattr(ms_omni, name), ConfigSection)]


def small_thinker() -> Qwen3OmniMoeThinkerConfig:
    return Qwen3OmniMoeThinkerConfig(**copy.deepcopy(geometry.THINKER))


def section_of(config: Qwen3OmniMoeConfig, cls: type) -> ConfigSection:
    for key in cls.section_path:
        config = getattr(config, key)
    return config


def test_every_configuration_class_of_transformers_module_exists():
    expected = {
        "",
        "Thinker",
        "Text",
        "AudioEncoder",
        "VisionEncoder",
        "Talker",
        "TalkerText",
        "TalkerCodePredictor",
        "Code2Wav",
    }
    assert set(CLASSES) == {f"Qwen3OmniMoe{name}Config" for name in expected}
    assert len(SECTIONS) == len(expected)


@pytest.mark.parametrize("cls", SECTIONS)
def test_without_arguments_it_is_the_published_one(cls):
    config = cls()
    assert config == section_of(load_named_config("published"), cls)
    assert config.initializer_range == 0.02 and config.to_dict()["initializer_range"] == 0.02
    assert cls.from_dict(json.loads(config.to_json_string())) == config
    assert cls.from_dict({}) == config or cls is Qwen3OmniMoeThinkerConfig


def test_the_geometry_of_transformers_tests_loads():
    config = small_thinker()
    text = config.text_config
    assert (text.head_dim, text.mrope_section, text.norm_topk_prob) == (8, [1, 1, 2], True)
    assert (config.audio_config.conv_chunksize, config.audio_config.activation_function) == (500, "gelu")
    assert (config.vision_config.hidden_act, config.vision_config.num_position_embeddings) == ("quick_gelu", 2304)
    assert (config.vision_config.mlp_ratio, text.pad_token_id, text.max_window_layers) == (4, 0, 3)  # not read, but kept
    assert Qwen3OmniMoeThinkerConfig.validated(config) is config


@pytest.mark.parametrize("version", ["4.57", "5.23"])
def test_what_transformers_saves_of_it_loads_strictly_and_without_loss(version, tmp_path):
    content = json.loads((DATA / f"small_thinker_saved_by_{version}.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(content))
    config = Qwen3OmniMoeThinkerConfig.from_pretrained(tmp_path)
    assert config == small_thinker() and config.to_dict() == content


def test_inherited_keys_of_an_older_transformers_object_mean_nothing():
    """`to_dict` of 4.57 says tie_word_embeddings: true for thinker and talker, out of its base class; 5.x means it."""
    old = {**small_thinker().to_dict(), "tie_word_embeddings": True, "tie_encoder_decoder": False}
    assert Qwen3OmniMoeThinkerConfig.from_dict(old) == small_thinker()
    old = {**Qwen3OmniMoeTalkerConfig().to_dict(), "tie_word_embeddings": True, "tie_encoder_decoder": False}
    assert Qwen3OmniMoeTalkerConfig.from_dict(old) == Qwen3OmniMoeTalkerConfig()


def test_objects_of_other_libraries_are_taken_as_sections_and_whole():
    class Foreign:
        def __init__(self, content):
            self.content = content

        def to_dict(self):
            return self.content

    parts = {key: Foreign(value) if key.endswith("_config") else value for key, value in geometry.THINKER.items()}
    assert Qwen3OmniMoeThinkerConfig(**parts) == small_thinker()
    assert Qwen3OmniMoeThinkerConfig.validated(Foreign(geometry.THINKER)) == small_thinker()
    config = small_thinker()
    config.text_config = Foreign({**geometry.TEXT, "vocab_size": 50})
    assert config.vocab_size == 50


def test_what_follows_from_other_sizes_follows_from_those_given():
    text = Qwen3OmniMoeTextConfig(hidden_size=96, num_attention_heads=4)
    assert (text.head_dim, text.mrope_section) == (24, [4, 4, 4])
    assert Qwen3OmniMoeTextConfig(head_dim=64).mrope_section == [11, 11, 10]
    predictor = ms_omni.Qwen3OmniMoeTalkerCodePredictorConfig(
        vocab_size=100, hidden_size=32, num_attention_heads=4, max_window_layers=28, sliding_window=2048
    )
    assert (predictor.head_dim, predictor.max_window_layers, predictor.sliding_window) == (128, 28, 2048)
    text = Qwen3OmniMoeThinkerConfig.from_dict(
        json.loads((DATA / "small_thinker_saved_by_4.57.json").read_text())
    ).text_config
    assert "head_dim" not in text.to_dict()
    text.hidden_size = 64  # head_dim has been settled, and is written from now on
    assert text.head_dim == text.to_dict()["head_dim"] == 8 and Qwen3OmniMoeTextConfig.from_dict(text.to_dict()) == text
    with pytest.raises(AttributeError, match="use_sliding_window"):
        _ = predictor.use_sliding_window


def test_what_must_be_equal_follows_where_it_is_not_given():
    talker = Qwen3OmniMoeTalkerConfig(num_code_groups=32, text_config={"hidden_size": 512})
    assert (talker.code_predictor_config.num_code_groups, talker.code_predictor_config.hidden_size) == (32, 512)
    config = Qwen3OmniMoeConfig(thinker_config={"text_config": Qwen3OmniMoeTextConfig(hidden_size=64)}, talker_config=talker)
    assert config.thinker_config.audio_config.output_dim == config.thinker_config.vision_config.out_hidden_size == 64
    assert config.code2wav_config.num_quantizers == 32 and config.talker_config is talker
    with pytest.raises(ConfigError, match="talker_config.thinker_hidden_size: got 2048, expected .*hidden_size = 64"):
        Qwen3OmniMoeConfig.validated(config)  # a whole section given says all of its values
    assert Qwen3OmniMoeConfig(thinker_config=config.thinker_config).talker_config.thinker_hidden_size == 64


@pytest.mark.parametrize("spelling", ["rope_scaling", "rope_parameters"])
def test_rope_in_either_spelling(spelling):
    text = {key: value for key, value in geometry.TEXT.items() if key != "rope_parameters"}
    config = Qwen3OmniMoeTextConfig(**{**text, spelling: geometry.ROPE})
    assert config == small_thinker().text_config
    assert config.rope_scaling["mrope_section"] == [1, 1, 2] and config.rope_parameters["rope_theta"] == 1e6
    config = Qwen3OmniMoeTextConfig.from_dict({**text, spelling: geometry.ROPE})
    setattr(config, spelling, {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 5.0})
    assert (config.rope_theta, config.mrope_section) == (5.0, [2, 1, 1])
    assert Qwen3OmniMoeTextConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ConfigError, match='rope_type: got "yarn"'):
        setattr(config, spelling, {"rope_type": "yarn", "factor": 4.0})


def test_values_are_checked_when_they_are_set():
    text = Qwen3OmniMoeConfig().thinker_config.text_config
    text.num_hidden_layers = 2
    text.rms_norm_eps = 1
    assert text.num_hidden_layers == 2 and text.to_dict()["num_hidden_layers"] == 2
    for key, value, message in [
        ("hidden_size", "64", 'hidden_size: got "64", expected an integer of at least 1'),
        ("hidden_size", True, "got true"),
        ("rms_norm_eps", float("inf"), "expected a positive number"),
        ("mlp_only_layers", [1.5], "expected a list of layer numbers"),
        ("hidden_act", "relu", 'expected "silu"'),
    ]:
        with pytest.raises(ConfigError, match=message):
            setattr(text, key, value)
    with pytest.raises(ConfigError, match=r"text_config.vocab_size: got 0.*\n.*text_config.num_experts: got -1"):
        Qwen3OmniMoeThinkerConfig(text_config={"vocab_size": 0, "num_experts": -1})


def test_what_does_not_fit_together_is_told_when_a_model_is_built():
    config = Qwen3OmniMoeConfig()
    config.thinker_config.text_config.num_hidden_layers = 2
    config.thinker_config.text_config.mlp_only_layers.append("x")  # past every check but the last
    with pytest.raises(ConfigError, match="1 problem:\n  thinker_config.text_config.mlp_only_layers: got"):
        Qwen3OmniMoeConfig.validated(config)
    config.thinker_config.text_config.mlp_only_layers = []
    with pytest.raises(ConfigError, match="accept_hidden_layer: got 24, expected at most .*num_hidden_layers = 2"):
        Qwen3OmniMoeConfig.validated(config)
    config.talker_config.accept_hidden_layer = 1
    assert Qwen3OmniMoeConfig.validated(config) is config


@pytest.mark.parametrize("cls", SECTIONS)
def test_sizes_that_no_model_has_are_refused_at_once(cls):
    """10^9 layers would be built, one by one, before anything is compared with the weights."""
    config = cls()
    sizes = [name for name, field in cls.model_fields.items() if isinstance(getattr(config, name), int)]
    sizes = [name for name in sizes if "id" not in name.split("_") and not isinstance(getattr(config, name), bool)]
    unbounded = {"max_position_embeddings"}  # never allocated
    for name in set(sizes) - unbounded:
        with pytest.raises(ConfigError, match=rf"{name}: got \d+, expected an integer of at least . and at most \d+"):
            cls(**{name: 10**9})
        with pytest.raises(ConfigError, match=f"{name}: got "):
            cls(**{name: 2**40})
    for name in {"upsample_rates", "upsampling_ratios", "deepstack_visual_indexes", "mlp_only_layers"} & set(
        cls.model_fields
    ):
        with pytest.raises(ConfigError, match=f"{name}: got .*expected .*"):
            cls(**{name: [2] * 100_000})


def test_numbers_of_numpy_and_whole_floats_are_numbers():
    text = Qwen3OmniMoeTextConfig(hidden_size=np.int64(64), vocab_size=99.0, rms_norm_eps=np.float32(0.5))
    assert [type(value) for value in (text.hidden_size, text.vocab_size, text.rms_norm_eps)] == [int, int, float]
    json.dumps(text.to_dict())


def test_other_names_read_and_set_the_same_value():
    config = Qwen3OmniMoeConfig()
    thinker = config.thinker_config
    assert (
        config.get_text_config() is config.get_text_config(decoder=True) is thinker.get_text_config() is thinker.text_config
    )
    assert config.talker_config.get_text_config() is config.talker_config.text_config
    assert thinker.vision_config.get_text_config() is thinker.vision_config
    assert (config.hidden_size, config.vocab_size, thinker.num_hidden_layers) == (2048, 152064, 48)
    thinker.audio_config.num_hidden_layers = 3
    assert thinker.audio_config.encoder_layers == 3 and thinker.audio_config.to_dict()["encoder_layers"] == 3
    assert config.talker_config.text_config.num_local_experts == 128
    thinker.tie_word_embeddings = True
    assert thinker.text_config.tie_word_embeddings
    assert thinker.to_dict()["tie_word_embeddings"] and thinker.to_dict()["text_config"]["tie_word_embeddings"]
    assert Qwen3OmniMoeConfig.model_type == config.model_type == "qwen3_omni_moe"
    assert config.sub_configs.keys() == {"thinker_config", "talker_config", "code2wav_config"}
    assert config.architectures is None and not config.is_encoder_decoder and thinker.text_config.pad_token_id is None
    with pytest.raises(AttributeError, match="nothing_like_this"):
        _ = config.nothing_like_this


def test_a_name_that_stood_in_the_file_beside_its_field_follows_it():
    content = json.loads((DATA / "small_thinker_saved_by_4.57.json").read_text())  # has the audio's num_hidden_layers too
    config = Qwen3OmniMoeThinkerConfig.from_dict(content)
    config.audio_config.encoder_layers = 1
    audio = config.to_dict()["audio_config"]
    assert (audio["encoder_layers"], audio["num_hidden_layers"]) == (1, 1)


def test_dtype_and_attention_are_kept_as_set():
    config = Qwen3OmniMoeConfig(torch_dtype="bfloat16", attn_implementation="eager")
    assert config.dtype == config.torch_dtype == "bfloat16"
    assert config._attn_implementation == config.thinker_config.text_config._attn_implementation == "eager"
    config._attn_implementation = "sdpa"
    assert config.talker_config._attn_implementation == "sdpa" and "sdpa" not in config.to_json_string()
    config.dtype = np.float16
    assert config.to_dict()["dtype"] == "float16" and "torch_dtype" not in config.to_dict()
    config.torch_dtype = "torch.float32"
    assert config.dtype == "float32"


def test_copies_share_nothing_and_are_equal():
    config = small_thinker()
    for other in (copy.deepcopy(config), copy.copy(config), config.copy(), pickle.loads(pickle.dumps(config))):
        assert other == config and other.to_dict() == config.to_dict()
        other.text_config.vocab_size, other.new_key = 50, 1
        assert other != config and config.vocab_size == 99 and "new_key" not in config.to_dict()
    assert config != config.to_dict() and config != config.text_config


def test_update_changes_the_named_values_of_a_section_only():
    config = small_thinker()
    config.update({"text_config": {"num_experts": 4}, "note": "kept"})
    assert config.text_config == small_thinker().text_config.copy(num_experts=4)
    assert config.note == config.to_dict()["note"] == "kept"
    with pytest.raises(ConfigError, match="num_experts_per_tok: got 9, expected at most num_experts = 8"):
        small_thinker().copy(text_config={"num_experts_per_tok": 9})


def test_saved_read_and_overridden(tmp_path):
    config = small_thinker()
    config.save_pretrained(tmp_path / "some" / "model")
    assert [path.name for path in (tmp_path / "some" / "model").iterdir()] == ["config.json"]  # nothing temporary stays
    read = Qwen3OmniMoeThinkerConfig.from_pretrained(tmp_path / "some", subfolder="model")
    assert read == config and read.to_dict() == config.to_dict() and read.name_or_path == str(tmp_path / "some")
    assert Qwen3OmniMoeTextConfig.from_pretrained(tmp_path / "some" / "model") == config.text_config
    changed, unused = Qwen3OmniMoeThinkerConfig.from_pretrained(
        tmp_path / "some" / "model", text_config={"num_experts": 4}, dtype="float16", foo=1, return_unused_kwargs=True
    )
    assert changed.text_config.num_experts == 4 and changed.text_config.vocab_size == 99
    assert changed.dtype == "float16" and unused == {"foo": 1}
    with pytest.warns(UserWarning, match="Qwen3OmniMoeThinkerConfig has no foo; left out"):
        Qwen3OmniMoeThinkerConfig.from_pretrained(tmp_path / "some" / "model", foo=1)
    with pytest.raises(ConfigError, match="num_experts_per_tok: got 2, expected at most num_experts = 1"):
        Qwen3OmniMoeThinkerConfig.from_pretrained(tmp_path / "some" / "model", text_config={"num_experts": 1})


def test_a_name_is_looked_up_on_a_hub(tmp_path, monkeypatch):
    asked = {}
    small_thinker().save_pretrained(tmp_path)
    monkeypatch.setattr("ms_omni.config.interface.resolve", lambda name, **how: asked.update(how, name=name) or tmp_path)
    config = Qwen3OmniMoeThinkerConfig.from_pretrained("Qwen/Qwen3-Omni-tiny", revision="main", audio_token_id=10)
    assert asked == {"name": "Qwen/Qwen3-Omni-tiny", "weights": False, "revision": "main"}
    assert config.audio_token_id == 10 and config.name_or_path == "Qwen/Qwen3-Omni-tiny"


def test_what_is_no_configuration_is_one_clear_error(tmp_path):
    with pytest.raises(InputError, match="got None as a checkpoint"):
        Qwen3OmniMoeConfig.from_pretrained(None)
    with pytest.raises(ConfigError, match="the configuration is 3, expected an object"):
        Qwen3OmniMoeConfig.from_dict(3)
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ConfigError, match="nested too deep"):
        Qwen3OmniMoeConfig.from_dict({"new": deep})


def test_json_text_and_file(tmp_path):
    config = small_thinker()
    assert json.loads(config.to_json_string()) == json.loads(str(config).partition(" ")[2]) == config.to_dict()
    assert config.to_diff_dict() == config.to_dict()
    config.to_json_file(tmp_path / "thinker.json")
    assert Qwen3OmniMoeThinkerConfig.from_json_file(tmp_path / "thinker.json") == config


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    config = small_thinker()
    path = config.save_pretrained(tmp_path)
    before = path.read_text()
    config.note = object()
    with pytest.raises(TypeError):
        config.save_pretrained(tmp_path)
    assert path.read_text() == before and list(tmp_path.iterdir()) == [path]


def test_a_section_that_reads_as_off_is_kept_in_the_file(tmp_path):
    content = {**load_named_config("tiny").to_dict(), "enable_audio_output": False}
    config = Qwen3OmniMoeConfig.from_dict(content)
    assert config.talker_config is None and config.to_dict() == content


def test_the_command_line_and_the_package_stay_light():
    code = (
        "import sys, ms_omni; assert 'pydantic' not in sys.modules; from ms_omni import Qwen3OmniMoeConfig;"
        "Qwen3OmniMoeConfig(); print(sorted({'mindspore', 'numpy', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
