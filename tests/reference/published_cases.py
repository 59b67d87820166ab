"""Tiny checkpoints in the layouts of other tools: what the tools decided is recorded, the rest follows from a seed. numpy only.

A tool's scales and zero points are kept (tests/reference/data/published.npz), and where its codes are not the nearest ones. The codes
themselves are made again from the seeded weights, packed here, and have the digest of what the tool wrote: tests read the very bytes.
"""

import hashlib
import json
from pathlib import Path

import ml_dtypes
import numpy as np

from ms_omni.checkpoint.reader import CheckpointReader
from ms_omni.checkpoint.safetensors import DTYPES, Pending, dtype_name, write_shards

from .store import Reference, sample

SEED, GROUP, TOKENS = 17, 32, 6
CODES = {
    "gptq": "qweight",
    "awq": "qweight",
    "packed": "weight_packed",
    "whole": "weight",
    "float8": "weight",
    "mlx": "weight",
}
AWQ_COLUMNS = (0, 2, 4, 6, 1, 3, 5, 7)  # which of eight columns stands in which nibble


def geometry(root: Path = Path("configs")) -> dict:
    """The configuration `tiny`, smaller, with inputs that are whole groups."""
    config = json.loads((root / "tiny.json").read_text(encoding="utf-8"))
    small = dict(num_hidden_layers=1, num_experts=2, moe_intermediate_size=64, num_attention_heads=2, num_key_value_heads=1)
    config["thinker_config"]["text_config"].update(small)
    config["talker_config"]["accept_hidden_layer"] = 1
    return config


def write_base(folder: Path) -> None:
    """The checkpoint that the tools quantise: bfloat16, understanding only."""
    from ms_omni.tiny import write_tiny_checkpoint

    write_tiny_checkpoint(folder, geometry=geometry(), seed=SEED, dtype="bfloat16", shards=1, talker=False)


def modules(names) -> list[str]:
    """The matrices that are quantised: attention and experts of the thinker."""
    chosen = [name for name in sorted(names) if "thinker.model.layers." in name and name.endswith("_proj.weight")]
    return [name.removesuffix(".weight") for name in chosen]


def token_ids() -> np.ndarray:
    return np.random.RandomState(SEED).randint(0, 300, (1, TOKENS))


def unpack(layout: str, stored: np.ndarray, bits: int) -> np.ndarray:
    """The numbers `[N, K]` of a stored tensor of codes, as it holds them."""
    if layout in ("whole", "float8"):
        return stored
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    words = stored.view(np.uint32).T if layout == "gptq" else stored.view(np.uint32)
    numbers = ((words[..., None] >> shifts) & (2**bits - 1)).astype(np.uint8)
    if layout == "awq":
        columns = np.empty_like(numbers)
        columns[..., AWQ_COLUMNS] = numbers
        return columns.reshape(len(words), -1).T
    return numbers.reshape(len(words), -1)


def pack(layout: str, numbers: np.ndarray, bits: int) -> np.ndarray:
    """The inverse of `unpack`."""
    if layout in ("whole", "float8"):
        return numbers
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    if layout == "awq":
        eights = np.ascontiguousarray(numbers.T).reshape(numbers.shape[1], -1, 8)[..., AWQ_COLUMNS]
    else:
        eights = numbers.reshape(len(numbers), -1, 32 // bits)
    words = np.bitwise_or.reduce(eights.astype(np.uint32) << shifts, axis=-1)
    words = np.ascontiguousarray(words.T) if layout == "gptq" else words
    return words if layout == "mlx" else words.view(np.int32)


def nearest(layout: str, weight: np.ndarray, parts: dict[str, np.ndarray], bits: int, minus_one: bool) -> np.ndarray:
    """The codes next to a weight `[N, K]` for a tool's scales and zero points, which a tool may round otherwise at ties."""
    weight, half = weight.astype(np.float32), 2 ** (bits - 1)

    def wide(array):  # of groups, channels or blocks -> of every weight
        array = np.atleast_2d(array.astype(np.float32))
        array = np.repeat(array, -(-weight.shape[0] // array.shape[0]), axis=0)[: weight.shape[0]]
        return np.repeat(array, -(-weight.shape[1] // array.shape[1]), axis=1)[:, : weight.shape[1]]

    if layout == "mlx":
        return np.clip(np.rint((weight - wide(parts["biases"])) / wide(parts["scales"])), 0, 2 * half - 1).astype(np.uint8)
    if layout in ("gptq", "awq"):
        zeros = unpack("packed" if layout == "gptq" else "awq", parts["qzeros"], bits).astype(np.int32)
        zeros = (zeros.T if layout == "gptq" else zeros) + minus_one
        steps = np.rint(weight / wide(parts["scales"].T)) + wide(zeros)
        return np.clip(steps, 0, 2 * half - 1).astype(np.uint8)
    scales = parts["weight_scale_inv" if "weight_scale_inv" in parts else "weight_scale"]
    if layout == "float8":
        steps = (weight / wide(scales)).astype(scales.dtype).astype(np.float32)
        return np.clip(steps, -448, 448).astype(ml_dtypes.float8_e4m3fn)
    zeros = np.zeros((1, 1))
    if "weight_zero_point" in parts:
        zeros = unpack("gptq", parts["weight_zero_point"], bits).T.astype(np.int32) - half
        zeros = zeros.T if zeros.shape[0] != len(weight) else zeros
    steps = (weight / wide(scales)).astype(scales.dtype).astype(np.float32) + wide(
        zeros
    )  # it computes in the dtype of the scales
    steps = np.clip(np.rint(steps.astype(scales.dtype).astype(np.float32)), -half, half - 1)
    return steps.astype(np.int8) if layout == "whole" else (steps + half).astype(np.uint8)


def digest(tensors: dict[str, np.ndarray]) -> str:
    state = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name]
        state.update(f"{name} {dtype_name(array.dtype)} {list(array.shape)}\n".encode() + array.tobytes())
    return state.hexdigest()


def tensors_of(case: str, reference: Reference, base: CheckpointReader) -> dict[str, np.ndarray]:
    """The quantised tensors of a case, byte for byte as the tool wrote them."""
    said = reference.notes[case]
    layout, bits, blob, at = said["layout"], said["bits"], reference[f"{case}/small"], 0
    tensors: dict[str, np.ndarray] = {}
    for name, dtype, shape in said["table"]:
        nbytes = int(np.prod(shape)) * DTYPES[dtype].itemsize
        tensors[name] = blob[at : at + nbytes].view(DTYPES[dtype]).reshape(shape)
        at += nbytes
    places, values = np.cumsum(reference[f"{case}/fix_at"], dtype=np.int64), reference[f"{case}/fix"]
    start = 0
    for module in modules(base.entries):
        weight = base.array(f"{module}.weight")
        parts = {name.removeprefix(f"{module}."): array for name, array in tensors.items() if name.startswith(f"{module}.")}
        numbers = np.ascontiguousarray(nearest(layout, weight, parts, bits, said["minus_one"]))
        here = (places >= start) & (places < start + weight.size)
        numbers.view(np.uint8).reshape(-1)[places[here] - start] += values[here]
        tensors[f"{module}.{CODES[layout]}"] = pack(layout, numbers, bits)
        start += weight.size
    assert digest(tensors) == said["digest"], f"{case}: not the bytes that the tool wrote"
    return tensors


def write(case: str, reference: Reference, base: Path, folder: Path) -> None:
    """The checkpoint folder of a case: the base with quantised tensors instead of some, and what config.json says of them."""
    reader, quantised = CheckpointReader(base), tensors_of(case, reference, CheckpointReader(base))
    gone = {f"{module}.weight" for module in modules(reader.entries)}
    tensors = {name: reader.array(name) for name in reader.entries if name not in gone} | quantised
    write_folder(folder, tensors, base, {reference.notes[case]["key"]: reference.notes[case]["config"]})


def write_folder(folder: Path, tensors: dict[str, np.ndarray], base: Path, said: dict) -> None:
    """A folder with these tensors, the settings of `base`, and `said` in its config.json."""
    folder.mkdir(parents=True)
    for path in base.iterdir():
        if path.suffix != ".safetensors" and path.name != "config.json":
            (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((base / "config.json").read_text(encoding="utf-8")) | said
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    pending = [Pending(name, dtype_name(array.dtype), array.shape, lambda a=array: a) for name, array in tensors.items()]
    write_shards(folder, pending, {"format": "pt"})


def sampled(weight: np.ndarray) -> np.ndarray:
    """Some numbers of a matrix, the same ones whenever it has this shape."""
    return sample(weight, 32)
