"""Small folders in published layouts for the tests of single forms: two matrices of a thinker's attention, nothing else."""

import json

import numpy as np

from ms_omni.checkpoint.safetensors import Pending, dtype_name, write_file
from tests.reference.published_cases import pack

N, K, GROUP = 32, 64, 32
MODULES = tuple(f"thinker.model.layers.0.self_attn.{name}_proj" for name in "qk")
SHAPE = (N, K)


def numbers(bits, shape=SHAPE, seed=0):
    """Random whole numbers of `bits`, uint8."""
    return np.random.RandomState(seed).randint(0, 2**bits, shape).astype(np.uint8)


def scales(shape, dtype=np.float16, seed=1):
    return (0.01 * (1 + np.random.RandomState(seed).rand(*shape))).astype(dtype)


def gptq(bits=4, zeros=None, minus_one=True, seed=0, order=None):
    """One matrix: (its tensors, the weight that they stand for). minus_one: is taken off the words of the zero points, as GPTQModel does."""
    q, s = numbers(bits, seed=seed), scales((K // GROUP, N))
    z = np.full((K // GROUP, N), 2 ** (bits - 1), np.uint8) if zeros is None else zeros
    group_of = np.arange(K) // GROUP if order is None else order
    weight = (q.astype(np.float32) - z.T[:, group_of]) * s.T[:, group_of].astype(np.float32)
    ones = np.uint32(minus_one * (0xFFFFFFFF // (2**bits - 1)))
    words = (pack("packed", z, bits).view(np.uint32) - ones).view(np.int32)
    tensors = {"qweight": pack("gptq", q, bits), "qzeros": words, "scales": s}
    return tensors | ({} if order is None else {"g_idx": order.astype(np.int32)}), weight


def write(folder, matrices, said, files=None, **more):
    """A folder with `{module: tensors}` and `said` in its config.json; files: {name: content} beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"{module}.{word}": array for module, parts in matrices.items() for word, array in parts.items()}
    if more.get("norm", True):
        tensors |= {"thinker.model.norm.weight": np.ones(K, np.float32)}
    pending = [
        Pending(name, dtype_name(array.dtype), array.shape, lambda a=array: np.ascontiguousarray(a))
        for name, array in tensors.items()
    ]
    write_file(folder / more.get("file", "model.safetensors"), pending, more.get("metadata", {}), lambda nbytes: None)
    (folder / "config.json").write_text(json.dumps({"dtype": "bfloat16", **said}), encoding="utf-8")
    for name, content in (files or {}).items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder
