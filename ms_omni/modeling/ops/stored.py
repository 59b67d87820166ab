"""Matrices as operators take them, however they are stored: tensors, of which bfloat16 ones may stand beside float32 rows, and `Quantised`.

These are written with MindSpore's kernels that exist on every device, and make what is computed with: a matrix in the rows' dtype.
"""

import mindspore as ms
from mindspore import Tensor, mint, ops

from ...quantised import BLOCK, Quantised

Matrix = Tensor | Quantised
"""As `ops.Matrix`."""
Pair = tuple[Tensor, Tensor]

_matmul = ops.MatMul()
_matmul_transposed = ops.MatMul(transpose_b=True)
_batch_matmul = ops.BatchMatMul()
_batch_matmul_transposed = ops.BatchMatMul(transpose_b=True)


def widened(weight: Matrix, dtype: ms.Type) -> Matrix:
    """bfloat16 that stands beside float32 in float32, everything else as it is."""
    return (
        weight.astype(dtype)
        if dtype == ms.float32 and not isinstance(weight, tuple) and weight.dtype == ms.bfloat16
        else weight
    )


def dense(weight: Matrix, dtype: ms.Type) -> Tensor:
    """The numbers of a matrix `[..., out, in]` or `[..., in, out]`, or of a `Quantised` `[..., out, in]`, in the dtype of the rows that it
    is multiplied with: bfloat16 beside float32 is widened. The codes of a `Quantised` are taken apart in float32, in which every
    device has what that takes.
    """
    if not isinstance(weight, tuple):
        return widened(weight, dtype)
    codes, scales, offsets = weight
    numbers = codes.astype(ms.float32)
    if codes.dtype == ms.uint8:
        high = ops.floor(numbers * 0.0625)
        halves = [half.reshape(*codes.shape[:-1], -1, 1, BLOCK // 2) for half in (numbers - high * 16.0, high)]
        numbers = mint.cat(halves, -2).reshape(*codes.shape[:-1], -1) - 8.0
    groups = (*scales.shape, numbers.shape[-1] // scales.shape[-1])
    numbers = numbers.reshape(groups) * _spread(scales, groups)
    if offsets is not None:
        numbers = numbers + _spread(offsets, groups)
    return numbers.reshape(*codes.shape[:-1], -1).astype(dtype)


def _spread(values, shape):
    return ops.tile(mint.unsqueeze(values.astype(ms.float32), -1), (1,) * (len(shape) - 1) + (shape[-1],))


def gathered(weight: Matrix, places: Tensor) -> Matrix:
    """A matrix or stack of them at places `[...]` of the first axis. MindSpore's CPU gathers no bfloat16, so that is widened before."""
    if not isinstance(weight, tuple):
        return ops.gather(weight, places, 0)
    codes, scales, offsets = weight
    scales = ops.gather(scales.astype(ms.float32), places, 0)
    offsets = None if offsets is None else ops.gather(offsets.astype(ms.float32), places, 0)
    return Quantised(ops.gather(codes, places, 0), scales, offsets)


def usual_dtype(weight: Matrix) -> ms.Type:
    """Of the rows of a table where nobody says."""
    return ms.float32 if isinstance(weight, tuple) else weight.dtype


def members(weight: Matrix) -> int:
    """How many rows, or experts, it has."""
    return (weight[0] if isinstance(weight, tuple) else weight).shape[0]


def picked_one(weight: Matrix, expert: int) -> Matrix:
    """The matrix of an expert."""
    return (
        Quantised(*(part if part is None else part[expert] for part in weight))
        if isinstance(weight, tuple)
        else weight[expert]
    )


def times(rows: Tensor, weight: Matrix) -> Tensor:
    """rows `[..., R, in]` times a matrix of experts, which is `[..., in, out]`, or a `Quantised` `[..., out, in]`."""
    turned, weight = isinstance(weight, tuple), dense(weight, rows.dtype)
    if rows.ndim == 2:
        return (_matmul_transposed if turned else _matmul)(rows, weight)
    return (_batch_matmul_transposed if turned else _batch_matmul)(rows, weight)
