"""GPTQ's and AWQ's layouts, which AutoRound writes too: `qweight`, `qzeros`, `scales`, `g_idx`.

GPTQ (AutoGPTQ, GPTQModel, auto-round's `auto_round_extension/torch/qlinear_torch_zp.py`): numbers of 2, 3, 4 or 8 bits, along the inputs.
    qweight int32 [K bits / 32, N]   qzeros int32 [G, N bits / 32]   scales float16 [G, N]   g_idx int32 [K]
    weight[n, k] = (q - zero[g_idx[k], n]) * scales[g_idx[k], n]
Zero points are stored minus 1, except in version 2 (`gptq_v2`, and auto-round's own formats). `desc_act` orders the groups by
activations, so that neighbours share no scale: such matrices are dequantised.

AWQ (AutoAWQ `gemm`): 4 bits, along the outputs, in the order of `bits.AWQ_ORDER`; zero points as they are.
    qweight int32 [K, N / 8]   qzeros int32 [G, N / 8]   scales float16 [G, N]
"""

import re
from collections.abc import Mapping
from functools import partial

import numpy as np

from .bits import unpack_awq, unpack_bits
from .matrix import Decoded, Matrix, Misfit, expect, expect_scales, groups_of, need, offsets_of, storage_for, two_axes

WORDS = {"qweight", "qzeros", "scales", "g_idx"}


class Gptq:
    """GPTQ. config: quantization_config. minus_one: whether zero points are stored minus 1."""

    dropped = ()

    def __init__(self, config: Mapping, title: str, minus_one: bool):
        self.config, self.title, self.minus_one = config, title, minus_one

    def holds(self, parts):
        return bool({"qweight", "qzeros", "g_idx"} & parts.keys())

    def uses(self, parts):
        return WORDS & parts.keys()

    def matrix(self, module, parts):
        need(parts, "qweight", "qzeros", "scales")
        said = {**self.config, **overrides(self.config, module)}
        bits, group, symmetric = said.get("bits"), said.get("group_size"), bool(said.get("sym", True))
        rows, outputs = two_axes(parts, "qweight")
        if bits not in (2, 3, 4, 8):
            raise Misfit(f"{bits!r} bits, expected 2, 3, 4 or 8")
        inputs = rows * 32 // bits
        groups = groups_of(inputs, group)
        scale = expect_scales(parts, "scales", (groups, outputs))
        expect(parts, "qweight", ("I32",), (inputs * bits // 32, outputs))
        expect(parts, "qzeros", ("I32",), (groups, outputs * bits // 32))
        ordered = bool(said.get("desc_act")) and groups > 1
        if ordered:
            need(parts, "g_idx")
        if "g_idx" in parts:
            expect(parts, "g_idx", ("I32",), (inputs,))
        storage, why = storage_for(bits, (outputs, inputs), groups, scale, None if symmetric else "F32")
        if ordered:
            storage, why = None, "desc_act orders its groups by activations"
        decode = partial(self._decode, bits=bits, symmetric=symmetric, ordered=ordered)
        return Matrix((outputs, inputs), scale, storage, why, decode)

    def _decode(self, arrays, bits, symmetric, ordered):
        words, scales = arrays["qweight"], np.ascontiguousarray(arrays["scales"].T)  # [N, G]
        inputs, (outputs, groups), half = len(words) * 32 // bits, scales.shape, 1 << (bits - 1)
        codes = (unpack_bits(words.T, bits, inputs).astype(np.int16) - half).astype(np.int8)
        zeros = unpack_bits(arrays["qzeros"], bits, outputs).T.astype(np.int32) + self.minus_one - half
        if symmetric:
            _check_middle(zeros, half)
        offsets = None if symmetric else offsets_of(zeros, scales)
        group_of = arrays["g_idx"] if ordered else None
        if group_of is not None and (group_of.min() < 0 or group_of.max() >= groups):
            raise Misfit(f"g_idx reaches from {group_of.min()} to {group_of.max()}, expected 0 to {groups - 1}")
        if not ordered and "g_idx" in arrays and (arrays["g_idx"] != np.arange(inputs) // (inputs // groups)).any():
            raise Misfit("g_idx orders the groups, but the configuration says no desc_act")
        return Decoded(codes, scales, offsets, group_of)


class Awq:
    """AWQ, `gemm`."""

    dropped = ()

    def __init__(self, config: Mapping, title: str):
        self.config, self.title = config, title

    def holds(self, parts):
        return bool({"qweight", "qzeros"} & parts.keys())

    def uses(self, parts):
        return {"qweight", "qzeros", "scales"} & parts.keys()

    def matrix(self, module, parts):
        need(parts, "qweight", "qzeros", "scales")
        said = {**self.config, **overrides(self.config, module)}
        bits, group = said.get("bits", said.get("w_bit")), said.get("group_size", said.get("q_group_size"))
        if bits != 4:
            raise Misfit(f"{bits!r} bits, expected 4")
        inputs, words = two_axes(parts, "qweight")
        outputs, groups = 8 * words, groups_of(inputs, group)
        scale = expect_scales(parts, "scales", (groups, outputs))
        expect(parts, "qweight", ("I32",), (inputs, words))
        expect(parts, "qzeros", ("I32",), (groups, words))
        symmetric = bool(said.get("sym", not said.get("zero_point", True)))
        storage, why = storage_for(bits, (outputs, inputs), groups, scale, None if symmetric else "F32")
        return Matrix((outputs, inputs), scale, storage, why, partial(_decode_awq, symmetric=symmetric))


def _decode_awq(arrays, symmetric):
    scales = np.ascontiguousarray(arrays["scales"].T)
    codes = np.ascontiguousarray(unpack_awq(arrays["qweight"]).T).astype(np.int8) - 8
    zeros = unpack_awq(arrays["qzeros"]).T.astype(np.int32) - 8
    if symmetric:
        _check_middle(zeros, 8)
    return Decoded(codes, scales, None if symmetric else offsets_of(zeros, scales))


def _check_middle(zeros, half):
    if zeros.any():
        reach = f"from {zeros.min() + half} to {zeros.max() + half}"
        raise Misfit(f"the configuration says that it is symmetric, but its zero points reach {reach}, expected {half}")


def overrides(config: Mapping, module: str) -> dict:
    """What the configuration says of one module: auto-round's `extra_config`, GPTQModel's `dynamic` (regular expressions).

    Entries of 16 bits are for modules that were left as they are, and their patterns reach further (`.*mlp.gate.*`).
    """
    said = {}
    for name, fields in (config.get("extra_config") or {}).items():
        if (name == module or _found(name, module)) and ((fields or {}).get("bits") or 0) < 16:
            said.update({key: value for key, value in (fields or {}).items() if value is not None})
    for name, fields in (config.get("dynamic") or {}).items():
        if not name.startswith("-:") and isinstance(fields, Mapping) and _found(name.removeprefix("+:"), module):
            said.update(fields)
    return said


def _found(pattern, module):
    try:
        return re.match(pattern, module) is not None
    except re.error:
        return False
