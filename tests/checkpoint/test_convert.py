"""Conversion to our parameter names and back, export, inspection."""

import contextlib
import json
import os
import shutil
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

from ms_omni.checkpoint import CheckpointReader, convert, inspect_checkpoint, load_checkpoint, save_checkpoint
from ms_omni.checkpoint.safetensors import INDEX_FILE, Pending, write_shards
from ms_omni.config import Qwen3OmniMoeConfig
from ms_omni.errors import CheckpointError
from ms_omni.files import OWN_FILES, saved_files
from ms_omni.tiny import write_tiny_checkpoint
from tests.checkpoint.conftest import bits, edit_header, rewrite, tensors_of
from tests.checkpoint.test_load import full, thinker, values


def assert_same_tensors(first, second):
    first, second = tensors_of(first), tensors_of(second)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert (value.dtype, value.shape) == (second[name].dtype, second[name].shape), name
        assert bits(value) == bits(second[name]), name


def test_round_trip_is_bit_exact_and_both_forms_load_alike(sharded, tmp_path):
    there = convert(sharded, tmp_path / "there", shard_bytes=1_000_000)
    back = convert(tmp_path / "there", tmp_path / "back")
    assert (there.form, back.form) == ("ms_omni", "published")
    assert there.nbytes == back.nbytes and len(there.files) > 3
    assert_same_tensors(sharded, tmp_path / "back")
    published, converted = full(sharded), full(tmp_path / "there")
    load_checkpoint(published, sharded)
    load_checkpoint(converted, tmp_path / "there")
    for name, value in values(published).items():
        np.testing.assert_array_equal(values(converted)[name], value)
    assert set(CheckpointReader(tmp_path / "there").entries) == set(values(published))


def test_other_files_are_copied_as_they_are(sharded, tmp_path):
    convert(sharded, tmp_path / "there")
    others = {path.name for path in sharded.iterdir() if not path.name.startswith("model")}
    assert {path.name for path in (tmp_path / "there").iterdir()} == others | {"model.safetensors"}
    for name in others:
        assert (tmp_path / "there" / name).read_bytes() == (sharded / name).read_bytes()


@pytest.mark.parametrize("geometry", ["tiny", "odd"])
def test_mixed_dtypes_special_values_and_constants_survive(tmp_path, geometry):
    write_tiny_checkpoint(tmp_path / "start", geometry=geometry)
    tensors, kinds = tensors_of(tmp_path / "start"), [ml_dtypes.bfloat16, np.float16, np.float32]
    tensors = {name: value.astype(kinds[at % 3]) for at, (name, value) in enumerate(tensors.items())}
    expert = "thinker.model.layers.1.mlp.experts.0.up_proj.weight"
    specials = np.array([0x7F80, 0xFF80, 0x8000, 0x0001, 0x7F7F, 0x8001], np.uint16).view(ml_dtypes.bfloat16)
    tensors[expert] = tensors[expert].astype(ml_dtypes.bfloat16)
    tensors[expert].reshape(-1)[: len(specials)] = specials  # infinities, minus zero, subnormals, the largest
    tensors["code2wav.code_offset"] = np.arange(16, dtype=np.int64).reshape(1, 16, 1)
    rewrite(tmp_path / "start", tensors, shards=2)
    convert(tmp_path / "start", tmp_path / "there")
    convert(tmp_path / "there", tmp_path / "back")
    assert_same_tensors(tmp_path / "start", tmp_path / "back")
    with pytest.raises(
        CheckpointError, match="experts.gate_up holds NaN or infinite numbers"
    ):  # kept, but not computed with
        load_checkpoint(full(tmp_path / "there"), tmp_path / "there")


def test_thinker_alone_round_trip(damaged, tmp_path):
    tensors = tensors_of(damaged)
    rewrite(damaged, {name.removeprefix("thinker."): tensors[name] for name in tensors if name.startswith("thinker.")})
    convert(damaged, tmp_path / "there")
    convert(tmp_path / "there", tmp_path / "back")
    assert_same_tensors(damaged, tmp_path / "back")
    load_checkpoint(thinker(damaged), tmp_path / "there", prefix="thinker.")


def test_nothing_is_overwritten_and_nothing_is_left_behind(damaged, tmp_path):
    target = tmp_path / "there"
    target.mkdir()
    (target / "mine.txt").write_text("x")
    with pytest.raises(CheckpointError, match="exists and is not an empty folder"):
        convert(damaged, target)
    with pytest.raises(CheckpointError, match="lies inside"):
        convert(damaged, damaged / "inside")
    (damaged / "loop").symlink_to("loop")
    with pytest.raises(CheckpointError, match="loop lies inside"):
        convert(damaged, damaged / "loop")
    tensors = tensors_of(damaged)
    rewrite(damaged, {name: value for name, value in tensors.items() if "experts.7.up" not in name})
    with pytest.raises(CheckpointError, match="15 expert matrices, expected 2 for each of 8 experts"):
        convert(damaged, tmp_path / "new")
    rewrite(damaged, {**tensors, "thinker.unknown": np.zeros(1, np.float32)})
    with pytest.raises(CheckpointError, match="thinker.unknown: no tensor of this name"):
        convert(damaged, tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "there"]


def test_an_interrupted_conversion_leaves_no_folder(sharded, tmp_path, monkeypatch):
    def interrupt(*arguments, **keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.copystat", interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert(sharded, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_target_folder_may_exist(sharded, tmp_path):
    (tmp_path / "there").mkdir()
    convert(sharded, tmp_path / "there")
    assert CheckpointReader(tmp_path / "there").is_converted


def test_save_writes_the_checkpoints_own_names(sharded, tmp_path):
    import mindspore as ms

    model, config = full(sharded), Qwen3OmniMoeConfig.from_pretrained(sharded)
    load_checkpoint(model, sharded)
    files = save_checkpoint(model, tmp_path / "saved", config, ms.bfloat16, shard_bytes=1_500_000)
    assert len(files) > 2 and (tmp_path / "saved" / INDEX_FILE).is_file()
    assert_same_tensors(sharded, tmp_path / "saved")
    assert Qwen3OmniMoeConfig.from_pretrained(tmp_path / "saved") == config
    assert [path.name for path in (tmp_path / "saved").iterdir() if path.name.startswith(".")] == [OWN_FILES]
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["dtype"] == "bfloat16"
    alone = thinker(sharded)
    load_checkpoint(alone, sharded, prefix="thinker.")
    save_checkpoint(alone, tmp_path / "alone", config.thinker_config)
    assert json.loads((tmp_path / "alone" / "config.json").read_text())["dtype"] == "float32"
    again = thinker(sharded)
    load_checkpoint(again, tmp_path / "alone", prefix="thinker.")
    for name, value in values(again).items():
        np.testing.assert_array_equal(value, values(alone)[name])


def test_saving_again_replaces_what_was_saved_and_nothing_else(sharded, tmp_path, monkeypatch):
    model, config, out = thinker(sharded), Qwen3OmniMoeConfig.from_pretrained(sharded).thinker_config, tmp_path / "out"
    load_checkpoint(model, sharded, prefix="thinker.")
    out.mkdir()
    (out / "notes").write_text("mine")
    first, second = (set(save_checkpoint(model, out, config, shard_bytes=1_000_000)) for _ in range(2))
    assert {path.name for path in out.glob("*.safetensors")} == second and not first & second  # the old ones held to the end
    assert (out / "notes").read_text() == "mine"
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    monkeypatch.setattr("ms_omni.checkpoint.safetensors.write_file", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_checkpoint(model, out, config)
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == before


@pytest.mark.parametrize("before, after", [(1, 1), (1, 3), (3, 1), (3, 3)])
def test_a_run_that_ends_anywhere_leaves_no_mixture(before, after, tmp_path, monkeypatch):
    """Numbers of shards before and after; at each step in turn the run is ended."""
    steps, last = [], [10**9]

    def counted(call):
        def step(*arguments, **keywords):
            steps.append(call)
            if len(steps) >= last[0]:
                raise KeyboardInterrupt
            return call(*arguments, **keywords)

        return step

    def save(value, shards):
        tensors = [Pending(f"t{number}", "F32", (2,), lambda: np.full(2, value, np.float32)) for number in range(6)]
        with saved_files(out, replaces=("*.safetensors", INDEX_FILE)) as fresh:
            write_shards(fresh, tensors, {}, shards=shards, taken={path.name for path in out.glob("*")})

    def found():
        try:
            return {float(value[0]) for value in tensors_of(out).values()}
        except CheckpointError:
            return None

    monkeypatch.setattr("os.replace", counted(os.replace))
    monkeypatch.setattr("os.unlink", counted(os.unlink))
    seen = []
    while {2.0} not in seen or last[0] <= len(steps):
        out, last[0] = tmp_path / str(len(seen)), 10**9
        save(1.0, before)
        steps.clear()
        last[0] = len(seen) + 1
        with contextlib.suppress(KeyboardInterrupt):
            save(2.0, after)
        seen.append(found())
    assert (
        seen[0] == {1.0}
        and seen[-1] == {2.0}
        and {frozenset(one) for one in seen if one} == {frozenset([1.0]), frozenset([2.0])}
    )


@pytest.mark.parametrize("name", ["model.safetensors", "model.safetensors.index.json", "a.safetensors", "config.json"])
def test_saving_overwrites_nothing_foreign(name, sharded, tmp_path):
    model, config = SimpleNamespace(parameters_and_names=list), Qwen3OmniMoeConfig.from_pretrained(sharded).thinker_config
    (tmp_path / name).write_text("mine")
    with pytest.raises(CheckpointError, match=f"holds {name}, which ms_omni did not write there"):
        save_checkpoint(model, tmp_path, config)
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "mine"


def test_no_link_is_followed_out_of_a_checkpoint(damaged, tmp_path):
    (tmp_path / "secret").write_text("secret")
    (damaged / "notes.json").symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match="notes.json is a link to .*secret, outside the checkpoint"):
        convert(damaged, tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))
    (damaged / "notes.json").unlink()
    (damaged / "more.json").symlink_to("config.json")
    os.mkfifo(damaged / "pipe.json")
    (damaged / "additional_chat_templates").mkdir()
    (damaged / "additional_chat_templates" / "a.jinja").write_text("{{ 1 }}")
    convert(damaged, tmp_path / "out")
    assert (tmp_path / "out" / "additional_chat_templates" / "a.jinja").read_text() == "{{ 1 }}"
    assert (tmp_path / "out" / "more.json").read_bytes() == (damaged / "config.json").read_bytes()
    assert not (tmp_path / "out" / "more.json").is_symlink() and not (tmp_path / "out" / "pipe.json").exists()


def test_a_snapshot_of_a_hub_cache_is_made_of_links(sharded, tmp_path):
    repository = tmp_path / "models--a--b"
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, path in enumerate(sharded.iterdir()):
        shutil.copy(path, repository / "blobs" / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    convert(snapshot, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (sharded / "tokenizer.json").read_bytes()


def test_files_can_be_read_by_safetensors(sharded):
    from safetensors import safe_open

    for path in sharded.glob("*.safetensors"):
        with safe_open(path, "np") as file:
            assert file.metadata() == {"format": "pt"}
            for name in file.keys():  # noqa: SIM118  (it is no dict)
                assert file.get_slice(name).get_shape() is not None
            assert path.stat().st_size > 1000 and len(file.keys()) > 10


def test_inspection_counts_parts_and_names_strangers(damaged, tmp_path):
    summary = inspect_checkpoint(damaged)
    stored = tensors_of(damaged)
    assert summary.elements == sum(value.size for value in stored.values())
    assert summary.nbytes == 2 * summary.elements and summary.unmatched == () and summary.form == "published"
    assert "thinker decoder" in summary.table() and "0 unmatched names" in summary.table()
    convert(damaged, tmp_path / "there")
    converted = inspect_checkpoint(tmp_path / "there")
    assert converted.form == "ms_omni"
    sizes = {part.part: part.elements for part in summary.parts}
    assert {part.part: part.elements for part in converted.parts} == sizes
    rewrite(damaged, {**stored, "stranger": np.zeros((2, 3), np.float32)})
    summary = inspect_checkpoint(damaged)
    assert summary.unmatched == ("stranger",) and "1 unmatched name\n  stranger" in summary.table()


def test_a_converted_folder_that_is_damaged(sharded, tmp_path):
    convert(sharded, tmp_path / "there")
    name = "thinker.model.layers.0.mlp.experts.down"

    def rename(header):
        header["thinker.other"] = header.pop(name)
        return header

    edit_header(tmp_path / "there" / "model.safetensors", rename)
    with pytest.raises(CheckpointError, match=rf"(?s)1 of missing tensors:\n    {name} .*thinker.other"):
        load_checkpoint(full(sharded), tmp_path / "there")


def test_metadata_records_what_a_parameter_cannot_show(sharded, tmp_path):
    convert(sharded, tmp_path / "there")
    metadata = CheckpointReader(tmp_path / "there").metadata["model.safetensors"]
    assert metadata["format"] == "ms_omni"
    assert json.loads(metadata["source_shapes"]) == {"thinker.visual.patch_embed.proj.weight": [64, 3, 2, 16, 16]}
