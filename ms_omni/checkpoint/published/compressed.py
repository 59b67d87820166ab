"""compressed-tensors, as llm-compressor writes it (compressed_tensors/compressors/{pack,naive}_quantized/base.py), and float8.

pack-quantized     weight_packed int32 [N, K bits / 32], weight_scale [N, G], weight_shape int64 [2];
                   weight_zero_point where it is not symmetric: int32 [N bits / 32, G] packed along the outputs, int8 [1] of
                   the whole matrix; weight_g_idx int32 [K], the group of each input (`actorder`, until 0.19)
int-quantized, naive-quantized    weight int8 [N, K], weight_scale [N, G], weight_zero_point int8 [N, G]
float-quantized    weight float8 [N, K], weight_scale of the matrix, of channels [N, 1], of groups [N, G] or of blocks

    weight[n, k] = (q - zero) * scale        packed q and zeros: signed, stored plus 2^(bits - 1)

`config_groups` say bits and groups for the modules that `targets` name; a module is quantised where its tensors are.
Numbers of 2, 4 and 8 bits are packed alike in every release; others as since 0.19, without gaps.

`quant_method` fp8 (transformers' finegrained_fp8, DeepSeek's layout) and fbgemm_fp8:

    weight float8 [N, K]   weight_scale_inv [N / bn, K / bk]: despite its name what the block is multiplied with
    weight_scale           of the whole matrix, or of each output [N, 1]

float8 are no whole numbers on one grid: they are dequantised.
"""

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from ms_omni.errors import CheckpointError

from .matrix import (
    Arrays,
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
    unpack_bits,
    words_of,
)

FORMATS = ("pack-quantized", "int-quantized", "naive-quantized", "float-quantized", "mixed-precision", "dense")
STRATEGIES = ("tensor", "channel", "group", "tensor_group")
# What `actorder` may be; "weight" and its alias "static" order nothing that is stored.
ORDERED = ("group", "dynamic", "true")
WORDS = {"weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx"}
FLOAT8 = ("F8_E4M3", "F8_E5M2")
SCALES = ("weight_scale_inv", "weight_scale")


class CompressedTensors:
    """config: quantization_config. Raises CheckpointError for a format that is not read."""

    title = "compressed-tensors"
    dropped: tuple[str, ...] = (
        "input_scale",
        "input_zero_point",
        "input_global_scale",
        "k_scale",
        "v_scale",
        "q_scale",
        "output_scale",
    )

    def __init__(self, config: Mapping):
        groups = config.get("config_groups") or {}
        formats = {config.get("format"), *(group.get("format") for group in groups.values())} - {None}
        unknown = sorted(formats - set(FORMATS))
        if config.get("transform_config"):
            unknown.append("transform_config (rotations while it computes)")
        sparse = (config.get("sparsity_config") or {}).get("format", "dense")
        if sparse != "dense":
            unknown.append(f"sparsity ({sparse})")
        if unknown:
            raise CheckpointError(
                f"the weights are quantised by compressed-tensors in a form that is not read: {', '.join(map(str, unknown))}. "
                "Take a checkpoint in pack-quantized, int-quantized or float-quantized form, or the one that it was made from."
            )
        self.groups = list(groups.values())

    def holds(self, parts: Parts) -> bool:
        return bool(WORDS & parts.keys()) or ("weight" in parts and parts["weight"].dtype in ("I8", *FLOAT8))

    def uses(self, parts: Parts) -> set[str]:
        return {*WORDS, "weight"} & parts.keys()

    def matrix(self, module: str, parts: Parts) -> Matrix:
        settings = self._weights(module)
        if "weight" not in parts or parts["weight"].dtype not in FLOAT8:
            return self._integers(parts, settings)
        need(parts, "weight_scale")
        if "weight_g_idx" in parts:
            raise Misfit("is float8 in groups that weight_g_idx orders, which is not read")
        expect(parts, "weight", FLOAT8, two_axes(parts, "weight"))
        dtype, block = scale_of(parts, "weight_scale", settings.get("block_structure"), settings.get("group_size"))
        return Matrix(two_axes(parts, "weight"), dtype, None, "float8", partial(spread, word="weight_scale", block=block))

    def _weights(self, module) -> Mapping:
        """What is configured for the weights of a module: by its name, then by a pattern, then by its kind (`Linear`)."""
        found = []
        for group in self.groups:
            for target in group.get("targets") or ():
                pattern = target.removeprefix("re:")
                if pattern != target and re.match(pattern, module):
                    found.append((1, group))
                elif module == target or module.endswith("." + target):
                    found.append((0, group))
                elif target.isidentifier():
                    found.append((2, group))
        if not found:
            raise Misfit("is quantised, but no config_groups names it")
        weights = min(found, key=lambda pair: pair[0])[1].get("weights")
        if not weights:
            raise Misfit("is quantised, but its config_groups say nothing of weights")
        return weights

    def _integers(self, parts, settings):
        """Whole numbers, packed into words or one in each byte."""
        packed = "weight_packed" in parts
        word = "weight_packed" if packed else "weight"
        need(parts, word, "weight_scale")
        bits, symmetric, group = _int_bits(settings), bool(settings.get("symmetric", True)), settings.get("group_size")
        strategy = str(
            settings.get("strategy") or ("tensor" if group is None else "group" if group > 0 else "channel")
        ).lower()
        if strategy not in STRATEGIES:
            raise Misfit(f"has scales by {strategy}, expected one of {', '.join(STRATEGIES)}")
        outputs, inputs = two_axes(parts, word)
        grouped = "group" in strategy
        if packed:  # the last word of a row may have gaps
            counted = grouped and group and len(parts["weight_scale"].shape) == 2
            inputs = parts["weight_scale"].shape[1] * group if counted else inputs * 32 // bits
        groups = groups_of(inputs, group) if grouped else 1
        expect(parts, word, ("I32",) if packed else ("I8",), (outputs, words_of(inputs, bits) if packed else inputs))
        shapes = {"tensor": ((1,), ()), "channel": ((outputs, 1), (outputs,))}.get(strategy, ((outputs, groups),))
        scale = expect_scales(parts, "weight_scale", *shapes)
        packed_zeros = packed and strategy in ("group", "channel")
        if not symmetric:
            need(parts, "weight_zero_point")
            if packed_zeros:
                expect(parts, "weight_zero_point", ("I32",), (words_of(outputs, bits), groups))
            else:
                expect(parts, "weight_zero_point", ("I8",), *shapes)
        elif packed_zeros and "weight_zero_point" in parts:
            raise Misfit("holds weight_zero_point, but the configuration says symmetric")
        ordered = str(settings.get("actorder")).lower() in ORDERED and groups > 1
        if ordered:
            need(parts, "weight_g_idx")
        if "weight_g_idx" in parts:
            expect(parts, "weight_g_idx", ("I32",), (inputs,))
        storage, why = storage_for(bits, (outputs, inputs), groups, scale, None if symmetric else "F32")
        if ordered:
            storage, why = None, "actorder orders its groups by activations"
        decode = partial(
            _decode, bits=bits, inputs=inputs, symmetric=symmetric, packed_zeros=packed_zeros, groups=groups, ordered=ordered
        )
        return Matrix((outputs, inputs), scale, storage, why, decode)


def _int_bits(settings) -> int:
    bits = settings.get("num_bits")
    if settings.get("type", "int") != "int" or bits not in range(2, 9):
        raise Misfit(f"holds whole numbers, but the configuration says {settings.get('type')} of {bits} bits")
    return bits


def _rows(array, outputs) -> np.ndarray:
    """Scales or zero points as `[N, G]`."""
    array = array.reshape(1, 1) if array.size == 1 else array.reshape(outputs, -1)
    return np.ascontiguousarray(np.broadcast_to(array, (outputs, array.shape[1])))


def _decode(arrays, bits, inputs, symmetric, packed_zeros, groups, ordered):
    middle = 1 << (bits - 1)
    if "weight_packed" in arrays:
        words = arrays["weight_packed"]
        written = tuple(arrays["weight_shape"].tolist()) if "weight_shape" in arrays else (len(words), inputs)
        if written != (len(words), inputs):
            raise Misfit(f"weight_shape says {list(written)}, its tensors are of a matrix {[len(words), inputs]}")
        codes = (unpack_bits(words, bits, inputs).astype(np.int16) - middle).astype(np.int8)
    else:
        codes = arrays["weight"]
        if codes.min() < -middle or codes.max() >= middle:
            raise Misfit(f"weight reaches from {codes.min()} to {codes.max()}, which are no {bits} bits")
    outputs, zeros = len(codes), arrays.get("weight_zero_point")
    scales, offsets = _rows(arrays["weight_scale"], outputs), None
    if symmetric and zeros is not None and zeros.any():
        raise Misfit("has weight_zero_point other than 0, but the configuration says symmetric")
    if not symmetric and zeros is not None:
        zeros = unpack_bits(zeros.T, bits, outputs).T.astype(np.int32) - middle if packed_zeros else _rows(zeros, outputs)
        offsets = offsets_of(zeros, scales)
    order = arrays.get("weight_g_idx")
    if order is not None and (order == -1).any():
        order = None  # as it is made: the tool never ordered this matrix
    return Decoded(codes, scales, offsets, order_of(order, inputs, groups, ordered))


class Fp8:
    """config: quantization_config."""

    dropped: tuple[str, ...] = ("input_scale", "activation_scale", "input_scale_ub")

    def __init__(self, config: Mapping, title: str):
        self.title, self.block = title, config.get("weight_block_size")

    def holds(self, parts: Parts) -> bool:
        return any(word in parts for word in SCALES) or ("weight" in parts and parts["weight"].dtype in FLOAT8)

    def uses(self, parts: Parts) -> set[str]:
        return {"weight", *SCALES} & parts.keys()

    def matrix(self, module: str, parts: Parts) -> Matrix:
        word = next((word for word in SCALES if word in parts), None)
        if word is None or "weight" not in parts:
            raise Misfit(f"holds {', '.join(sorted(parts))} but no {'weight_scale_inv' if word is None else 'weight'}")
        expect(parts, "weight", FLOAT8, two_axes(parts, "weight"))
        dtype, block = scale_of(parts, word, self.block)
        return Matrix(two_axes(parts, "weight"), dtype, None, "float8", partial(spread, word=word, block=block))


def scale_of(parts: Parts, word: str, block: Any = None, group: int | None = None) -> tuple[str, tuple[int, int]]:
    """(dtype of the scales, (outputs, inputs) of a block) of a weight of float8. Raises `Misfit`."""
    outputs, inputs = two_axes(parts, "weight")
    shapes: dict[tuple[int, ...], tuple[int, int]] = {
        (): (outputs, inputs),
        (1,): (outputs, inputs),
        (1, 1): (outputs, inputs),
    }
    shapes |= {(outputs, 1): (1, inputs), (outputs,): (1, inputs)}
    if block:
        if len(block) != 2 or any(type(side) is not int or side < 1 for side in block):
            raise Misfit(f"blocks of {block}, expected two lengths")
        shapes = {(-(-outputs // block[0]), -(-inputs // block[1])): (block[0], block[1])}
    elif group and group > 0:
        shapes = {(outputs, -(-inputs // group)): (1, group)}
    return expect_scales(parts, word, *shapes), shapes[parts[word].shape]


def spread(arrays: Arrays, word: str, block: tuple[int, int]) -> Decoded:
    """Scales of blocks as scales of groups of inputs."""
    codes = arrays["weight"].astype(np.float32)
    outputs, inputs = codes.shape
    scales = arrays[word].reshape(-(-outputs // block[0]), -(-inputs // block[1]))
    scales = np.repeat(scales, block[0], axis=0)[:outputs]
    return Decoded(codes, scales, None, np.arange(inputs) // block[1] if inputs % block[1] else None)
