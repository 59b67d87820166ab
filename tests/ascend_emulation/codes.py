"""Products with codes, and what kernels make of them."""

import mindspore as ms
import numpy as np

from .kernel import FLOATS, Kernel, require, same_type

TYPES = (ms.int8, ms.qint4x2)
LARGEST = 65535
LINE_BYTES = 32


def require_halves(dtype, columns, outputs):
    """Whether there are half as many columns as outputs, as bytes of two codes have."""
    wanted = outputs // 2 if dtype == ms.qint4x2 else outputs
    require(columns == wanted and outputs % 2 in ((0,) if dtype == ms.qint4x2 else (0, 1)), f"{columns} columns of {dtype}")


def numbers(codes, scales, offsets=None):
    """`(codes + offsets) * scales`: codes `[..., C, M]`, or `[..., C, M / 2]` with two in a byte; scales and offsets `[..., G, M]`."""
    if 2 * codes.shape[-1] == scales.shape[-1]:
        low, high = (codes << 4) >> 4, codes >> 4  # int8 keeps the sign
        codes = np.stack([low, high], -1).reshape(*codes.shape[:-1], -1)
    grouped = codes.reshape(*scales.shape[:-1], -1, scales.shape[-1]).astype(np.float32)
    grouped = (grouped + (0 if offsets is None else offsets[..., None, :])) * scales[..., None, :]
    return grouped.reshape(codes.shape)


def weight_quant_batch_matmul(tensors, *, transpose_x, transpose_weight, antiquant_group_size):
    """x `[N, C]`, weight int8 `[C, M]` or, transposed, `[M, C]`, or qint4x2 `[C, M / 2]`; antiquant_scale and antiquant_offset of x's type,
    `[M]` or, in groups, `[C / group, M]` -> `[N, M]`.
    """
    names = ("x", "weight", "antiquant_scale", "antiquant_offset")
    require(tensors in (names[:3], names), f"tensors {tensors}: not emulated")
    require(not transpose_x, "x transposed: not emulated")
    group = antiquant_group_size

    def shape(x, weight, scale, offset=None):
        outputs = scale[-1]
        require(len(x) == len(weight) == 2 and x[1] == weight[1 if transpose_weight else 0], f"x {x}, weight {weight}")
        require(weight[0 if transpose_weight else 1] in (outputs, outputs / 2), f"weight {weight}, scale {scale}")
        require(offset in (None, scale), f"scale {scale}, offset {offset}")
        require(max(x[1], outputs) <= LARGEST and x[1] % LINE_BYTES == 0, f"x {x}, weight {weight}")
        if group == 0:
            require(len(scale) == 1, f"scale {scale} per output")
        else:
            require(32 <= group < x[1] and group % 32 == 0 and not transpose_weight, f"groups of {group}")
            require(scale == [-(-x[1] // group), outputs], f"scale {scale} for groups of {group} of {x[1]}")
        return [x[0], outputs]

    def dtype(x, weight, scale, offset=None):
        require(weight in TYPES, f"codes of type {weight}")
        return same_type(FLOATS, x, scale, *(() if offset is None else (offset,)))

    def check(shapes, types):
        outputs, half = shapes[2][-1], types[1] == ms.qint4x2
        require(not (half and transpose_weight), "two codes in a byte, transposed: not emulated")
        require_halves(types[1], shapes[1][0 if transpose_weight else 1], outputs)
        require(outputs // (2 if half else 1) % LINE_BYTES == 0, f"{outputs} outputs")

    def compute(x, weight, scale, offset=None):
        weight = weight.T if transpose_weight else weight
        scale, offset = (part if part is None or part.ndim == 2 else part[None] for part in (scale, offset))
        return x @ numbers(weight, scale, offset)

    return Kernel(len(tensors), compute, shape, dtype, check)
