"""Matrices as operators take them, however they are stored: tensors, of which bfloat16 ones may stand beside float32 rows, and `Quantised`.

Written with MindSpore's kernels that exist on every device; the result is a matrix in the rows' dtype. The mixture of experts of `Reference` is
here as well: it is what most of a model's matrices are for.
"""

import mindspore as ms
import numpy as np
from mindspore import Tensor, mint, ops

from ...quantised import BLOCK, Quantised

Matrix = Tensor | Quantised
"""As `ops.Matrix`."""
Pair = tuple[Tensor, Tensor]

_matmul = ops.MatMul()
_matmul_transposed = ops.MatMul(transpose_b=True)
_batch_matmul = ops.BatchMatMul()
_batch_matmul_transposed = ops.BatchMatMul(transpose_b=True)
_halve = ops.Split(-1, 2)  # mint.chunk has no kernel in a graph on CPU


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


def encoded(rows: Tensor) -> tuple[Tensor, Tensor]:
    """float32 `[M, D]` -> the nearest multiples of the scale of each row, max |x| / 127: int8 `[M, D]`, float32 `[M, 1]`. Of a row that is
    not finite the scale is not either.
    """
    scales = mint.max(mint.abs(rows), -1, True)[0] / 127.0 + mint.sum(rows - rows, -1, True)
    steps = ops.tile(scales, (1, rows.shape[-1]))
    nonzero = steps > 0
    codes = ops.clamp(ops.round(rows / ops.select(nonzero, steps, ops.ones_like(steps))), -127.0, 127.0)
    return ops.select(nonzero, codes, ops.zeros_like(codes)).astype(ms.int8), scales


# ---- the two forms of a mixture of experts ----------------------------------------------------------------------------


def gathered_experts(
    x: Tensor, gate_up: Matrix, down: Matrix, weights: Tensor, indices: Tensor, first: int | None = None
) -> Tensor:
    """`experts` with the weights gathered for each pair of token and expert, so that it can be part of a graph."""
    n, k = indices.shape
    if first is not None:
        local_index = indices - first
        indices = ops.clamp(local_index, 0, count_of(gate_up) - 1)  # those of other ranks have weight 0
        weights = weights * (local_index == indices).astype(weights.dtype)
    picked = indices.reshape(-1)  # [N*k]
    rows = ops.tile(x.reshape(n, 1, -1), (1, k, 1)).reshape(n * k, 1, -1)
    gate_up, down = (gathered(widened(weight, x.dtype), picked) for weight in (gate_up, down))
    out = _gated(rows, gate_up, down).reshape(n, k, -1)  # rows: [N*k, 1, D]
    return _batch_matmul(weights.astype(x.dtype).reshape(n, 1, k), out).reshape(x.shape)


def grouped_experts(
    x: Tensor, gate_up: Matrix, down: Matrix, weights: Tensor, indices: Tensor, first: int | None = None
) -> Tensor:
    """`experts` with tokens sorted by expert, one product per expert in use, results brought back into token order.

    The split sizes must be known on the host: one read of `indices` per block, during prefill only.
    """
    n, k = indices.shape
    flat = indices.asnumpy().reshape(-1) - (first or 0)
    here = (flat >= 0) & (flat < count_of(gate_up))
    if not here.any():
        return ops.zeros_like(x)
    order = np.flatnonzero(here)[np.argsort(flat[here], kind="stable")].astype(np.int32)  # pairs, grouped by expert
    used, counts = np.unique(flat[here], return_counts=True)
    rows = ops.gather(x, Tensor(order // k), 0)
    parts = ops.split(rows, [int(count) for count in counts], 0)
    outputs = []
    for expert, part in zip(used.tolist(), parts):
        outputs.append(_gated(part, expert_matrix(gate_up, expert), expert_matrix(down, expert)))
    inverse = np.zeros(n * k, np.int32)  # a pair whose expert is on another rank takes any row, with weight 0
    inverse[order] = np.arange(len(order), dtype=np.int32)
    if not here.all():
        weights = weights * Tensor(here.reshape(n, k).astype(np.float32)).astype(weights.dtype)
    out = ops.gather(mint.cat(outputs, 0), Tensor(inverse), 0).reshape(n, k, -1)
    return _batch_matmul(weights.astype(x.dtype).reshape(n, 1, k), out).reshape(x.shape)


def _gated(rows, gate_up, down):
    gate, up = _halve(multiply(rows, gate_up))
    return multiply(ops.silu(gate) * up, down)
