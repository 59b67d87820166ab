"""Matrices of float8 with scales: `quant_method` fp8 (transformers' finegrained_fp8, DeepSeek's layout) and fbgemm_fp8.

    weight float8 [N, K]   weight_scale_inv [N / bn, K / bk]: despite its name what the block is multiplied with
    weight_scale           of the whole matrix, or of each output [N, 1]

float8 are no whole numbers on one grid: they are dequantised.
"""

from collections.abc import Mapping
from functools import partial

import numpy as np

from .matrix import Decoded, Matrix, Misfit, expect, expect_scales, two_axes

FLOAT8 = ("F8_E4M3", "F8_E5M2")
SCALES = ("weight_scale_inv", "weight_scale")


class Fp8:
    """config: quantization_config."""

    dropped = ("input_scale", "activation_scale", "input_scale_ub")

    def __init__(self, config: Mapping, title: str):
        self.title, self.block = title, config.get("weight_block_size")

    def holds(self, parts):
        return any(word in parts for word in SCALES) or ("weight" in parts and parts["weight"].dtype in FLOAT8)

    def uses(self, parts):
        return {"weight", *SCALES} & parts.keys()

    def matrix(self, module, parts):
        word = next((word for word in SCALES if word in parts), None)
        if word is None or "weight" not in parts:
            raise Misfit(f"holds {', '.join(sorted(parts))} but no {'weight_scale_inv' if word is None else 'weight'}")
        expect(parts, "weight", FLOAT8, two_axes(parts, "weight"))
        dtype, block = scale_of(parts, word, self.block)
        return Matrix(parts["weight"].shape, dtype, None, "float8", partial(spread, word=word, block=block))


def scale_of(parts, word, block=None, group=None) -> tuple[str, tuple[int, int]]:
    """(dtype of the scales, (outputs, inputs) of a block) of a weight of float8. Raises `Misfit`."""
    outputs, inputs = parts["weight"].shape
    shapes = {(): (outputs, inputs), (1,): (outputs, inputs), (1, 1): (outputs, inputs)}
    shapes |= {(outputs, 1): (1, inputs), (outputs,): (1, inputs)}
    if block:
        if len(block) != 2 or any(type(side) is not int or side < 1 for side in block):
            raise Misfit(f"blocks of {block}, expected two lengths")
        shapes = {(-(-outputs // block[0]), -(-inputs // block[1])): tuple(block)}
    elif group and group > 0:
        shapes = {(outputs, -(-inputs // group)): (1, group)}
    return expect_scales(parts, word, *shapes), shapes[parts[word].shape]


def spread(arrays, word, block) -> Decoded:
    """Scales of blocks as scales of groups of inputs."""
    codes = arrays["weight"].astype(np.float32)
    outputs, inputs = codes.shape
    scales = arrays[word].reshape(-(-outputs // block[0]), -(-inputs // block[1]))
    scales = np.repeat(scales, block[0], axis=0)[:outputs]
    return Decoded(codes, scales, None, np.arange(inputs) // block[1] if inputs % block[1] else None)
