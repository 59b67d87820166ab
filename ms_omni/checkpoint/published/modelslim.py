"""msModelSlim (its `ascendv1` form): quant_model_description.json says of each tensor how it was made.

W8A16, W8A8_DYNAMIC, W8A8_MIX, W4A4_DYNAMIC   weight int8 [N, K], weight_scale, weight_offset float32 [N, G]
W8A8                                          newer releases: no weight_scale, but deq_scale = input_scale * weight_scale
WFP8AFP8_DYNAMIC                              weight float8 [N, K], weight_scale float32 [N, 1]

    weight[n, k] = (q - weight_offset) * weight_scale

How activations are quantised (input_scale, input_offset, deq_scale, quant_bias) is dropped: they stay floating point here.
"""

from collections.abc import Mapping
from functools import partial

import numpy as np

from .compressed import FLOAT8, scale_of, spread
from .matrix import Decoded, Matrix, Misfit, Parts, expect, expect_scales, groups_of, need, offsets_of, storage_for, two_axes

FLOAT = "FLOAT"
WEIGHT_FILES = "quant_model_weight*.safetensors"
DESCRIPTION = "quant_model_description*.json"
SYMMETRIC = ("W8A8", "W8A8_DYNAMIC", "W8A8_MIX")  # the accelerator's product of int8 has no zero points of weights
KINDS = (*SYMMETRIC, "W8A16", "W4A4_DYNAMIC", "WFP8AFP8_DYNAMIC")


class ModelSlim:
    """description: quant_model_description.json."""

    title = "msModelSlim"
    dropped: tuple[str, ...] = ("input_scale", "input_offset", "quant_bias", "deq_scale")

    def __init__(self, description: Mapping):
        self.description = description

    def holds(self, parts: Parts) -> bool:
        entry = parts.get("weight")
        scaled = "weight_scale" in parts or "deq_scale" in parts
        return scaled or (entry is not None and self._kind(entry.name) != FLOAT)

    def uses(self, parts: Parts) -> set[str]:
        return {"weight", "weight_scale", "weight_offset", "deq_scale", "input_scale"} & parts.keys()

    def _kind(self, name):
        return self.description.get(name, FLOAT)

    def matrix(self, module: str, parts: Parts) -> Matrix:
        need(parts, "weight")
        kind = self._kind(parts["weight"].name)
        if kind not in KINDS:
            raise Misfit(f"is {kind} by the description, expected one of {', '.join(KINDS)}")
        outputs, inputs = two_axes(parts, "weight")
        if kind == "WFP8AFP8_DYNAMIC":
            need(parts, "weight_scale")
            expect(parts, "weight", FLOAT8, (outputs, inputs))
            dtype, block = scale_of(parts, "weight_scale")
            return Matrix((outputs, inputs), dtype, None, "float8", partial(spread, word="weight_scale", block=block))
        expect(parts, "weight", ("I8",), (outputs, inputs))
        if "weight_scale" in parts:
            groups = groups_of(inputs, self.description.get("group_size"))
            groups = groups if parts["weight_scale"].shape == (outputs, groups) else 1
            scale = expect_scales(parts, "weight_scale", (outputs, groups), (outputs,))
            if kind not in SYMMETRIC:
                need(parts, "weight_offset")
                expect(parts, "weight_offset", ("F32", "F16", "BF16"), (outputs, groups), (outputs,))
        else:
            need(parts, "deq_scale", "input_scale")
            groups, scale = 1, "F32"
            expect(parts, "deq_scale", ("F32", "I64"), (outputs,), (outputs, 1))
            expect_scales(parts, "input_scale", (1,), ())
        offset = None if kind in SYMMETRIC else "F32"
        bits = 4 if kind == "W4A4_DYNAMIC" else 8
        storage, why = storage_for(bits, (outputs, inputs), groups, scale, offset)
        return Matrix((outputs, inputs), scale, storage, why, partial(_decode, kind=kind))


def _decode(arrays, kind):
    codes = np.asarray(arrays["weight"])
    if "weight_scale" in arrays:
        scales = arrays["weight_scale"].reshape(len(codes), -1)
    else:  # the bits of a float32 stand in an int64 where the model was no bfloat16
        product = arrays["deq_scale"]
        product = product if product.dtype == np.float32 else product.astype(np.int32).view(np.float32)
        scales = (product / arrays["input_scale"].astype(np.float32)).reshape(len(codes), 1)
    zeros = arrays["weight_offset"].reshape(scales.shape) if "weight_offset" in arrays else None
    if kind in SYMMETRIC:
        if zeros is not None and zeros.any():
            raise Misfit(f"is {kind} by the description, but has weight_offset other than 0")
        zeros = None
    if kind == "W4A4_DYNAMIC" and (codes.min() < -8 or codes.max() > 7):
        raise Misfit(f"weight reaches from {codes.min()} to {codes.max()}, which are no 4 bits")
    return Decoded(codes, scales, None if zeros is None else offsets_of(zeros, scales))
