"""config.json: every spelling gives the same object, and everything that does not fit is listed in one error."""

import copy
import json
from pathlib import Path

import pytest

from ms_omni.config import (
    ConfigSection,
    Qwen3OmniMoeConfig,
    Qwen3OmniMoeThinkerConfig,
    load_named_config,
    named_config_files,
)
from ms_omni.errors import CheckpointError, ConfigError

DATA = Path(__file__).parent / "data"
ABSENT = object()


def read(name: str) -> dict:
    return json.loads((DATA / f"{name}.json").read_text())


@pytest.fixture
def published() -> dict:
    return copy.deepcopy(load_named_config("instruct").to_dict())


def put(content: dict, path: str, value) -> dict:
    *parents, last = path.split(".")
    for name in parents:
        content = content[name]
    if value is ABSENT:
        del content[last]
    else:
        content[last] = value
    return content


def from_file(content: dict, folder: Path) -> Qwen3OmniMoeConfig:
    (folder / "config.json").write_text(json.dumps(content))
    return Qwen3OmniMoeConfig.from_pretrained(folder)


@pytest.mark.parametrize("version", ["4.57", "5.23"])
def test_saved_by_transformers_is_the_published_configuration(version, published):
    ours = Qwen3OmniMoeConfig.from_dict(published)
    saved = Qwen3OmniMoeConfig.from_dict(read(f"instruct_saved_by_{version}"))
    assert saved == ours
    assert Qwen3OmniMoeThinkerConfig.from_dict(read(f"thinker_saved_by_{version}")) == ours.thinker_config
    assert saved.talker_config.text_config.num_experts == 128  # 5.23 writes num_local_experts


def test_thinker_from_a_full_folder_or_its_own(tmp_path, published):
    config = Qwen3OmniMoeConfig.from_dict(published)
    config.save_pretrained(tmp_path / "full")
    config.thinker_config.save_pretrained(tmp_path / "alone")
    assert Qwen3OmniMoeConfig.from_pretrained(tmp_path / "full") == config
    assert Qwen3OmniMoeThinkerConfig.from_pretrained(tmp_path / "full") == config.thinker_config
    assert Qwen3OmniMoeThinkerConfig.from_pretrained(tmp_path / "alone") == config.thinker_config
    (tmp_path / "alone" / "config.json").write_text(json.dumps(read("thinker_saved_by_4.57")))
    with pytest.raises(ConfigError, match="thinker without talker.*ThinkerForConditionalGeneration"):
        Qwen3OmniMoeConfig.from_pretrained(tmp_path / "alone")


def test_export_is_lossless_and_follows_replaced_fields(published):
    published["something_new"] = {"kept": [1, 2]}
    config = Qwen3OmniMoeConfig.from_dict(published)
    assert config.to_dict() == published
    for content in (published, read("instruct_saved_by_5.23")):
        config = Qwen3OmniMoeConfig.from_dict(content)
        changed = config.copy(thinker_config={"text_config": {"num_hidden_layers": 40, "rope_theta": 5e5}})
        again = Qwen3OmniMoeConfig.from_dict(changed.to_dict())
        assert again == changed != config
        assert again.to_dict().get("something_new") == content.get("something_new")


def test_speech_that_was_taken_out_is_not_exported(published):
    config = Qwen3OmniMoeConfig.from_dict(published)
    silent = config.copy(enable_audio_output=False, talker_config=None, code2wav_config=None)
    assert "talker_config" not in silent.to_dict() and Qwen3OmniMoeConfig.from_dict(silent.to_dict()) == silent


def test_accepts_objects_with_to_dict(published):
    class Other:
        def to_dict(self):
            return published

    assert Qwen3OmniMoeConfig.from_dict(Other()) == Qwen3OmniMoeConfig.from_dict(published)


@pytest.mark.parametrize("present", [True, False])
def test_without_audio_output_speech_is_left_out(published, present):
    published["enable_audio_output"] = False
    for name in ("talker_config", "code2wav_config"):
        published[name] = {"present": "but unused"} if present else None
    config = Qwen3OmniMoeConfig.from_dict(published)
    assert config.talker_config is None and config.code2wav_config is None


def test_named_configurations():
    assert set(named_config_files()) >= {"instruct", "thinking", "captioner", "tiny", "odd", "mini", "mid"}
    for name in named_config_files():
        assert isinstance(load_named_config(name), ConfigSection)
    assert load_named_config("thinking").talker_config is None
    assert load_named_config("published") == load_named_config("instruct")
    odd = load_named_config("odd")
    sparse = [odd.thinker_config.text_config.is_sparse_layer(n) for n in range(5)]
    assert sparse == [False, True, False, False, False]
    assert odd.talker_config.text_config.is_sparse_layer(2)  # listed in mlp_only_layers, which the talker ignores
    assert odd.code2wav_config.samples_per_frame == 72
    with pytest.raises(ConfigError, match="no configuration named 'large'; expected one of captioner"):
        load_named_config("large")


REQUIRED = [
    "enable_audio_output",
    "im_start_token_id",
    "tts_eos_token_id",
    "assistant_token_id",
    "thinker_config",
    "thinker_config.audio_token_id",
    "thinker_config.position_id_per_seconds",
    "thinker_config.vision_start_token_id",
    "thinker_config.text_config",
    "thinker_config.text_config.num_experts",
    "thinker_config.text_config.rms_norm_eps",
    "thinker_config.text_config.hidden_act",
    "thinker_config.audio_config.n_window",
    "thinker_config.audio_config.n_window_infer",
    "thinker_config.vision_config.deepstack_visual_indexes",
    "thinker_config.vision_config.spatial_merge_size",
    "talker_config",
    "talker_config.accept_hidden_layer",
    "talker_config.codec_think_bos_id",
    "talker_config.speaker_id",
    "talker_config.text_config.num_experts",
    "talker_config.text_config.norm_topk_prob",
    "talker_config.text_config.shared_expert_intermediate_size",
    "talker_config.code_predictor_config.num_code_groups",
    "code2wav_config",
    "code2wav_config.sliding_window",
    "code2wav_config.upsample_rates",
]


@pytest.mark.parametrize("path", REQUIRED)
def test_a_missing_key_is_named_with_its_path(published, path, tmp_path):
    put(published, path, ABSENT)
    with pytest.raises(ConfigError, match=rf"1 problem:\n  {path}: missing"):
        from_file(published, tmp_path)
    assert Qwen3OmniMoeConfig.from_dict(published) == load_named_config("published")  # which fills in what is missing


@pytest.mark.parametrize("key", ["rope_theta", "rope_scaling"])
def test_missing_rope_settings(published, key, tmp_path):
    put(published, f"thinker_config.text_config.{key}", ABSENT)
    with pytest.raises(ConfigError, match=r"thinker_config.text_config.(rope_theta|mrope_section): missing \("):
        from_file(published, tmp_path)


def scaled(**changes) -> dict:
    return {"rope_type": "default", "mrope_section": [24, 20, 20], **changes}


INVALID = [
    ("thinker_config.text_config.hidden_size", "2048", r'got "2048", expected an integer'),
    ("thinker_config.text_config.hidden_size", True, "got true, expected an integer"),
    ("thinker_config.text_config.num_hidden_layers", 0, "expected an integer of at least 1"),
    ("thinker_config.text_config.num_hidden_layers", 1.5, "expected an integer"),
    ("thinker_config.text_config.rms_norm_eps", float("nan"), "expected a positive number"),
    ("thinker_config.text_config.num_key_value_heads", 5, "expected a divisor of num_attention_heads = 32"),
    ("thinker_config.text_config.head_dim", 127, "expected an even number"),
    ("thinker_config.text_config.num_experts_per_tok", 129, "expected at most num_experts = 128"),
    ("thinker_config.text_config.mlp_only_layers", [3, 48], r"got layers \[48\]"),
    ("thinker_config.text_config.mlp_only_layers", "3", "expected a list"),
    ("thinker_config.text_config.hidden_act", "relu", r'got "relu", expected "silu"'),
    ("thinker_config.text_config.attention_bias", 1, "expected true or false"),
    ("thinker_config.text_config.sliding_window", 4096, "expected null"),
    ("thinker_config.text_config.rope_scaling", scaled(rope_type="yarn"), r'rope_type: got "yarn"'),
    (
        "thinker_config.text_config.rope_scaling",
        scaled(mrope_section=[24, 20]),
        "three numbers that sum to head_dim / 2",
    ),
    ("thinker_config.text_config.rope_scaling", scaled(mrope_section=[24, 20, 21]), "sum to head_dim / 2 = 64"),
    ("thinker_config.text_config.rope_scaling", scaled(mrope_interleaved=False), "expected true"),
    ("thinker_config.text_config.rope_scaling", scaled(partial_rotary_factor=0.5), "expected 1"),
    ("thinker_config.text_config.rope_parameters", {"rope_theta": 5.0}, "expected one value"),
    ("thinker_config.text_config", [], "expected an object"),
    ("thinker_config.image_token_id", 152064, "expected an id below"),
    ("thinker_config.image_token_id", 151675, "expected three different ids"),
    ("thinker_config.audio_config.activation_function", "swish", "expected one of"),
    ("thinker_config.audio_config.scale_embedding", True, "only value supported"),
    ("thinker_config.audio_config.encoder_attention_heads", 19, "expected a multiple of encoder_attention_heads"),
    ("thinker_config.audio_config.n_window_infer", 99, "at least one chunk"),
    ("thinker_config.audio_config.output_dim", 1024, "hidden_size = 2048"),
    ("thinker_config.vision_config.num_heads", 7, "expected a multiple of"),
    ("thinker_config.vision_config.num_position_embeddings", 2300, "expected a square"),
    ("thinker_config.vision_config.deepstack_visual_indexes", [8, 27], "below depth = 27"),
    ("thinker_config.vision_config.out_hidden_size", 1024, "hidden_size = 2048"),
    ("talker_config.thinker_hidden_size", 1024, "hidden_size = 2048"),
    ("talker_config.accept_hidden_layer", 49, "at most"),
    ("talker_config.codec_eos_token_id", 3072, "below text_config.vocab_size = 3072"),
    ("talker_config.speaker_id", {"ethan": 4000}, r"speaker_id.ethan: got 4000"),
    ("talker_config.speaker_id", {}, "at least one entry"),
    ("talker_config.code_predictor_config.hidden_size", 512, "hidden_size = 1024"),
    ("talker_config.code_predictor_config.num_code_groups", 8, "num_code_groups = 16"),
    ("talker_config.tie_word_embeddings", True, "only value supported"),
    ("talker_config.spatial_merge_size", 3, "spatial_merge_size = 2"),
    ("code2wav_config.num_quantizers", 8, "num_code_groups = 16"),
    ("code2wav_config.decoder_dim", 1000, "expected a multiple of 16"),
    ("tts_pad_token_id", 999999, "expected an id below"),
    ("model_type", "qwen2_5_omni", "expected 'qwen3_omni_moe'"),
]


@pytest.mark.parametrize("path, value, message", INVALID, ids=[f"{path}={value}"[:80] for path, value, _ in INVALID])
def test_a_value_that_does_not_fit_is_an_error(published, path, value, message):
    put(published, path, value)
    with pytest.raises(ConfigError, match=message):
        Qwen3OmniMoeConfig.from_dict(published)


def test_all_problems_come_in_one_error(published):
    put(published, "thinker_config.text_config.num_experts", ABSENT)
    put(published, "thinker_config.audio_config.n_window", "wide")
    put(published, "talker_config.codec_bos_id", ABSENT)
    put(published, "code2wav_config.rope_theta", -1)
    with pytest.raises(ConfigError, match="4 problems") as caught:
        Qwen3OmniMoeConfig.from_dict(published, "here/config.json", strict=True)
    for part in (
        "here/config.json",
        "text_config.num_experts: missing",
        'n_window: got "wide"',
        "codec_bos_id",
        "got -1",
    ):
        assert part in str(caught.value)


def test_replacing_a_field_is_checked_too():
    text = load_named_config("tiny").thinker_config.text_config
    with pytest.raises(ConfigError, match="num_experts_per_tok: got 9"):
        text.copy(num_experts_per_tok=9)


def test_head_size_and_tied_embeddings_have_the_reference_meaning(published):
    put(published, "thinker_config.text_config.head_dim", ABSENT)
    put(published, "thinker_config.text_config.rope_scaling.mrope_section", [12, 10, 10])
    put(published, "thinker_config.text_config.tie_word_embeddings", True)
    assert Qwen3OmniMoeConfig.from_dict(published).thinker_config.text_config.head_dim == 64
    assert Qwen3OmniMoeConfig.from_dict(published).thinker_config.text_config.tie_word_embeddings
    published["thinker_config"]["tie_word_embeddings"] = False  # 5.x always writes and reads this one
    assert not Qwen3OmniMoeConfig.from_dict(published).thinker_config.text_config.tie_word_embeddings


def test_wrong_folders(tmp_path):
    with pytest.raises(CheckpointError, match="Qwen/Qwen3-Omni-30B-A3B-Instruct"):
        Qwen3OmniMoeConfig.from_pretrained("Qwen/Qwen3-Omni-30B-A3B-Instruct", cache_dir=tmp_path, local_files_only=True)
    with pytest.raises(CheckpointError, match="is not a folder on this machine"):
        Qwen3OmniMoeConfig.from_pretrained(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"has no config.json \(it holds: notes.txt\)"):
        Qwen3OmniMoeConfig.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="is a file"):
        Qwen3OmniMoeConfig.from_pretrained(tmp_path / "notes.txt")
    for content, message in (
        (b'{"a": ', "not valid JSON"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"[1]", "expected a JSON"),
    ):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(ConfigError, match=message):
            Qwen3OmniMoeConfig.from_pretrained(tmp_path)
