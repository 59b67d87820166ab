"""Matrices as operators take them, however they are stored: tensors, of which bfloat16 ones may stand beside float32 rows, and `Quantised`.

Written with MindSpore's kernels that exist on every device; the result is a matrix in the rows' dtype.
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
    is multiplied with: bfloat16 beside float32 is widened. The codes of a `Quantised` are unpacked in float32, for which every
    device has the kernels.
    """
    if not isinstance(weight, tuple):
        return widened(weight, dtype)
    codes, scales, offsets = weight
    numbers = codes.astype(ms.float32)
    if codes.dtype == ms.uint8:
        high = ops.floor(numbers * 0.0625)
        nibbles = [part.reshape(*codes.shape[:-1], -1, 1, BLOCK // 2) for part in (numbers - high * 16.0, high)]
        numbers = mint.cat(nibbles, -2).reshape(*codes.shape[:-1], -1) - 8.0
    groups = (*scales.shape, numbers.shape[-1] // scales.shape[-1])
    numbers = numbers.reshape(groups) * _spread(scales, groups)
    if offsets is not None:
        numbers = numbers + _spread(offsets, groups)
    return numbers.reshape(*codes.shape[:-1], -1).astype(dtype)


def _spread(values, shape):
    return ops.tile(mint.unsqueeze(values.astype(ms.float32), -1), (1,) * (len(shape) - 1) + (shape[-1],))


def gathered(weight: Matrix, index: Tensor) -> Matrix:
    """Rows, or matrices of a stack, at index `[...]` of the first axis. MindSpore's CPU gathers no bfloat16, so that is widened before."""
    if not isinstance(weight, tuple):
        return ops.gather(weight, index, 0)
    codes, scales, offsets = weight
    scales = ops.gather(scales.astype(ms.float32), index, 0)
    offsets = None if offsets is None else ops.gather(offsets.astype(ms.float32), index, 0)
    return Quantised(ops.gather(codes, index, 0), scales, offsets)


def usual_dtype(weight: Matrix) -> ms.Type:
    """The dtype of the rows of a table by default."""
    return ms.float32 if isinstance(weight, tuple) else weight.dtype


def count_of(weight: Matrix) -> int:
    """How many rows, or experts, it has."""
    return (weight[0] if isinstance(weight, tuple) else weight).shape[0]


def expert_matrix(weight: Matrix, expert: int) -> Matrix:
    """The matrix of an expert."""
    return (
        Quantised(*(part if part is None else part[expert] for part in weight))
        if isinstance(weight, tuple)
        else weight[expert]
    )


def multiply(rows: Tensor, weight: Matrix) -> Tensor:
    """rows `[..., R, in]` times a matrix of experts, which is `[..., in, out]`, or a `Quantised` `[..., out, in]`."""
    transposed, weight = isinstance(weight, tuple), dense(weight, rows.dtype)
    if rows.ndim == 2:
        return (_matmul_transposed if transposed else _matmul)(rows, weight)
    return (_batch_matmul_transposed if transposed else _batch_matmul)(rows, weight)
