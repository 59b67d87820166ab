"""Published quantised checkpoints that are damaged, contradict themselves or are of a method that nobody reads: one clear error."""

import warnings

import ml_dtypes
import numpy as np
import pytest

import ms_omni
from ms_omni.checkpoint import convert
from ms_omni.checkpoint.open import open_checkpoint
from ms_omni.errors import CheckpointError
from tests.checkpoint.published_folders import GROUP, MODULES, K, N, gptq, numbers, scales, write
from tests.reference.published_cases import pack

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": True, "desc_act": False}
ASYMMETRIC = {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": GROUP}
GROUPS = K // GROUP


def gptq_parts():
    return gptq()[0]


def awq_parts():
    middle = np.full((GROUPS, N), 8, np.uint8)
    parts = {"qweight": pack("awq", numbers(4), 4), "qzeros": pack("awq", middle.T, 4)}
    return parts | {"scales": scales((GROUPS, N))}


def packed_parts():
    zeros = pack("packed", numbers(4, (GROUPS, N)), 4).T
    bfloat16 = scales((N, GROUPS), ml_dtypes.bfloat16)
    shape = np.array([N, K])
    return {
        "weight_packed": pack("packed", numbers(4), 4),
        "weight_scale": bfloat16,
        "weight_zero_point": zeros,
        "weight_shape": shape,
    }


def fp8_parts():
    weight = numbers(4).astype(np.float32).astype(ml_dtypes.float8_e4m3fn)
    return {"weight": weight, "weight_scale_inv": scales((1, 2), np.float32)}


def mlx_parts():
    bfloat16 = scales((N, GROUPS), ml_dtypes.bfloat16)
    return {"weight": pack("mlx", numbers(4), 4), "scales": bfloat16, "biases": bfloat16}


def slim_parts():
    whole = numbers(7).astype(np.int8)
    return {
        "weight": whole,
        "weight_scale": scales((N, 1), np.float32),
        "weight_offset": np.zeros((N, 1), np.float32),
    }


def compressed(weights=ASYMMETRIC, **more):
    group = {"targets": ["Linear"], "weights": weights}
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {"g": group}, **more}


LAYOUTS = {
    "gptq": (gptq_parts, {"quantization_config": GPTQ}, {}),
    "awq": (awq_parts, {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": GROUP}}, {}),
    "compressed-tensors": (packed_parts, {"quantization_config": compressed()}, {}),
    "fp8": (fp8_parts, {"quantization_config": {"quant_method": "fp8", "weight_block_size": [N, K // 2]}}, {}),
    "mlx": (mlx_parts, {"quantization": {"bits": 4, "group_size": GROUP}}, {}),
    "modelslim": (
        slim_parts,
        {},
        {"quant_model_description.json": {f"{module}.weight": "W8A16" for module in MODULES}},
    ),
}
SCALES = {"gptq": "scales", "awq": "scales", "compressed-tensors": "weight_scale", "fp8": "weight_scale_inv"}
SCALES |= {"mlx": "scales", "modelslim": "weight_scale"}
ZEROS = {"gptq": "qzeros", "awq": "qzeros", "compressed-tensors": "weight_zero_point", "mlx": "biases"}
ZEROS |= {"modelslim": "weight_offset"}


def opened(folder, matrices, layout, **said):
    _, config, files = LAYOUTS[layout]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return open_checkpoint(write(folder, matrices, {**config, **said}, files))


def refusal(folder, matrices, layout, **said):
    with pytest.raises(CheckpointError) as error:
        opened(folder, matrices, layout, **said)
    return str(error.value)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_whole_ones_open(tmp_path, layout):
    make = LAYOUTS[layout][0]
    reader = opened(tmp_path / "a", {module: make() for module in MODULES}, layout)
    for module in MODULES:
        assert reader.entries[f"{module}.weight"].shape == (N, K) and np.isfinite(reader.array(f"{module}.weight")).all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_wrong_scale_shape_in_each_matrix(tmp_path, layout):
    """One error names both matrices, what they have and what is expected."""
    matrices = {module: LAYOUTS[layout][0]() for module in MODULES}
    for parts in matrices.values():
        parts[SCALES[layout]] = parts[SCALES[layout]].repeat(3, axis=0)
    message = refusal(tmp_path / "a", matrices, layout)
    assert all(f"{module}: {SCALES[layout]} is [" in message for module in MODULES) and "2 problems" in message
    assert message.count("expected [") == 2


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scales_that_are_missing(tmp_path, layout):
    matrices = {module: LAYOUTS[layout][0]() for module in MODULES}
    del matrices[MODULES[1]][SCALES[layout]]
    message = refusal(tmp_path / "a", matrices, layout)
    named = "deq_scale and no input_scale" if layout == "modelslim" else SCALES[layout]
    assert f"{MODULES[1]}: " in message and f"but no {named}" in message and MODULES[0] not in message


@pytest.mark.parametrize("layout", ZEROS)
def test_zero_points_that_are_missing(tmp_path, layout):
    matrices = {module: LAYOUTS[layout][0]() for module in MODULES}
    del matrices[MODULES[0]][ZEROS[layout]]
    message = refusal(tmp_path / "a", matrices, layout)
    assert f"{MODULES[0]}: holds " in message and f"but no {ZEROS[layout]}" in message and MODULES[1] not in message


@pytest.mark.parametrize("layout", ["gptq", "awq", "compressed-tensors", "mlx"])
def test_groups_that_do_not_divide(tmp_path, layout):
    said = {
        "gptq": {"quantization_config": {**GPTQ, "group_size": 48}},
        "awq": {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 24}},
        "compressed-tensors": {"quantization_config": compressed({**ASYMMETRIC, "group_size": 48})},
        "mlx": {"quantization": {"bits": 4, "group_size": 48}},
    }[layout]
    message = refusal(tmp_path / "a", {MODULES[0]: LAYOUTS[layout][0]()}, layout, **said)
    assert MODULES[0] in message and ("no whole groups of" in message or "expected" in message)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.filterwarnings("ignore:.*quantised")
def test_scales_that_are_not_finite(tmp_path, layout, value):
    """One of many is enough, for converting as for loading."""
    make, config, files = LAYOUTS[layout]
    parts = make()
    parts[SCALES[layout]].reshape(-1)[-1] = value
    folder = write(tmp_path / "a", {MODULES[0]: parts}, config, files)
    with pytest.raises(CheckpointError, match=f"{MODULES[0]}: holds NaN or infinite"):
        convert(folder, tmp_path / "b", progress=False)


@pytest.mark.filterwarnings("ignore:.*quantised")
def test_a_number_of_float8_that_is_none(tmp_path):
    make, config, _ = LAYOUTS["fp8"]
    parts = make()
    parts["weight"][3, 5] = np.nan
    with pytest.raises(CheckpointError, match=f"{MODULES[0]}: holds NaN or infinite"):
        convert(write(tmp_path / "a", {MODULES[0]: parts}, config), tmp_path / "b", progress=False)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_truncated_file(tmp_path, layout):
    make, config, files = LAYOUTS[layout]
    folder = write(tmp_path / "a", {MODULES[0]: make()}, config, files)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match="model.safetensors: is truncated"):
        open_checkpoint(folder)


CONTRADICTIONS = {
    "bits": ("gptq", {"quantization_config": {**GPTQ, "bits": 8}}, "scales is"),
    "bits of mlx": ("mlx", {"quantization": {"bits": 8, "group_size": GROUP}}, "weight is .*expected .32, 16"),
    "blocks": (
        "fp8",
        {"quantization_config": {"quant_method": "fp8", "weight_block_size": [16, 16]}},
        "weight_scale_inv is",
    ),
    "no blocks": ("fp8", {"quantization_config": {"quant_method": "fp8", "weight_block_size": [0, "x"]}}, "two lengths"),
    "words": ("gptq", {"quantization_config": {**GPTQ, "group_size": "128"}}, "cannot be understood"),
    "symmetric": (
        "compressed-tensors",
        {"quantization_config": compressed({**ASYMMETRIC, "symmetric": True})},
        "weight_zero_point, but the configuration says symmetric",
    ),
    "no zero points": (
        "compressed-tensors",
        {"quantization_config": compressed({**ASYMMETRIC, "strategy": "tensor", "group_size": None})},
        "weight_scale is",
    ),
    "blocks of whole numbers": (
        "compressed-tensors",
        {"quantization_config": compressed({**ASYMMETRIC, "strategy": "block"})},
        "has scales by block, expected one of tensor, channel",
    ),
    "no order": (
        "compressed-tensors",
        {"quantization_config": compressed({**ASYMMETRIC, "actorder": "dynamic"})},
        "but no weight_g_idx",
    ),
    "no target": (
        "compressed-tensors",
        {
            "quantization_config": {
                **compressed(),
                "config_groups": {"g": {"targets": ["re:.*mlp.*"], "weights": ASYMMETRIC}},
            }
        },
        "no config_groups names it",
    ),
    "float": ("compressed-tensors", {"quantization_config": compressed({**ASYMMETRIC, "type": "float"})}, "says float of 4"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_configuration_that_contradicts_the_tensors(tmp_path, case):
    layout, said, expected = CONTRADICTIONS[case]
    with pytest.raises(CheckpointError, match=f"(?s){MODULES[0]}: .*{expected}"):
        opened(tmp_path / "a", {MODULES[0]: LAYOUTS[layout][0]()}, layout, **said)


def test_values_that_contradict_the_configuration(tmp_path):
    """They show when the matrix is read: zero points aside of the middle, an order of groups that nobody announced."""
    zeros = np.full((GROUPS, N), 8, np.uint8)
    zeros[0, 3] = 5
    order = np.arange(K) % GROUPS
    for number, (parts, expected) in enumerate(
        (
            (gptq(zeros=zeros)[0], "zero points reach from 5 to 8, expected 8"),
            (gptq(order=order)[0], "g_idx orders the groups, but the configuration says nothing of it"),
        )
    ):
        reader = opened(tmp_path / str(number), {MODULES[0]: parts}, "gptq")
        for read in (reader.array, reader.codes):
            with pytest.raises(CheckpointError, match=f"{MODULES[0]}: .*{expected}"):
                read(f"{MODULES[0]}.weight")
    for word, stored, expected in (
        ("weight_shape", np.array([N, K - 8]), "weight_shape says"),
        ("weight_g_idx", order.astype(np.int32), "g_idx orders the groups, but the configuration says nothing of it"),
    ):
        reader = opened(tmp_path / word, {MODULES[0]: packed_parts() | {word: stored}}, "compressed-tensors")
        with pytest.raises(CheckpointError, match=expected):
            reader.array(f"{MODULES[0]}.weight")


@pytest.mark.parametrize(
    "bits, stored", [(4, [3, 15, 7]), (4, [15, 15, 15]), (8, [255, 1, 4]), (2, [3, 0, 0]), (3, [1, 2, 7])]
)
def test_zero_points_that_tools_read_differently(tmp_path, bits, stored):
    """In version 1 of GPTQ a stored 2^bits - 1 is a zero point of 0, for which each tool does something else to its neighbours."""
    stream = np.zeros((GROUPS, N), np.uint8)
    stream[0, : len(stored)] = stored
    words = np.packbits((stream[..., None] >> np.arange(bits)) & 1, axis=None, bitorder="little").view(np.int32)
    parts = {"qweight": np.zeros((K * bits // 32, N), np.int32), "qzeros": words.reshape(GROUPS, -1)}
    parts["scales"] = scales((GROUPS, N))
    said = {"quantization_config": {**GPTQ, "bits": bits, "sym": False}}
    reader = opened(tmp_path / "a", {MODULES[0]: parts}, "gptq", **said)
    with pytest.raises(CheckpointError, match="zero points of 0 in version 1 of GPTQ.*take a checkpoint in version 2"):
        reader.array(f"{MODULES[0]}.weight")
    stream[0, : len(stored)] = 0
    stream[0, -1] = 2**bits - 2  # the largest zero point
    words = np.packbits((stream[..., None] >> np.arange(bits)) & 1, axis=None, bitorder="little").view(np.int32)
    parts["qzeros"] = words.reshape(GROUPS, -1)
    array = opened(tmp_path / "b", {MODULES[0]: parts}, "gptq", **said).array(f"{MODULES[0]}.weight")
    np.testing.assert_allclose(array[-1, 0], -(2**bits - 1) * parts["scales"][0, -1].astype(np.float32), rtol=2**-8)


def test_shapes_that_no_tool_writes(tmp_path):
    """Twelve outputs leave half a word of zero points out."""
    parts = {word: array[:, :12] for word, array in gptq_parts().items()}
    said = {"quantization_config": {**GPTQ, "sym": False}}
    reader = opened(tmp_path / "a", {MODULES[0]: parts | {"qzeros": parts["qzeros"][:, :1]}}, "gptq", **said)
    with pytest.raises(CheckpointError, match=f"(?s)does not hold what GPTQ writes.*{MODULES[0]}: "):
        reader.array(f"{MODULES[0]}.weight")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tensors_that_are_no_matrices(tmp_path, layout):
    parts = LAYOUTS[layout][0]()
    word = next(iter(parts))
    message = refusal(tmp_path / "a", {MODULES[0]: parts | {word: parts[word].reshape(-1)}}, layout)
    assert f"{MODULES[0]}: {word} is [" in message and "expected two axes" in message


def test_a_configuration_that_nobody_can_read(tmp_path):
    with pytest.raises(CheckpointError, match="config.json: what it says of quantised weights cannot be understood"):
        opened(
            tmp_path / "a",
            {MODULES[0]: packed_parts()},
            "compressed-tensors",
            quantization_config=compressed() | {"config_groups": []} | {"config_groups": [1]},
        )


def test_a_configuration_of_weights_that_are_not_quantised(tmp_path):
    message = refusal(tmp_path / "a", {MODULES[0]: {"weight": np.ones((N, K), np.float32)}}, "gptq")
    assert "none of its matrices is quantised" in message


METHODS = {
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "hqq": {"quant_method": "hqq"},
    "torchao": {"quant_method": "torchao", "quant_type": "int4_weight_only"},
    "gguf": {"quant_method": "gguf"},
    "AWQ in form gemv": {"quant_method": "awq", "version": "gemv", "bits": 4},
    "GPTQ in form marlin": {**GPTQ, "checkpoint_format": "marlin"},
    "AutoRound in packing_format auto_round:fp8_static": {
        "quant_method": "auto-round",
        "packing_format": "auto_round:fp8_static",
    },
    "nvfp4-pack-quantized": compressed(format="nvfp4-pack-quantized"),
    "sparsity .sparse-24-bitmask": compressed(sparsity_config={"format": "sparse-24-bitmask"}),
    "unknown": {"bits": 4},
}


@pytest.mark.parametrize("method", METHODS)
def test_methods_that_are_not_read_are_named(tmp_path, method):
    folder = write(tmp_path / "a", {MODULES[0]: gptq_parts()}, {"quantization_config": METHODS[method]})
    with pytest.raises(CheckpointError, match=f"(?i)quantised by .*{method}.*made from"):
        open_checkpoint(folder)


def test_files_that_say_that_another_method_was_used(tmp_path):
    files = {"hf_quant_config.json": {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4"}}}
    folder = write(tmp_path / "a", {MODULES[0]: gptq_parts()}, {}, files)
    with pytest.raises(CheckpointError, match="hf_quant_config.json: .*not read: modelopt"):
        open_checkpoint(folder)
    folder = write(
        tmp_path / "b", {MODULES[0]: mlx_parts()}, {"quantization": {"bits": 4, "group_size": 32, "mode": "mxfp4"}}
    )
    with pytest.raises(CheckpointError, match="MLX in mode mxfp4"):
        open_checkpoint(folder)
    folder = write(tmp_path / "c", {MODULES[0]: slim_parts()}, {"quantization_config": {"quant_method": "ascend"}})
    with pytest.raises(CheckpointError, match="quant_model_description.json is missing"):
        open_checkpoint(folder)
    files = {"quant_model_description.json": {f"{MODULES[0]}.weight": "W4A8_DYNAMIC"}}
    folder = write(tmp_path / "d", {MODULES[0]: slim_parts()}, {}, files)
    with pytest.raises(CheckpointError, match=f"{MODULES[0]}: is W4A8_DYNAMIC by the description, expected one of W8A8"):
        open_checkpoint(folder)


def test_from_pretrained_says_the_same(tiny_checkpoint, tmp_path):
    """Nothing is built before: the error is that of opening."""
    folder = write(tmp_path / "a", {MODULES[0]: gptq_parts()}, {"quantization_config": {"quant_method": "hqq"}})
    (folder / "config.json").write_text(
        (tiny_checkpoint / "config.json").read_text().rstrip().removesuffix("}")
        + ', "quantization_config": {"quant_method": "hqq"}}'
    )
    with pytest.raises(CheckpointError, match="not read: hqq"):
        ms_omni.Qwen3OmniMoeForConditionalGeneration.from_pretrained(folder)
