"""compressed-tensors, as llm-compressor writes it (compressed_tensors/compressors/{pack,naive}_quantized/base.py).

pack-quantized     weight_packed int32 [N, K bits / 32], weight_scale [N, G], weight_shape int64 [2];
                   weight_zero_point int32 [N bits / 32, G] where it is not symmetric, packed along the outputs
int-quantized, naive-quantized    weight int8 [N, K], weight_scale [N, G], weight_zero_point int8 [N, G]
float-quantized    weight float8 [N, K], weight_scale of the matrix, of channels [N, 1], of groups [N, G] or of blocks

    weight[n, k] = (q - zero) * scale        packed q and zeros: signed, stored plus 2^(bits - 1)

`config_groups` say bits and groups for the modules that `targets` name; a module is quantised where its tensors are.
Numbers of 2, 4 and 8 bits are packed alike in every release; others as since 0.19, without gaps.
"""

import re
from collections.abc import Mapping
from functools import partial

import numpy as np

from ms_omni.errors import CheckpointError

from .bits import unpack_bits, words_of
from .fp8 import FLOAT8, scale_of, spread
from .matrix import Decoded, Matrix, Misfit, expect, expect_scales, groups_of, need, offsets_of, storage_for, two_axes

FORMATS = ("pack-quantized", "int-quantized", "naive-quantized", "float-quantized", "mixed-precision", "dense")
WORDS = {"weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx"}


class CompressedTensors:
    """config: quantization_config. Raises CheckpointError for a format that is not read."""

    title = "compressed-tensors"
    dropped = ("input_scale", "input_zero_point", "input_global_scale", "k_scale", "v_scale", "q_scale", "output_scale")

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

    def holds(self, parts):
        return bool(WORDS & parts.keys()) or ("weight" in parts and parts["weight"].dtype in ("I8", *FLOAT8))

    def uses(self, parts):
        return {*WORDS, "weight"} & parts.keys()

    def matrix(self, module, parts):
        said = self._weights(module)
        if "weight_packed" in parts:
            return self._packed(parts, said)
        need(parts, "weight", "weight_scale")
        if parts["weight"].dtype in FLOAT8:
            expect(parts, "weight", FLOAT8, two_axes(parts, "weight"))
            dtype, block = scale_of(parts, "weight_scale", said.get("block_structure"), said.get("group_size"))
            return Matrix(parts["weight"].shape, dtype, None, "float8", partial(spread, word="weight_scale", block=block))
        return self._whole(parts, said)

    def _weights(self, module) -> Mapping:
        """What is said of the weights of a module: by its name, then by a pattern, then by its kind (`Linear`)."""
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

    def _packed(self, parts, said):
        need(parts, "weight_packed", "weight_scale")
        bits, symmetric, ordered = (
            _int_bits(said),
            bool(said.get("symmetric", True)),
            said.get("actorder") in ("group", True),
        )
        outputs, words = two_axes(parts, "weight_packed")
        grouped = said.get("strategy") in ("group", "tensor_group")
        count = parts["weight_scale"].shape[-1] if parts["weight_scale"].shape else 1
        inputs = count * said["group_size"] if grouped and said.get("group_size", 0) > 0 else words * 32 // bits
        groups = groups_of(inputs, said.get("group_size")) if grouped else 1
        expect(parts, "weight_packed", ("I32",), (outputs, words_of(inputs, bits)))
        scale = expect_scales(parts, "weight_scale", *((outputs, groups),) if grouped else _single(outputs, said))
        if not symmetric and said.get("strategy") != "tensor":
            need(parts, "weight_zero_point")
            expect(parts, "weight_zero_point", ("I32",), (words_of(outputs, bits), groups))
        elif "weight_zero_point" in parts:
            raise Misfit("holds weight_zero_point, but the configuration says symmetric")
        if ordered:
            need(parts, "weight_g_idx")
        storage, why = storage_for(bits, (outputs, inputs), groups, scale, None if symmetric else "F32")
        if ordered:
            storage, why = None, "actorder orders its groups by activations"
        decode = partial(_decode_packed, bits=bits, inputs=inputs, symmetric=symmetric, ordered=ordered)
        return Matrix((outputs, inputs), scale, storage, why, decode)

    def _whole(self, parts, said):
        bits, symmetric = _int_bits(said), bool(said.get("symmetric", True))
        outputs, inputs = two_axes(parts, "weight")
        expect(parts, "weight", ("I8",), (outputs, inputs))
        grouped = said.get("strategy") in ("group", "tensor_group")
        groups = groups_of(inputs, said.get("group_size")) if grouped else 1
        shapes = ((outputs, groups),) if grouped else _single(outputs, said)
        scale = expect_scales(parts, "weight_scale", *shapes)
        if not symmetric:
            need(parts, "weight_zero_point")
            expect(parts, "weight_zero_point", ("I8",), *shapes)
        storage, why = storage_for(bits, (outputs, inputs), groups, scale, None if symmetric else "F32")
        return Matrix((outputs, inputs), scale, storage, why, partial(_decode_whole, bits=bits, symmetric=symmetric))


def _int_bits(said) -> int:
    bits = said.get("num_bits")
    if said.get("type", "int") != "int" or bits not in range(2, 9):
        raise Misfit(f"holds whole numbers, but the configuration says {said.get('type')} of {bits} bits")
    return bits


def _single(outputs, said) -> tuple[tuple[int, ...], ...]:
    """Shapes of one scale for each output, or for the matrix."""
    return ((1,), ()) if said.get("strategy") == "tensor" else ((outputs, 1), (outputs,))


def _rows(array, outputs) -> np.ndarray:
    """Scales or zero points as `[N, G]`."""
    array = array.reshape(1, 1) if array.size == 1 else array.reshape(outputs, -1)
    return np.ascontiguousarray(np.broadcast_to(array, (outputs, array.shape[1])))


def _decode_packed(arrays, bits, inputs, symmetric, ordered):
    words = arrays["weight_packed"]
    said = tuple(arrays["weight_shape"].tolist()) if "weight_shape" in arrays else (len(words), inputs)
    if said != (len(words), inputs):
        raise Misfit(f"weight_shape says {list(said)}, its tensors are of a matrix {[len(words), inputs]}")
    half, scales = 1 << (bits - 1), _rows(arrays["weight_scale"], len(words))
    codes = (unpack_bits(words, bits, inputs).astype(np.int16) - half).astype(np.int8)
    offsets = None
    if not symmetric:
        zeros = unpack_bits(arrays["weight_zero_point"].T, bits, len(words)).T.astype(np.int32) - half
        offsets = offsets_of(zeros, scales)
    group_of = arrays["weight_g_idx"] if ordered else None
    return Decoded(codes, scales, offsets, group_of)


def _decode_whole(arrays, bits, symmetric):
    codes, half = arrays["weight"], 1 << (bits - 1)
    if bits < 8 and (codes.min() < -half or codes.max() >= half):
        raise Misfit(f"weight reaches from {codes.min()} to {codes.max()}, which are no {bits} bits")
    scales = _rows(arrays["weight_scale"], len(codes))
    offsets = None if symmetric else offsets_of(_rows(arrays["weight_zero_point"], len(codes)), scales)
    return Decoded(codes, scales, offsets)
