"""The tiny checkpoint: reproducible, complete, alive."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from ms_omni.checkpoint import load_checkpoint
from ms_omni.config import Qwen3OmniMoeConfig, load_named_config
from ms_omni.errors import CheckpointError, ConfigError, InputError
from ms_omni.tiny import random_weight, write_tiny_checkpoint
from tests.checkpoint.conftest import tensors_of
from tests.checkpoint.test_load import full, values


def test_same_seed_same_bytes(tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_tiny_checkpoint(tmp_path / name, seed=seed)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "b").iterdir())
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)
    first, other = tensors_of(tmp_path / "a"), tensors_of(tmp_path / "c")
    assert first.keys() == other.keys()
    assert all(not np.array_equal(value, other[name]) for name, value in first.items())


@pytest.mark.parametrize("geometry", ["tiny", "odd"])
@pytest.mark.parametrize("talker", [True, False])
def test_it_loads_completely_and_is_not_degenerate(tmp_path, geometry, talker):
    config = write_tiny_checkpoint(tmp_path / "new", geometry=geometry, talker=talker, shards=4, dtype="float16")
    assert len(list((tmp_path / "new").glob("*.safetensors"))) == 4
    assert config == Qwen3OmniMoeConfig.from_pretrained(tmp_path / "new")
    assert (config.talker_config is not None) == talker
    model = full(tmp_path / "new")
    assert load_checkpoint(model, tmp_path / "new").unused == ()
    for name, value in values(model).items():
        assert (np.isfinite(value).all() and value.std() > 0) or value.size == 1, name
        assert 1e-3 < np.abs(value).mean() < 3, name


def test_ids_are_the_tokenizers_and_in_the_vocabulary(tmp_path):
    config = write_tiny_checkpoint(tmp_path / "new")
    tokens = json.loads((tmp_path / "new" / "tokenizer.json").read_text())
    ids = {token["content"]: token["id"] for token in tokens["added_tokens"]}
    assert config.im_start_token_id == ids["<|im_start|>"]
    assert config.thinker_config.audio_token_id == config.talker_config.audio_token_id == ids["<|audio_pad|>"]
    assert max([*ids.values(), *tokens["model"]["vocab"].values()]) < config.thinker_config.text_config.vocab_size
    settings = json.loads((tmp_path / "new" / "preprocessor_config.json").read_text())
    assert settings["patch_size"] == config.thinker_config.vision_config.patch_size


def test_geometry_from_a_dict_a_file_a_folder_and_an_object(tmp_path):
    content = load_named_config("odd").to_dict()
    content["thinker_config"]["vision_config"]["patch_size"] = 8
    first = write_tiny_checkpoint(tmp_path / "dict", geometry=content)
    again = [
        write_tiny_checkpoint(tmp_path / "folder", geometry=tmp_path / "dict"),
        write_tiny_checkpoint(tmp_path / "file", geometry=tmp_path / "dict" / "config.json"),
        write_tiny_checkpoint(tmp_path / "object", geometry=first),
    ]
    assert all(config == first for config in again)
    assert json.loads((tmp_path / "dict" / "preprocessor_config.json").read_text())["patch_size"] == 8


def test_a_name_comes_before_a_folder_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "odd").mkdir()
    assert write_tiny_checkpoint(tmp_path / "new", geometry="odd").thinker_config.text_config.num_hidden_layers == 5


def test_a_disk_that_is_too_small(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=70_000_000_000))
    with pytest.raises(CheckpointError, match="70,000,000,000 bytes free, 70,519,637,090 are needed"):
        write_tiny_checkpoint(tmp_path / "new", geometry="published")
    assert not list(tmp_path.iterdir())


def test_values_depend_on_seed_and_name_only():
    assert np.array_equal(random_weight(0, "a.weight", (3, 4)), random_weight(0, "a.weight", (3, 4)))
    assert not np.array_equal(random_weight(0, "a.weight", (3, 4)), random_weight(0, "b.weight", (3, 4)))


def test_mistakes(tmp_path):
    with pytest.raises(InputError, match="dtype is 'int8'"):
        write_tiny_checkpoint(tmp_path / "new", dtype="int8")
    with pytest.raises(InputError, match="shards is 0"):
        write_tiny_checkpoint(tmp_path / "new", shards=0)
    with pytest.raises(ConfigError, match="no configuration named 'huge'"):
        write_tiny_checkpoint(tmp_path / "new", geometry="huge")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    with pytest.raises(CheckpointError, match="not an empty folder"):
        write_tiny_checkpoint(tmp_path / "full")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
