"""Forms of published layouts that the recorded checkpoints do not have: where the configuration stands, stacks, orders, names."""

import json
import warnings

import ml_dtypes
import numpy as np
import pytest

from ms_omni.checkpoint import convert
from ms_omni.checkpoint.open import open_checkpoint
from ms_omni.checkpoint.published.matrix import unpack_bits
from ms_omni.checkpoint.reader import CheckpointReader
from ms_omni.quantised import Storage, dequantised
from tests.checkpoint.published_folders import GROUP, MODULES, K, N, gptq, numbers, scales, write
from tests.reference import published_cases as cases
from tests.reference.store import DATA, Reference

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True, "desc_act": False}
NAME = f"{MODULES[0]}.weight"


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published") / "base"
    cases.write_base(folder)
    return folder


def check(reader, weight, kept, name=NAME):
    """A matrix is what it should be, and kept as it should be."""
    assert reader.entries[name].shape == weight.shape and reader.storage(name) == kept
    tolerance = 1e-6 if kept else 2**-8
    np.testing.assert_allclose(reader.array(name).astype(np.float32), weight, rtol=tolerance, atol=1e-7)
    if kept:
        np.testing.assert_array_equal(dequantised(reader.codes(name)), reader.array(name))


@pytest.mark.parametrize("bits", range(2, 9))
def test_bits_run_through_words(bits):
    """Against a sum of powers of two: number i begins at bit i * bits."""
    held = numbers(bits, (3, 32))
    streams = [sum(int(number) << (place * bits) for place, number in enumerate(row)) for row in held]
    words = np.array([[(stream >> (32 * word)) & 0xFFFFFFFF for word in range(bits)] for stream in streams], np.uint32)
    np.testing.assert_array_equal(unpack_bits(words.view(np.int32), bits, 32), held)
    np.testing.assert_array_equal(unpack_bits(words, bits, 29), held[:, :29])


@pytest.mark.parametrize("place", ["top", "thinker", "text", "file", "auto_round_file"])
def test_where_the_configuration_stands(tmp_path, place):
    tensors, weight = gptq()
    said, files = {}, {}
    if place == "top":
        said = {"quantization_config": GPTQ}
    elif place == "thinker":
        said = {"thinker_config": {"quantization_config": GPTQ}}
    elif place == "text":
        said = {"thinker_config": {"text_config": {"quantization_config": GPTQ}}}
    elif place == "file":  # of AutoGPTQ, which leaves its own name out
        files = {"quantize_config.json": {key: value for key, value in GPTQ.items() if key != "quant_method"}}
    else:
        files = {
            "quantization_config.json": {**GPTQ, "quant_method": "auto-round", "packing_format": "auto_round:auto_gptq"}
        }
    folder = write(tmp_path / "a", {MODULES[0]: tensors}, said, files)
    check(open_checkpoint(folder), weight, Storage(4, GROUP, "float16"))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
def test_zero_points_of_both_versions(tmp_path, bits, version):
    zeros = numbers(bits, (K // GROUP, N), seed=5)
    zeros[0, :3] = 0  # in version 1 they borrow from their neighbours
    tensors, weight = gptq(bits, zeros, minus_one=version == "gptq")
    meta = {"quantizer": ["optimum:1.24", "gptqmodel:2.2.0"]}
    said = {**GPTQ, "bits": bits, "sym": False, "checkpoint_format": version, "meta": meta}
    folder = write(tmp_path / "a", {MODULES[0]: tensors}, {"quantization_config": said})
    check(open_checkpoint(folder), weight, Storage(4 if bits < 8 else 8, GROUP, "float16", "float32"))


def test_groups_ordered_by_activations_are_dequantised_and_that_is_said(tmp_path):
    tensors, weight = gptq(order=np.random.RandomState(3).permutation(np.arange(K) // GROUP))
    folder = write(tmp_path / "a", {MODULES[0]: tensors}, {"quantization_config": {**GPTQ, "desc_act": True}})
    with pytest.warns(UserWarning, match=r"of 1 matrices that GPTQ quantised, 1 are dequantised to bfloat16 \(desc_act"):
        reader = open_checkpoint(folder)
    check(reader, weight, None)


OF_SINGLE = {  # the first that fits counts, a name before patterns; those of other modules reach further than these
    "dynamic": {"-:.*": {}, f"+:{MODULES[1]}": {"bits": 8}, ".*_proj": {"bits": 4}, "+:.*q.*": {"bits": 2}},
    "extra_config": {".*": {"bits": 16}, ".*_proj": {"bits": 4, "sym": None}, ".*q.*": {"bits": 2}, MODULES[1]: {"bits": 8}},
}


@pytest.mark.parametrize("key", OF_SINGLE)
def test_bits_of_single_modules(tmp_path, key):
    (first, weight), (second, other) = gptq(4), gptq(8, seed=7)
    said = {**GPTQ, "bits": 3, key: OF_SINGLE[key]}
    folder = write(tmp_path / "a", {MODULES[0]: first, MODULES[1]: second}, {"quantization_config": said})
    reader = open_checkpoint(folder)
    check(reader, weight, Storage(4, GROUP, "float16"))
    check(reader, other, Storage(8, GROUP, "float16"), f"{MODULES[1]}.weight")


def test_groups_that_int4_does_not_have_are_dequantised(tmp_path):
    q, s = numbers(4), scales((N, K // 16), ml_dtypes.bfloat16)
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 16}
    said = {"quant_method": "compressed-tensors", "config_groups": {"g": {"targets": ["Linear"], "weights": weights}}}
    parts = {"weight_packed": cases.pack("packed", q, 4), "weight_scale": s, "weight_shape": np.array([N, K])}
    reader = open_checkpoint(write(tmp_path / "a", {MODULES[0]: parts}, {"quantization_config": said}))
    check(reader, (q.astype(np.float32) - 8) * np.repeat(s.astype(np.float32), 16, axis=1), None)


def compressed(**weights):
    group = {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int", **weights}}
    return {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {"g": group}}}


@pytest.mark.parametrize("actorder", ["group", "dynamic", True, "weight", "static", None, "untouched"])
@pytest.mark.parametrize("packed", [True, False])
def test_groups_that_compressed_tensors_orders(tmp_path, actorder, packed):
    """ "dynamic" is another word for "group" and "static" for "weight"; a matrix that was never ordered has -1."""
    q, s = numbers(4), scales((N, K // GROUP), ml_dtypes.bfloat16)
    order = np.random.RandomState(3).permutation(np.arange(K) // GROUP)
    parts = {"weight_packed": cases.pack("packed", q, 4)} if packed else {"weight": q.astype(np.int8) - 8}
    parts["weight_scale"] = s
    ordered = actorder in ("group", "dynamic", True, "untouched")
    if ordered:
        parts["weight_g_idx"] = (np.full(K, -1) if actorder == "untouched" else order).astype(np.int32)
    said = compressed(strategy="group", group_size=GROUP, actorder="group" if actorder == "untouched" else actorder)
    reader = open_checkpoint(write(tmp_path / "a", {MODULES[0]: parts}, said))
    groups = order if ordered and actorder != "untouched" else np.arange(K) // GROUP
    weight = (q.astype(np.float32) - 8) * s.astype(np.float32)[:, groups]
    check(reader, weight, None if ordered else Storage(4, GROUP))


@pytest.mark.parametrize("strategy, shape", [("tensor", (1,)), ("channel", (N, 1)), (None, (N, K // GROUP))])
@pytest.mark.parametrize("packed", [True, False])
def test_zero_points_of_compressed_tensors(tmp_path, strategy, shape, packed):
    """Of the whole matrix they are not packed; without a strategy the size of a group says it."""
    q, s, zeros = numbers(4), scales(shape, ml_dtypes.bfloat16), numbers(4, shape, seed=4)
    parts = {"weight_packed": cases.pack("packed", q, 4)} if packed else {"weight": q.astype(np.int8) - 8}
    whole = strategy == "tensor" or not packed
    parts["weight_zero_point"] = zeros.astype(np.int8) - 8 if whole else cases.pack("packed", zeros.T, 4).T
    said = compressed(symmetric=False, strategy=strategy, group_size=None if strategy else GROUP)
    reader = open_checkpoint(write(tmp_path / "a", {MODULES[0]: parts | {"weight_scale": s}}, said))
    s, zeros = (np.broadcast_to(array, (N, array.size // N or 1)).astype(np.float32) for array in (s, zeros))
    s, zeros = (array.repeat(K // array.shape[1], axis=1) for array in (s, zeros))
    kept = Storage(4, None if strategy else GROUP, offset="float32")
    check(reader, (q - zeros) * s, kept)


@pytest.mark.parametrize("kind", ["W8A8_DYNAMIC", "W8A8", "W8A8_old", "W8A16", "W4A4_DYNAMIC", "WFP8AFP8_DYNAMIC"])
def test_modelslim(tmp_path, kind):
    """By its description; how it quantises activations is dropped, which is said; its files have names of their own."""
    q = (numbers(8).astype(np.int16) - 128).astype(np.int8) // (16 if kind == "W4A4_DYNAMIC" else 1)
    s, zeros = scales((N, 1), np.float32), np.zeros((N, 1), np.float32)
    parts, kept = {"weight": q, "weight_scale": s, "weight_offset": zeros}, Storage(8, None, "float32")
    if kind == "W8A16":
        zeros = numbers(4, (N, 1)).astype(np.float32)
        parts["weight_offset"], kept = zeros, Storage(8, None, "float32", "float32")
    if kind.startswith("W8A8") and kind != "W8A8_DYNAMIC":
        dropped = {"input_offset": np.zeros(1, np.float32), "quant_bias": np.zeros(N, np.int32)}
        inputs = np.array([0.5], np.float32)
        parts |= {"input_scale": inputs, "deq_scale": (inputs * s[:, 0]).astype(np.float32), **dropped}
        if kind == "W8A8":
            parts = {key: value for key, value in parts.items() if key not in ("weight_scale", "weight_offset")}
            parts["deq_scale"] = parts["deq_scale"].view(np.int32).astype(np.int64)  # a model in float16
    if kind == "W4A4_DYNAMIC":
        kept = Storage(4, None, "float32", "float32")
    if kind == "WFP8AFP8_DYNAMIC":
        parts["weight"], kept = q.astype(ml_dtypes.float8_e4m3fn), None
    weight = (parts["weight"].astype(np.float32) - zeros) * s
    kind = kind.removesuffix("_old")
    description = {f"{MODULES[0]}.{word}": kind for word in parts} | {"thinker.model.norm.weight": "FLOAT", "group_size": 0}
    files = {"quant_model_description.json": description}
    folder = write(tmp_path / "a", {MODULES[0]: parts}, {}, files, file="quant_model_weight_w8a8.safetensors")
    if "input_offset" in parts:
        with pytest.warns(UserWarning, match="tensors that quantise activations are not used"):
            reader = open_checkpoint(folder)
    else:
        reader = open_checkpoint(folder)
    assert set(reader.entries) == {NAME, "thinker.model.norm.weight"}
    check(reader, weight, kept)


def test_several_files_of_modelslim(tmp_path):
    stem, description, table = "quant_model_weights", {}, {}
    for number, module in enumerate(MODULES, 1):
        parts = {"weight": numbers(7, seed=number).astype(np.int8), "weight_scale": scales((N, 1), np.float32)}
        file = f"{stem}-0000{number}-of-00002.safetensors"
        write(tmp_path / "a", {module: parts}, {}, file=file, norm=number == 1)
        description |= {f"{module}.{word}": "W8A8_DYNAMIC" for word in parts}
        table |= {f"{module}.{word}": file for word in parts} | ({"thinker.model.norm.weight": file} if number == 1 else {})
    (tmp_path / "a" / f"{stem}.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
    (tmp_path / "a" / "quant_model_description.json").write_text(json.dumps(description))
    reader = open_checkpoint(tmp_path / "a")
    assert len(reader.files) == 2
    assert [reader.storage(f"{module}.weight") for module in MODULES] == 2 * [Storage(8, None, "float32")]


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_every_width_of_mlx_is_kept(tmp_path, bits):
    q, s, biases = numbers(bits), scales((N, K // GROUP), ml_dtypes.bfloat16), scales((N, K // GROUP), ml_dtypes.bfloat16, 2)
    stream = np.packbits((q[..., None] >> np.arange(bits)) & 1, bitorder="little").reshape(N, -1).view(np.uint32)
    own = {MODULES[0]: {"group_size": GROUP, "bits": bits}}
    folder = write(
        tmp_path / "a",
        {MODULES[0]: {"weight": stream, "scales": s, "biases": biases}},
        {"quantization": {"group_size": 64, "bits": 4, **own}},
    )
    wide = [np.repeat(array.astype(np.float32), GROUP, axis=1) for array in (s, biases)]
    offset = "float32" if bits in (4, 8) else "bfloat16"
    kept = Storage(4 if bits <= 4 else 8, GROUP, "bfloat16", offset)
    check(open_checkpoint(folder), q * wide[0] + wide[1], kept)


def test_names_stacks_and_kernels_of_mlx_vlm(base, tmp_path):
    """A checkpoint as mlx-vlm's `sanitize` writes it has the tensors of the published one again."""
    plain, reference = CheckpointReader(base), Reference(DATA / "published.npz")
    written = cases.tensors_of("mlx_4", reference, plain)
    tensors, stacks = {}, {}
    for name in [*plain.entries, *written]:
        array = written[name] if name in written else plain.array(name)
        if name in plain.entries and name not in written and f"{name.removesuffix('weight')}scales" in written:
            continue
        if ".experts." in name:
            left, _, right = name.partition(".experts.")
            number, kind = right.split(".", 1)
            stacks.setdefault(f"{left}.switch_mlp.{kind}", {})[int(number)] = array
            continue
        if "conv2d" in name and name.endswith("weight"):
            array = array.transpose(0, 2, 3, 1)
        if "patch_embed.proj.weight" in name:
            array = array.transpose(0, 2, 3, 4, 1)
        for old, new in (("mlp.0", "linear_fc1"), ("mlp.2", "linear_fc2"), ("ln_q", "norm")):
            name = name.replace(old, new) if "merger" in name else name
        tensors[name.replace("merger_list", "deepstack_merger_list")] = array
    tensors |= {name: np.stack([parts[e] for e in sorted(parts)]) for name, parts in stacks.items()}
    names = {"thinker.visual": "thinker.vision_tower"}
    names |= {f"thinker.{part}": f"thinker.language_model.{part}" for part in ("model", "lm_head")}
    for old, new in names.items():
        tensors = {name.replace(old, new) if name.startswith(old + ".") else name: array for name, array in tensors.items()}
    cases.write_folder(tmp_path / "mlx", tensors, base, {"quantization": {"group_size": GROUP, "bits": 4}})
    reader = open_checkpoint(tmp_path / "mlx")
    assert {name: entry.shape for name, entry in reader.entries.items()} == {
        name: entry.shape for name, entry in plain.entries.items()
    }
    quantised = [name for name in reader.entries if reader.storage(name) is not None]
    assert sorted(quantised) == [f"{module}.weight" for module in cases.modules(plain.entries)]
    for name in set(plain.entries) - set(quantised):
        np.testing.assert_array_equal(reader.array(name), plain.array(name))
    cases.write("mlx_4", reference, base, tmp_path / "flat")
    flat = open_checkpoint(tmp_path / "flat")
    for name in quantised:
        np.testing.assert_array_equal(reader.array(name), flat.array(name))
        np.testing.assert_array_equal(dequantised(reader.codes(name)), flat.array(name))


def test_stacks_of_experts(tmp_path):
    """transformers 5 has the experts of a layer in one parameter, gate's rows before up's."""
    experts, inner, width = 3, 32, 64
    scale, whole = scales((experts, 2 * inner, 1), np.float32), numbers(7, (experts, 2 * inner, width)).astype(np.int8)
    stem = "thinker.model.layers.0.mlp.experts"
    matrices = {stem: {"gate_up_proj": whole.astype(ml_dtypes.float8_e4m3fn), "gate_up_proj_scale_inv": scale}}
    said = {"quantization_config": {"quant_method": "fp8", "weight_block_size": [1, width]}}
    reader = open_checkpoint(write(tmp_path / "fp8", matrices, said))
    weight = matrices[stem]["gate_up_proj"].astype(np.float32) * scale
    for expert in range(experts):
        check(reader, weight[expert, :inner], None, f"{stem}.{expert}.gate_proj.weight")
        check(reader, weight[expert, inner:], None, f"{stem}.{expert}.up_proj.weight")
    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
    said = {
        "quant_method": "compressed-tensors",
        "config_groups": {"g": {"targets": ["re:.*experts.*"], "weights": weights}},
    }
    packed = np.stack([cases.pack("packed", (q.astype(np.int16) + 128).astype(np.uint8), 8) for q in whole])
    matrices = {stem: {"down_proj_packed": packed, "down_proj_scale": scale}}
    reader = open_checkpoint(write(tmp_path / "packed", matrices, {"quantization_config": said}))
    for expert in range(experts):
        check(reader, whole[expert] * scale[expert], Storage(8, None, "float32"), f"{stem}.{expert}.down_proj.weight")


@pytest.mark.parametrize("case", ["auto_round", "packed_asymmetric", "mlx_8", "fp8_blocks"])
def test_converting_keeps_the_codes_and_back_gives_the_numbers(base, tmp_path, case):
    cases.write(case, Reference(DATA / "published.npz"), base, tmp_path / "published")
    source = open_checkpoint(tmp_path / "published")
    convert(tmp_path / "published", tmp_path / "ours", progress=False)
    ours = open_checkpoint(tmp_path / "ours")
    config = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert "quantization" not in config
    described = config.get("quantization_config")
    if case == "fp8_blocks":
        assert described is None
    else:
        scale = source.storage("thinker.model.layers.0.self_attn.q_proj.weight").scale
        assert (described["quant_method"], described["scale_dtype"], described["embeddings"]) == ("ms_omni", scale, False)
        method = {"auto_round": "auto-round", "mlx_8": "mlx"}.get(case, "compressed-tensors")
        assert described["converted_from"]["quant_method"] == method
    name = "thinker.model.layers.0.self_attn.q_proj.weight"
    assert ours.storage(name) == source.storage(name)
    if source.storage(name) is None:
        np.testing.assert_array_equal(ours.array(name), source.array(name))
    else:
        for kept, published in zip(ours.codes(name), source.codes(name)):
            np.testing.assert_array_equal(kept, published)
        experts = ours.codes("thinker.model.layers.0.mlp.experts.gate_up")
        first = source.codes("thinker.model.layers.0.mlp.experts.1.gate_proj.weight")
        np.testing.assert_array_equal(experts.codes[1, : len(first.codes)], first.codes)
    convert(tmp_path / "ours", tmp_path / "back", progress=False)
    back = CheckpointReader(tmp_path / "back")
    np.testing.assert_allclose(
        back.array(name).astype(np.float32), source.array(name).astype(np.float32), rtol=2**-8, atol=0
    )


def test_the_description_is_of_what_the_folder_holds(tmp_path):
    """Wherever the tool has said how it did it, and with a table of tokens that is quantised."""
    table = "thinker.model.embed_tokens"
    matrices = {module: gptq()[0] for module in (MODULES[0], table)}
    said = {"thinker_config": {"text_config": {"quantization_config": GPTQ}}}
    convert(write(tmp_path / "a", matrices, said), tmp_path / "b", progress=False)
    config = json.loads((tmp_path / "b" / "config.json").read_text())
    described = {"quant_method": "ms_omni", "bits": 4, "group_size": GROUP, "scale_dtype": "float16", "embeddings": True}
    assert config.pop("quantization_config") == {**described, "converted_from": GPTQ}
    assert config == {"dtype": "bfloat16", "thinker_config": {"text_config": {}}}


@pytest.mark.parametrize("file", ["quantize_config.json", "quant_model_description.json"])
def test_what_is_dequantised_is_described_no_longer(tmp_path, file):
    """Also where config.json never said it."""
    order = np.random.RandomState(3).permutation(np.arange(K) // GROUP)
    parts, said = gptq(order=order)[0], {**GPTQ, "desc_act": True}
    if file != "quantize_config.json":
        q = numbers(4).astype(np.float32).astype(ml_dtypes.float8_e4m3fn)
        parts, said = {"weight": q, "weight_scale": scales((N, 1), np.float32)}, {f"{MODULES[0]}.weight": "WFP8AFP8_DYNAMIC"}
    source = write(tmp_path / "a", {MODULES[0]: parts}, {}, {file: said, "recipe.yaml": "", "tokenizer.json": {}})
    numbers_of_it = open_checkpoint(source).array(NAME)
    convert(source, tmp_path / "b", progress=False)
    assert {path.name for path in (tmp_path / "b").iterdir()} == {"config.json", "model.safetensors", "tokenizer.json"}
    np.testing.assert_array_equal(open_checkpoint(tmp_path / "b").array(NAME), numbers_of_it)


@pytest.mark.parametrize("other", ["plain", "int8"])
def test_experts_that_are_not_stored_alike(tmp_path, other):
    """They are numbers of the size that the others of the model have, and that is said."""
    stem, said = "thinker.model.layers.0.mlp.experts", {**GPTQ, "dynamic": {r"+:.*experts\.1\.up_proj": {"bits": 8}}}
    matrices = {f"{stem}.{expert}.{kind}_proj": gptq()[0] for expert in range(2) for kind in ("gate", "up", "down")}
    plain = numbers(4).astype(ml_dtypes.bfloat16)
    matrices[f"{stem}.1.up_proj"] = {"weight": plain} if other == "plain" else gptq(8)[0]
    report = convert(write(tmp_path / "a", matrices, {"quantization_config": said}), tmp_path / "b", progress=False)
    assert report.notes == (
        f"the tensors of {stem}.gate_up are stored in different ways, and are held as the numbers that these stand for",
    )
    source, found = open_checkpoint(tmp_path / "a"), open_checkpoint(tmp_path / "b")
    assert found.entries[f"{stem}.gate_up"].dtype == "BF16" and found.storage(f"{stem}.down") == Storage(4, GROUP, "float16")
    convert(tmp_path / "b", tmp_path / "c", progress=False)
    for kind in ("gate", "up", "down"):
        name = f"{stem}.1.{kind}_proj.weight"
        back = CheckpointReader(tmp_path / "c").array(name)
        assert back.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(back, source.array(name).astype(ml_dtypes.bfloat16))
