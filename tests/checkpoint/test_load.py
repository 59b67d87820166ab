"""Loading: dtypes, prefixes, checkpoints of the thinker alone, memory."""

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from ms_omni.checkpoint import load_checkpoint
from ms_omni.checkpoint.names import COMPONENTS
from ms_omni.checkpoint.parameters import fresh
from ms_omni.config import Qwen3OmniMoeConfig
from ms_omni.errors import CheckpointError
from tests.checkpoint.conftest import edit_json, lazy, rewrite, tensors_of

ROOT = Path(__file__).resolve().parents[2]


def full(folder):
    from ms_omni.model import Qwen3OmniMoeForConditionalGeneration

    return lazy(Qwen3OmniMoeForConditionalGeneration, Qwen3OmniMoeConfig.from_pretrained(folder))


def thinker(folder):
    from ms_omni.model import Qwen3OmniMoeThinkerForConditionalGeneration

    config = Qwen3OmniMoeConfig.from_pretrained(folder).thinker_config
    return lazy(Qwen3OmniMoeThinkerForConditionalGeneration, config)


def values(cell) -> dict[str, np.ndarray]:
    return {name: parameter.asnumpy() for name, parameter in cell.parameters_and_names()}


def test_stacked_experts_and_patches_are_the_published_tensors(sharded):
    model = full(sharded)
    report = load_checkpoint(model, sharded)
    held, stored = values(model), tensors_of(sharded)
    experts = held["thinker.model.layers.2.mlp.experts.gate_up"]
    assert experts.shape == (8, 64, 96) and experts.dtype == np.float32
    prefix = "thinker.model.layers.2.mlp.experts.5."
    np.testing.assert_array_equal(experts[5, :, :48], stored[prefix + "gate_proj.weight"].T.astype(np.float32))
    np.testing.assert_array_equal(experts[5, :, 48:], stored[prefix + "up_proj.weight"].T.astype(np.float32))
    down = held["thinker.model.layers.2.mlp.experts.down"]
    np.testing.assert_array_equal(down[5], stored[prefix + "down_proj.weight"].T.astype(np.float32))
    patches = "thinker.visual.patch_embed.proj.weight"
    np.testing.assert_array_equal(held[patches], stored[patches].reshape(64, -1).astype(np.float32))
    assert report.elements == sum(value.size for value in stored.values())
    assert (report.tensors, report.unused) == (len(held), ())


@pytest.mark.parametrize("stored", [ml_dtypes.bfloat16, np.float16, np.float32, "mixed"])
@pytest.mark.parametrize("target", ["float32", "float16", "bfloat16"])
def test_every_dtype_to_every_dtype(damaged, stored, target):
    import mindspore as ms

    kinds = [ml_dtypes.bfloat16, np.float16, np.float32]
    tensors = {
        name: value.astype(kinds[at % 3] if stored == "mixed" else stored)
        for at, (name, value) in enumerate(tensors_of(damaged).items())
    }
    rewrite(damaged, tensors)
    model = full(damaged)
    load_checkpoint(model, damaged, dtype=getattr(ms, target))
    numpy_target = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}[target]
    for name, parameter in model.parameters_and_names():
        exact = name.startswith("code2wav.")  # float32 beside every other dtype
        assert parameter.dtype == (ms.float32 if exact else getattr(ms, target))
        if name in tensors and "patch_embed" not in name:
            expected = tensors[name].astype(np.float32 if exact else numpy_target).astype(np.float32)
            np.testing.assert_array_equal(parameter.astype(ms.float32).asnumpy(), expected)


def test_unknown_dtype(sharded):
    with pytest.raises(CheckpointError, match="got dtype int8, expected float32, float16 or bfloat16"):
        load_checkpoint(full(sharded), sharded, dtype="int8")


def test_components_of_a_full_checkpoint(sharded):
    from ms_omni.model import Qwen3OmniMoeCode2Wav

    whole = full(sharded)
    load_checkpoint(whole, sharded)
    alone, held = thinker(sharded), values(whole)
    report = load_checkpoint(alone, sharded, prefix="thinker.")
    assert {name.split(".")[0] for name in report.unused} == {"talker", "code2wav"}
    for name, value in values(alone).items():
        np.testing.assert_array_equal(value, held[f"thinker.{name}"])
    vocoder = lazy(Qwen3OmniMoeCode2Wav, Qwen3OmniMoeConfig.from_pretrained(sharded).code2wav_config)
    assert {name.split(".")[0] for name in load_checkpoint(vocoder, sharded, prefix="code2wav.").unused} == {
        "thinker",
        "talker",
    }


def test_thinker_saved_alone(damaged):
    tensors = tensors_of(damaged)
    expected = thinker(damaged)
    load_checkpoint(expected, damaged, prefix="thinker.")
    alone = {name.removeprefix("thinker."): value for name, value in tensors.items() if name.startswith("thinker.")}
    rewrite(damaged, alone, shards=2)
    cell = thinker(damaged)
    assert load_checkpoint(cell, damaged, prefix="thinker.").unused == ()
    for name, value in values(cell).items():
        np.testing.assert_array_equal(value, values(expected)[name])
    del alone["model.norm.weight"]
    rewrite(damaged, {**alone, "model.other": np.zeros(2, np.float32)})
    with pytest.raises(CheckpointError, match=r"(?s)model.norm.weight \[64\].*model.other \[2\]"):
        load_checkpoint(thinker(damaged), damaged, prefix="thinker.")


def test_only_other_components_are_left_aside(damaged):
    tensors = tensors_of(damaged)
    rewrite(damaged, {**tensors, "thinker.other": np.zeros(2, np.float32)})
    with pytest.raises(CheckpointError, match="thinker.other"):
        load_checkpoint(thinker(damaged), damaged, prefix="thinker.")


def test_a_model_without_talker_leaves_speech_aside(damaged):
    edit_json(damaged / "config.json", lambda config: config.update(enable_audio_output=False))
    report = load_checkpoint(full(damaged), damaged)
    assert {name.split(".")[0] for name in report.unused} == {"talker", "code2wav"} < set(COMPONENTS)


def test_saved_constants_are_ignored(damaged):
    constants = {
        "code2wav.code_offset": np.zeros((1, 16, 1), np.int64),
        "thinker.audio_tower.positional_embedding.positional_embedding": np.zeros((1500, 64), np.float32),
        "talker.model.rotary_emb.inv_freq": np.zeros(8, np.float32),
    }
    rewrite(damaged, {**tensors_of(damaged), **constants})
    assert set(load_checkpoint(full(damaged), damaged).unused) == set(constants)


def test_no_progress_is_printed_when_nobody_looks(sharded, capfd):
    load_checkpoint(full(sharded), sharded)
    assert capfd.readouterr() == ("", "")


MEASURE = """
    import json, sys
    import ms_omni.model as model
    from ms_omni.checkpoint import CheckpointReader, load_checkpoint
    from ms_omni.config import Qwen3OmniMoeThinkerConfig
    from mindspore.nn.utils import no_init_parameters

    folder = sys.argv[1]
    with no_init_parameters():
        cell = model.Qwen3OmniMoeThinkerForConditionalGeneration(Qwen3OmniMoeThinkerConfig.from_pretrained(folder))
    def status(field):  # of this process since it was started: getrusage counts what its parent had, too
        with open("/proc/self/status") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
    before = status("VmRSS")
    load_checkpoint(cell, folder, prefix="thinker.")
    peak = status("VmHWM")
    sizes = [parameter.size * 4 for parameter in cell.get_parameters()]
    print(json.dumps({"grown": peak - before, "weights": sum(sizes), "largest": max(sizes)}))
"""


def test_peak_memory_is_the_weights_and_two_of_the_largest_tensors(tmp_path):
    """200 MB of bfloat16, loaded as 400 MB of float32 in a process of its own."""
    write_large_thinker(tmp_path)
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEASURE), str(tmp_path)],
        cwd=ROOT,
        text=True,
        capture_output=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    measured = json.loads(run.stdout.splitlines()[-1])
    assert measured["weights"] > 380e6
    assert measured["grown"] <= measured["weights"] + 2 * measured["largest"], measured


def write_large_thinker(folder):
    from ms_omni.checkpoint.names import patch_shape_of, sources
    from ms_omni.checkpoint.safetensors import Pending, write_shards
    from ms_omni.config import Qwen3OmniMoeThinkerConfig, load_named_config
    from ms_omni.model import Qwen3OmniMoeThinkerForConditionalGeneration

    content = load_named_config("tiny").to_dict()["thinker_config"]
    content["text_config"].update(hidden_size=512, num_experts=32, moe_intermediate_size=512)
    content["audio_config"]["output_dim"] = content["vision_config"]["out_hidden_size"] = 512
    config = Qwen3OmniMoeThinkerConfig.from_dict(content)
    config.save_pretrained(folder)
    patch_shape = patch_shape_of(config.vision_config)
    pending = [
        Pending(source.name, "BF16", source.shape, lambda shape=source.shape: np.ones(shape, ml_dtypes.bfloat16))
        for name, parameter in lazy(Qwen3OmniMoeThinkerForConditionalGeneration, config).parameters_and_names()
        for source in sources("thinker." + name, tuple(parameter.shape), patch_shape)
    ]
    write_shards(folder, pending, {"format": "pt"}, shard_bytes=60_000_000)


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps"), reason="only Linux says how memory lies")
def test_large_weights_lie_in_huge_pages():
    array = fresh((3, 1 << 20), np.dtype(np.float32))
    with open("/proc/self/smaps") as file:
        areas = re.findall(r"^([0-9a-f]+)-([0-9a-f]+) .*?^VmFlags: (.*?)$", file.read(), re.MULTILINE | re.DOTALL)
    if not areas:
        pytest.skip("this system does not say how memory lies")
    (flags,) = [flags for begin, end, flags in areas if int(begin, 16) <= array.ctypes.data < int(end, 16)]
    assert "hg" in flags.split() or not os.path.exists("/sys/kernel/mm/transparent_hugepage")
