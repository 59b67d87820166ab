"""Record what other tools make of a tiny checkpoint: their scales, what their codes dequantise to, and the logits.

Run from the repository's root, in an environment made from tests/reference/requirements_published.txt:

    python -m tests.reference.record_published --python /path/to/the/runtime/python

The runtime python writes the checkpoint (`published_cases.write_base`). auto-round and llm-compressor quantise and save it,
transformers' own operations write float8 in blocks, `mx.quantize` MLX's layout. Each is dequantised by the tool's own code, in float32,
and transformers' model with those weights gives the logits. `--keep DIR` leaves the checkpoints of the tools there.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.reference import published_cases as cases
from tests.reference.store import DATA, Recorder

sys.modules.setdefault("torchvision", None)  # transformers looks for it although the model never uses it
COLUMNS = 32
AUTO_ROUND = {  # name: (bits, symmetric, format, layout, whether zero points are stored minus 1)
    "auto_round": (4, True, "auto_round", "gptq", True),
    "auto_round_8": (8, True, "auto_round", "gptq", True),
    "auto_round_gptqmodel": (4, False, "auto_round:gptqmodel", "gptq", False),
    "auto_gptq_asymmetric": (4, False, "auto_gptq", "gptq", True),
    "auto_round_awq": (4, False, "auto_round", "awq", False),  # what it takes for 4 bits with zero points
}
COMPRESSED = {  # name: (scheme of the weights, layout, bits)
    "packed": (dict(num_bits=4, symmetric=True, strategy="group", group_size=cases.GROUP), "packed", 4),
    "packed_asymmetric": (dict(num_bits=4, symmetric=False, strategy="group", group_size=cases.GROUP), "packed", 4),
    "packed_8": (dict(num_bits=8, symmetric=True, strategy="channel"), "packed", 8),
    "packed_8_asymmetric": (dict(num_bits=8, symmetric=False, strategy="group", group_size=cases.GROUP), "packed", 8),
    "int_quantized": ("W8A8", "whole", 8),
    "float_quantized": ("FP8_DYNAMIC", "float8", 8),
    "float_quantized_block": ("FP8_BLOCK", "float8", 8),
}
LEFT = ["re:.*lm_head", "re:.*mlp.gate$", "re:.*visual.*", "re:.*audio_tower.*"]


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="the python that has mindspore and ms_omni")
    parser.add_argument("--keep", type=Path, help="a new folder for the checkpoints of the tools")
    parser.add_argument("--out", type=Path, default=DATA / "published.npz")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch:
        root = options.keep or Path(scratch)
        root.mkdir(exist_ok=True)
        code = f"from tests.reference.published_cases import *; write_base(Path({str(root / 'base')!r}))"
        subprocess.run([options.python, "-c", code], check=True)
        recorder = Recorder()
        model = load(root / "base")
        recorder.add("base/logits", logits(model))
        for name, (bits, symmetric, form, layout, minus_one) in AUTO_ROUND.items():
            folder = auto_round(root / "base", root / name, bits, symmetric, form)
            record(recorder, name, root / "base", folder, layout, bits, minus_one)
        for name, (scheme, layout, bits) in COMPRESSED.items():
            compressed(root / "base", root / name, scheme)
            record(recorder, name, root / "base", root / name, layout, bits)
        fp8_blocks(root / "base", root / "fp8_blocks")
        record(recorder, "fp8_blocks", root / "base", root / "fp8_blocks", "float8", 8)
        for bits in (4, 8):
            mlx(root / "base", root / f"mlx_{bits}", bits)
            record(recorder, f"mlx_{bits}", root / "base", root / f"mlx_{bits}", "mlx", bits)
        recorder.save(options.out)
    print(f"{options.out}: {options.out.stat().st_size:,} bytes")
    return 0


def load(folder, **options):
    import torch
    from transformers import Qwen3OmniMoeForConditionalGeneration

    model, info = Qwen3OmniMoeForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, **options
    )
    if any(info.values()):
        raise RuntimeError(f"{folder} is not loaded completely: {info}")
    return model.eval()


def logits(model) -> np.ndarray:
    import torch

    ids = torch.from_numpy(cases.token_ids())
    with torch.no_grad():
        out = model.thinker(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    return out[0, :, :: out.shape[-1] // COLUMNS].float().numpy()


def record(recorder, name, base, folder, layout, bits, minus_one=False):
    """What the tests need of one checkpoint of a tool, and what they compare with."""
    from safetensors.torch import load_file

    before = cases.CheckpointReader(base)
    names = cases.modules(before.entries)
    stored = {key: _numpy(value) for key, value in load_file(folder / "model.safetensors").items()}
    tensors = {key: stored[key] for key in sorted(stored) if key.rpartition(".")[0] in names}
    config = json.loads((folder / "config.json").read_text())
    key = "quantization" if layout == "mlx" else "quantization_config"
    code, places, values, small, start = cases.CODES[layout], [], [], {}, 0
    for module in names:
        weight = before.array(f"{module}.weight")
        parts = {word.removeprefix(f"{module}."): array for word, array in tensors.items() if word.startswith(f"{module}.")}
        numbers = np.ascontiguousarray(cases.unpack(layout, parts.pop(code), bits))
        guess = np.ascontiguousarray(cases.nearest(layout, weight, parts, bits, minus_one))
        more = numbers.view(np.uint8).reshape(-1) - guess.view(np.uint8).reshape(-1)
        places.append(np.flatnonzero(more) + start)
        values.append(more[more != 0])
        small |= {f"{module}.{word}": array for word, array in parts.items()}
        start += weight.size
    recorder.add(f"{name}/small", np.concatenate([array.reshape(-1).view(np.uint8) for array in small.values()]), 10**9)
    steps = np.diff(np.concatenate(places), prepend=0)
    recorder.add(f"{name}/fix_at", steps.astype(np.uint16), 10**9)
    recorder.add(f"{name}/fix", np.concatenate(values), 10**9)
    weights = dequantised(folder, names)
    recorder.add(f"{name}/weights", np.concatenate([cases.sampled(weights[module]) for module in names]))
    model = load(base)
    place(model, weights)
    recorder.add(f"{name}/logits", logits(model))
    recorder.notes[name] = {
        "layout": layout,
        "bits": bits,
        "minus_one": minus_one,
        "key": key,
        "config": config[key],
        "table": [[word, cases.dtype_name(array.dtype), list(array.shape)] for word, array in small.items()],
        "digest": cases.digest(tensors),
    }
    print(f"{name}: {len(tensors)} tensors, {sum(map(len, places))} codes that are not the nearest", flush=True)


def _numpy(tensor):
    import ml_dtypes
    import torch

    views = {torch.bfloat16: (torch.int16, ml_dtypes.bfloat16), torch.float8_e4m3fn: (torch.uint8, ml_dtypes.float8_e4m3fn)}
    if tensor.dtype in views:
        through, dtype = views[tensor.dtype]
        return tensor.contiguous().view(through).numpy().view(dtype)
    return tensor.contiguous().numpy()


def place(model, weights):
    """Puts `{module: weight}` into transformers' model, where experts are stacked."""
    import torch

    for module, weight in weights.items():
        weight = torch.from_numpy(np.ascontiguousarray(weight))
        if ".experts." not in module:
            model.get_submodule(module).weight.data.copy_(weight)
            continue
        owner, number, kind = module.rsplit(".", 2)
        experts, half = model.get_submodule(owner), len(weight)
        rows = {"gate_proj": slice(0, half), "up_proj": slice(half, None), "down_proj": slice(None)}[kind]
        stack = experts.down_proj if kind == "down_proj" else experts.gate_up_proj
        stack.data[int(number), rows] = weight


def dequantised(folder, names) -> dict[str, np.ndarray]:
    """{module: weight} in float32, by the tool's own code."""
    import torch
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    said = config.get("quantization_config", {})
    method = said.get("quant_method", "mlx")
    weights = {}
    for module in names:
        parts = {key.removeprefix(f"{module}."): value for key, value in tensors.items() if key.startswith(f"{module}.")}
        if method == "compressed-tensors":
            weights[module] = _of_compressed(parts, said)
        elif method == "fp8":
            from transformers.integrations.finegrained_fp8 import Fp8Dequantize

            weights[module] = Fp8Dequantize(None)._dequantize_one(parts["weight"], parts["weight_scale_inv"], torch.float32)
        elif method == "mlx":
            weights[module] = _of_mlx(parts, config["quantization"])
        else:
            weights[module] = _of_auto_round(parts, said)
    return {module: np.asarray(weight, np.float32) for module, weight in weights.items()}


def _of_compressed(parts, said):
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationScheme

    scheme = QuantizationScheme.model_validate(said["config_groups"]["group_0"])
    parts = {key: value.float() if key == "weight_scale" else value for key, value in parts.items()}
    return (
        BaseCompressor.get_value_from_registry(said["config_groups"]["group_0"]["format"])
        .decompress(parts, scheme)["weight"]
        .float()
    )


def _of_auto_round(parts, said):
    """The layers of auto-round multiply with the identity: that is their weight, transposed."""
    import torch
    from auto_round.export.export_to_awq.utils import dequantize_gemm
    from auto_round_extension.torch import qlinear_torch, qlinear_torch_zp

    bits, group = said["bits"], said["group_size"]
    if "awq" in said.get("packing_format", ""):
        return dequantize_gemm(parts["qweight"], parts["qzeros"], parts["scales"].float(), bits, group).T
    kind = qlinear_torch if said.get("packing_format") == "auto_round:gptqmodel" else qlinear_torch_zp
    inputs, outputs = parts["qweight"].shape[0] * 32 // bits, parts["qweight"].shape[1]
    layer = kind.QuantLinear(bits, group, inputs, outputs, False)
    layer.qweight, layer.qzeros, layer.scales = parts["qweight"], parts["qzeros"], parts["scales"].float()
    return layer(torch.eye(inputs)).T


def _of_mlx(parts, said):
    import mlx.core as mx

    arrays = [mx.array(parts["weight"].numpy())] + [mx.array(parts[key].float().numpy()) for key in ("scales", "biases")]
    return np.array(mx.dequantize(*arrays, group_size=said["group_size"], bits=said["bits"]))


def auto_round(base, folder, bits, symmetric, form):
    import torch
    from auto_round import AutoRound
    from transformers import AutoTokenizer, Qwen3OmniMoeForConditionalGeneration

    model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(base, dtype=torch.bfloat16)
    tokenizer = AutoTokenizer.from_pretrained(base)
    options = dict(bits=bits, group_size=cases.GROUP, sym=symmetric, iters=0, disable_opt_rtn=True, device_map="cpu")
    AutoRound(model, tokenizer=tokenizer, **options).quantize_and_save(str(folder), format=form)
    return next(folder.rglob("model.safetensors")).parent


def compressed(base, folder, scheme):
    import torch
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from transformers import Qwen3OmniMoeForConditionalGeneration

    model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(base, dtype=torch.bfloat16)
    if isinstance(scheme, str):
        how = dict(targets="Linear", scheme=scheme)
    else:
        how = dict(config_groups={"group_0": QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**scheme))})
    if scheme == "W8A8":  # activations by token, no calibration
        weights = QuantizationArgs(num_bits=8, symmetric=True, strategy="channel")
        inputs = QuantizationArgs(num_bits=8, symmetric=True, strategy="token", dynamic=True)
        group = QuantizationScheme(targets=["Linear"], weights=weights, input_activations=inputs)
        how = dict(config_groups={"group_0": group})
    oneshot(model=model, recipe=QuantizationModifier(ignore=LEFT, **how))
    model.save_pretrained(folder, save_compressed=True)


def fp8_blocks(base, folder):
    """transformers quantises to float8 on an accelerator only; this is its own operation, matrix by matrix."""
    from types import SimpleNamespace

    from safetensors.torch import load_file, save_file
    from transformers import FineGrainedFP8Config
    from transformers.integrations.finegrained_fp8 import Fp8Quantize

    config = FineGrainedFP8Config(weight_block_size=(32, 32))
    operation = Fp8Quantize(SimpleNamespace(quantization_config=config))
    tensors = load_file(base / "model.safetensors")
    for module in cases.modules(tensors):
        tensors |= operation._quantize_one(f"{module}.weight", tensors.pop(f"{module}.weight"))
    _save(base, folder, tensors, {"quantization_config": config.to_dict()}, save_file)


def mlx(base, folder, bits):
    """`mx.quantize` of each matrix, under the published names; mlx-vlm's own names are tested without it."""
    import mlx.core as mx
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(base / "model.safetensors")
    for module in cases.modules(tensors):
        weight = mx.array(tensors.pop(f"{module}.weight").float().numpy()).astype(mx.bfloat16)
        packed, scales, biases = mx.quantize(weight, group_size=cases.GROUP, bits=bits)
        tensors[f"{module}.weight"] = torch.from_numpy(np.array(packed))
        for word, array in (("scales", scales), ("biases", biases)):
            tensors[f"{module}.{word}"] = torch.from_numpy(np.array(array.astype(mx.float32))).bfloat16()
    _save(base, folder, tensors, {"quantization": {"group_size": cases.GROUP, "bits": bits}}, save_file)


def _save(base, folder, tensors, said, save_file):
    folder.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    config = json.loads((base / "config.json").read_text()) | said
    (folder / "config.json").write_text(json.dumps(config))


if __name__ == "__main__":
    sys.exit(main())
