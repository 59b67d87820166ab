"""GPTQ's and AWQ's layouts, which AutoRound writes too: `qweight`, `qzeros`, `scales`, `g_idx`.

GPTQ (AutoGPTQ, GPTQModel, auto-round's `auto_round_extension/torch/qlinear_torch_zp.py`): numbers of 2, 3, 4 or 8 bits, along the inputs.
    qweight int32 [K bits / 32, N]   qzeros int32 [G, N bits / 32]   scales float16 [G, N]   g_idx int32 [K]
    weight[n, k] = (q - zero[g_idx[k], n]) * scales[g_idx[k], n]
Zero points are stored minus 1, except in version 2 (`gptq_v2`, and auto-round's own formats): see `_zeros`. `desc_act` orders the
groups by activations, so that neighbours share no scale: such matrices are dequantised.

AWQ (AutoAWQ `gemm`): 4 bits, along the outputs, in the order of `bits.AWQ_ORDER`; zero points as they are.
    qweight int32 [K, N / 8]   qzeros int32 [G, N / 8]   scales float16 [G, N]
"""

import re
from collections.abc import Mapping
from functools import partial

import numpy as np

from .matrix import (
    Decoded,
    Matrix,
    Misfit,
    Parts,
    expect,
    expect_scales,
    groups_of,
    need,
    offsets_of,
    order_of,
    storage_for,
    two_axes,
    unpack_awq,
    unpack_bits,
)

WORDS = {"qweight", "qzeros", "scales", "g_idx"}


class Gptq:
    """GPTQ. config: quantization_config. minus_one: whether zero points are stored minus 1."""

    dropped: tuple[str, ...] = ()

    def __init__(self, config: Mapping, title: str, minus_one: bool):
        self.config, self.title, self.minus_one = config, title, minus_one

    def holds(self, parts: Parts) -> bool:
        return bool({"qweight", "qzeros", "g_idx"} & parts.keys())

    def uses(self, parts: Parts) -> set[str]:
        return WORDS & parts.keys()

    def matrix(self, module: str, parts: Parts) -> Matrix:
        need(parts, "qweight", "qzeros", "scales")
        settings = {**self.config, **overrides(self.config, module)}
        bits, group, symmetric = settings.get("bits"), settings.get("group_size"), bool(settings.get("sym", True))
        rows, outputs = two_axes(parts, "qweight")
        if bits not in (2, 3, 4, 8):
            raise Misfit(f"{bits!r} bits, expected 2, 3, 4 or 8")
        inputs = rows * 32 // bits
        groups = groups_of(inputs, group)
        scale = expect_scales(parts, "scales", (groups, outputs))
        expect(parts, "qweight", ("I32",), (inputs * bits // 32, outputs))
        expect(parts, "qzeros", ("I32",), (groups, outputs * bits // 32))
        ordered = bool(settings.get("desc_act")) and groups > 1
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
        inputs, (outputs, groups), middle = len(words) * 32 // bits, scales.shape, 1 << (bits - 1)
        codes = (unpack_bits(words.T, bits, inputs).astype(np.int16) - middle).astype(np.int8)
        zeros = self._zeros(arrays["qzeros"], bits, outputs).T.astype(np.int32) - middle
        if symmetric:
            _check_middle(zeros, middle)
        offsets = None if symmetric else offsets_of(zeros, scales)
        return Decoded(codes, scales, offsets, order_of(arrays.get("g_idx"), inputs, groups, ordered))

    def _zeros(self, words, bits, outputs):
        """Zero points `[G, N]`.

        Version 1 takes 1 off each, and where a zero point is 0 tools differ in what that does to its neighbours. GPTQModel and
        auto-round take it off the whole word (`convert_gptq_v2_to_v1_format_module`, `pack_248_bits`), so the neighbour lends, and
        adding it to the word gives all of them back. AutoGPTQ overwrites the neighbours, and of 3 bits no two releases are alike.
        """
        if not self.minus_one:
            return unpack_bits(words, bits, outputs)
        most = (1 << bits) - 1
        single = unpack_bits(words, bits, outputs) + np.uint8(1) & np.uint8(most)
        ones = np.uint32(0xFFFFFFFF // most)  # 1 in each number of a word
        summed = single if bits == 3 else unpack_bits(np.ascontiguousarray(words).view(np.uint32) + ones, bits, outputs)
        if (not single.all()) if bits == 3 else (single != summed).any() and not self._by_words():
            raise Misfit(
                "zero points of 0 in version 1 of GPTQ, where tools overwrite their neighbours in ways of their own, and the "
                "configuration does not say that GPTQModel or AutoRound wrote it; take a checkpoint in version 2 (gptq_v2)"
            )
        return summed

    def _by_words(self):
        """Whether a tool wrote it that takes 1 off whole words."""
        quantizer = (self.config.get("meta") or {}).get("quantizer") or ()
        names = " ".join([quantizer] if isinstance(quantizer, str) else quantizer)
        return "autoround_version" in self.config or self.title == "AutoRound" or "gptqmodel" in names.lower()


class Awq:
    """AWQ, `gemm`."""

    dropped: tuple[str, ...] = ()

    def __init__(self, config: Mapping, title: str):
        self.config, self.title = config, title

    def holds(self, parts: Parts) -> bool:
        return bool({"qweight", "qzeros"} & parts.keys())

    def uses(self, parts: Parts) -> set[str]:
        return {"qweight", "qzeros", "scales"} & parts.keys()

    def matrix(self, module: str, parts: Parts) -> Matrix:
        need(parts, "qweight", "qzeros", "scales")
        settings = {**self.config, **overrides(self.config, module)}
        bits, group = settings.get("bits", settings.get("w_bit")), settings.get("group_size", settings.get("q_group_size"))
        if bits != 4:
            raise Misfit(f"{bits!r} bits, expected 4")
        inputs, words = two_axes(parts, "qweight")
        outputs, groups = 8 * words, groups_of(inputs, group)
        scale = expect_scales(parts, "scales", (groups, outputs))
        expect(parts, "qweight", ("I32",), (inputs, words))
        expect(parts, "qzeros", ("I32",), (groups, words))
        symmetric = bool(settings.get("sym", not settings.get("zero_point", True)))
        storage, why = storage_for(bits, (outputs, inputs), groups, scale, None if symmetric else "F32")
        return Matrix((outputs, inputs), scale, storage, why, partial(_decode_awq, symmetric=symmetric))


def _decode_awq(arrays, symmetric):
    scales = np.ascontiguousarray(arrays["scales"].T)
    codes = np.ascontiguousarray(unpack_awq(arrays["qweight"]).T).astype(np.int8) - 8
    zeros = unpack_awq(arrays["qzeros"]).T.astype(np.int32) - 8
    if symmetric:
        _check_middle(zeros, 8)
    return Decoded(codes, scales, None if symmetric else offsets_of(zeros, scales))


def _check_middle(zeros, middle):
    if zeros.any():
        reach = f"from {zeros.min() + middle} to {zeros.max() + middle}"
        raise Misfit(f"the configuration says that it is symmetric, but its zero points reach {reach}, expected {middle}")


def overrides(config: Mapping, module: str) -> Mapping:
    """What the configuration says of one module: auto-round's `extra_config` (names, then regular expressions) or GPTQModel's `dynamic`.

    As in the tools the first expression that fits counts (`_expand_regex_config`, `dynamic_get`); those of modules that were left as
    they are, of 16 bits or with `-:`, reach further than these modules (`.*mlp.gate.*`) and say nothing of a quantised one.
    """
    extra = {
        name: settings
        for name, settings in (config.get("extra_config") or {}).items()
        if ((settings or {}).get("bits") or 0) < 16
    }
    dynamic = {
        name.removeprefix("+:"): settings for name, settings in (config.get("dynamic") or {}).items() if name[:2] != "-:"
    }
    patterns = [*extra.items(), *dynamic.items()]
    settings = extra.get(module) or next(
        (settings for pattern, settings in patterns if settings and _found(pattern, module)), {}
    )
    return {key: value for key, value in settings.items() if value is not None}


def _found(pattern, module):
    try:
        return re.match(pattern, module) is not None
    except re.error:
        return False
