"""Damaged checkpoints: each ends in one clear error, before any parameter owns memory."""

import json
import random
import shutil

import ml_dtypes
import numpy as np
import pytest

from ms_omni.checkpoint import CheckpointReader, load_checkpoint
from ms_omni.checkpoint.safetensors import INDEX_FILE
from ms_omni.config import Qwen3OmniMoeConfig
from ms_omni.errors import CheckpointError
from tests.checkpoint.conftest import edit_header, edit_json, lazy, rewrite, tensors_of

FIRST, SECOND, THIRD = (f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3))
NORM = "thinker.model.norm.weight"
GATE = "thinker.model.layers.1.mlp.experts.3.gate_proj.weight"
PATCHES = "thinker.visual.patch_embed.proj.weight"


def truncate(path, keep):
    raw = path.read_bytes()
    path.write_bytes(raw[: keep if keep >= 0 else len(raw) + keep])


def shard_of(folder, name):
    return folder / json.loads((folder / INDEX_FILE).read_text())["weight_map"][name]


def change_tensors(folder, change):
    tensors = tensors_of(folder)
    rewrite(folder, change(tensors) or tensors)


def drop_shards(folder):
    (folder / FIRST).unlink()
    (folder / THIRD).unlink()


def pickled_only(folder):
    for path in folder.glob("model*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02")


def shards_without_index(folder):
    (folder / INDEX_FILE).unlink()


def no_weights(folder):
    for path in folder.glob("model*"):
        path.unlink()


def move_in_index(folder):
    where = shard_of(folder, NORM).name
    other = FIRST if where != FIRST else SECOND
    edit_json(folder / INDEX_FILE, lambda index: index["weight_map"].update({NORM: other}))


def twice(folder):
    tensors = tensors_of(folder)
    rewrite(folder / "..", {NORM: tensors[NORM]})
    shutil.move(folder / ".." / "model.safetensors", folder / "model-extra.safetensors")
    edit_json(folder / INDEX_FILE, lambda index: index["weight_map"].update({"again": "model-extra.safetensors"}))


def both_forms(folder):
    shutil.copy(folder / FIRST, folder / "model.safetensors")


def unknown_component(folder):
    change_tensors(folder, lambda tensors: tensors.update({"vocoder.extra": np.zeros(3, np.float32)}))


def five_x_memory_names(folder):
    change_tensors(folder, lambda t: {k.replace("thinker.model.", "thinker.model.language_model."): v for k, v in t.items()})


DAMAGE = {
    "missing shards": (drop_shards, [f"{FIRST}: this shard is missing", THIRD, "2 problems"]),
    "truncated data": (lambda f: truncate(f / SECOND, -100), [SECOND, "is truncated", "its header describes"]),
    "truncated in the header": (lambda f: truncate(f / SECOND, 200), [SECOND, "is truncated: 200 bytes"]),
    "empty file": (lambda f: truncate(f / SECOND, 0), [SECOND, "is truncated: 0 bytes, not even a header"]),
    "trailing bytes": (lambda f: (f / FIRST).write_bytes((f / FIRST).read_bytes() + b"x"), ["is corrupt"]),
    "two shards damaged": (
        lambda f: (truncate(f / FIRST, -1), truncate(f / THIRD, 3)),
        ["2 problems", FIRST, THIRD],
    ),
    "git lfs pointer": (
        lambda f: (f / FIRST).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        ["Git LFS pointer", "git lfs pull"],
    ),
    "not safetensors": (lambda f: (f / FIRST).write_bytes(b"PK\x03\x04" + b"\xff" * 99), ["impossible header length"]),
    "header no JSON": (
        lambda f: (f / FIRST).write_bytes((9).to_bytes(8, "little") + b"{not json" + b"0" * 20),
        ["header is corrupt"],
    ),
    "header a list": (lambda f: (f / FIRST).write_bytes((2).to_bytes(8, "little") + b"[]"), ["no JSON object"]),
    "header without offsets": (
        lambda f: edit_header(shard_of(f, NORM), lambda h: h[NORM].pop("data_offsets") and None),
        [f"entry of {NORM}"],
    ),
    "header with another size": (
        lambda f: edit_header(shard_of(f, NORM), lambda h: h[NORM].update(shape=[7])),
        [NORM, "does not take bytes"],
    ),
    "header with negative shape": (
        lambda f: edit_header(shard_of(f, NORM), lambda h: h[NORM].update(shape=[-64])),
        [NORM, "header is corrupt"],
    ),
    "unknown dtype": (
        lambda f: edit_header(shard_of(f, NORM), lambda h: h[NORM].update(dtype="F4")),
        [f"{NORM} has dtype 'F4', expected one of"],
    ),
    "dtype that is a list": (
        lambda f: edit_header(shard_of(f, NORM), lambda h: h[NORM].update(dtype=["BF16"])),
        [f"{NORM} has dtype ['BF16'], expected one of"],
    ),
    "dtype that is an object": (
        lambda f: edit_header(shard_of(f, NORM), lambda h: h[NORM].update(dtype={"BF16": 1})),
        [f"{NORM} has dtype {{'BF16': 1}}, expected one of"],
    ),
    "index names a file that no system could have": (
        lambda f: edit_json(f / INDEX_FILE, lambda i: i["weight_map"].update({NORM: "x" * 5000 + ".safetensors"})),
        ["xxx: this shard is missing"],
    ),
    "index names a file with a zero byte": (
        lambda f: edit_json(f / INDEX_FILE, lambda i: i["weight_map"].update({NORM: "x\0.safetensors"})),
        ["this shard is missing"],
    ),
    "index names a tensor that is nowhere": (
        lambda f: edit_json(f / INDEX_FILE, lambda i: i["weight_map"].update({"ghost": FIRST})),
        [f"ghost: the index says {FIRST}, but no file holds it"],
    ),
    "index leaves a tensor out": (
        lambda f: edit_json(f / INDEX_FILE, lambda i: i["weight_map"].pop(NORM) and None),
        [NORM, "the index does not name it"],
    ),
    "index names another file": (move_in_index, [NORM, "but it stands in"]),
    "index is no JSON": (lambda f: (f / INDEX_FILE).write_text("{"), [INDEX_FILE, "is not an index"]),
    "index without weight_map": (lambda f: (f / INDEX_FILE).write_text("{}"), ["is not an index", "KeyError"]),
    "index is empty": (lambda f: (f / INDEX_FILE).write_text('{"weight_map": {}}'), ["weight_map is empty"]),
    "index points outside": (
        lambda f: edit_json(f / INDEX_FILE, lambda i: i["weight_map"].update({NORM: "../other.safetensors"})),
        ["no .safetensors file beside it"],
    ),
    "one tensor in two files": (twice, [f"{NORM}: stands in 2 files"]),
    "both a single file and shards": (both_forms, ["holds both model.safetensors and an index"]),
    "shards without index": (shards_without_index, [f"no {INDEX_FILE}"]),
    "pytorch_model.bin only": (pickled_only, ["another format (pytorch_model.bin)", "safetensors"]),
    "no weights": (no_weights, ["holds no weights"]),
    "missing tensors": (
        lambda f: change_tensors(f, lambda t: {name: t[name] for name in t if name not in (NORM, GATE)}),
        ["2 missing tensors", f"{NORM} [64]", f"{GATE} [48, 64]"],
    ),
    "extra tensor": (
        lambda f: change_tensors(f, lambda t: t.update({"thinker.model.extra": np.zeros(3, np.float32)})),
        ["tensors that the model does not have", "thinker.model.extra [3]"],
    ),
    "extra layer": (
        lambda f: change_tensors(f, lambda t: t.update({NORM.replace("norm", "layers.9.input_layernorm"): t[NORM]})),
        ["tensors that the model does not have", "layers.9"],
    ),
    "misshapen tensor": (
        lambda f: change_tensors(f, lambda t: t.update({GATE: t[GATE].T})),
        ["of another shape", f"{GATE}: got [64, 48], expected [48, 64]"],
    ),
    "misshapen patches": (
        lambda f: change_tensors(f, lambda t: t.update({PATCHES: t[PATCHES][:, :, :1]})),
        ["of another shape", f"{PATCHES}: got [64, 3, 1, 16, 16]"],
    ),
    "everything at once": (
        lambda f: change_tensors(
            f, lambda t: t.update({GATE: t[GATE][:1], "thinker.extra": t.pop(NORM), "talker.norm": t[GATE]})
        ),
        ["1 of missing", NORM, "2 tensors that the model does not have", "thinker.extra", "talker.norm", GATE],
    ),
    "quantised": (
        lambda f: change_tensors(f, lambda t: t.update({GATE: t[GATE].astype(np.int8)})),
        [f"{GATE}: got I8, expected one of BF16, F16, F32"],
    ),
    "unknown component": (unknown_component, ["vocoder.extra [3]"]),
    "names of 5.x in memory": (five_x_memory_names, ["thinker.model.language_model."]),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_one_error(damaged, kind):
    from ms_omni.model import Qwen3OmniMoeForConditionalGeneration

    model = lazy(Qwen3OmniMoeForConditionalGeneration, Qwen3OmniMoeConfig.from_pretrained(damaged))
    damage, expected = DAMAGE[kind]
    damage(damaged)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(model, damaged)
    for part in expected:
        assert part in str(caught.value)
    assert all(parameter.has_init for parameter in model.get_parameters())


def test_long_reports_are_cut_with_a_count(damaged):
    from ms_omni.model import Qwen3OmniMoeForConditionalGeneration

    model = lazy(Qwen3OmniMoeForConditionalGeneration, Qwen3OmniMoeConfig.from_pretrained(damaged))
    change_tensors(damaged, lambda tensors: {name: tensors[name] for name in tensors if "visual" not in name})
    with pytest.raises(CheckpointError, match=r"75 missing tensors:(?s:.*)\.\.\. and 50 more"):
        load_checkpoint(model, damaged)


@pytest.mark.parametrize("made", ["nothing", "file", "empty folder"])
def test_wrong_folder(tmp_path, made):
    from ms_omni.model import Qwen3OmniMoeForConditionalGeneration

    path = tmp_path / "Qwen3-Omni"
    if made == "file":
        path.write_text("x")
    elif made == "empty folder":
        path.mkdir()
    message = {"nothing": "is not a folder on this machine", "file": "is a file", "empty folder": "has no config.json"}[made]
    with pytest.raises(CheckpointError, match=message):
        Qwen3OmniMoeForConditionalGeneration.from_pretrained(path)


def test_a_head_that_is_not_the_tied_embedding(tmp_path):
    from ms_omni.model import Qwen3OmniMoeForConditionalGeneration
    from ms_omni.tiny import write_tiny_checkpoint

    folder = tmp_path / "odd"
    config = write_tiny_checkpoint(folder, geometry="odd", shards=1)
    assert config.thinker_config.text_config.tie_word_embeddings
    tensors = tensors_of(folder)
    embedding = tensors["thinker.model.embed_tokens.weight"]
    rewrite(folder, {**tensors, "thinker.lm_head.weight": embedding})
    load_checkpoint(lazy(Qwen3OmniMoeForConditionalGeneration, config), folder)
    rewrite(folder, {**tensors, "thinker.lm_head.weight": (embedding * 2).astype(ml_dtypes.bfloat16)})
    with pytest.raises(CheckpointError, match="differs from thinker.model.embed_tokens.weight"):
        load_checkpoint(lazy(Qwen3OmniMoeForConditionalGeneration, config), folder)


@pytest.mark.parametrize("name", [FIRST, INDEX_FILE, "config.json"])
def test_random_damage_is_found_or_harmless(damaged, name):
    """Bytes flipped, lost or put in, 200 times: a CheckpointError or a checkpoint that reads, nothing else."""
    path, chance = damaged / name, random.Random(7)
    whole = path.read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little") if name == FIRST else len(whole)
    found = 0
    for _ in range(200):
        raw, at = bytearray(whole), chance.randrange(end)
        kind = chance.randrange(3)
        if kind == 0:
            raw[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del raw[at : at + chance.randrange(1, 30)]
        else:
            raw[at:at] = bytes(chance.choices(b'0123456789{}[]",:-eE.', k=4))
        path.write_bytes(raw)
        try:
            Qwen3OmniMoeConfig.from_pretrained(damaged)
            CheckpointReader(damaged)
        except CheckpointError:
            found += 1
    assert found > 100
