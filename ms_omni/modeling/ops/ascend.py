"""The operators on Ascend: fused kernels where they exist, elsewhere spellings that suit the device.

`reference` avoids what is slow on CPU: broadcasting, native convolutions, one kernel per activation. On Ascend these
are the fast way. What is taken over unchanged are single kernels of MindSpore that exist on both. Before the first
model is built, every operator is compared on the device with `reference` in float32, and those that differ are replaced
(`settle`).
"""

import mindspore as ms
from mindspore import mint, ops

from . import ascend_check, reference
from . import ascend_kernels as kernels
from .ascend_attention import attention, packed_attention, packed_attention_by_runs  # noqa: F401
from .ascend_moe import experts, experts_of_all_pairs, route_topk  # noqa: F401
from .reference import (  # noqa: F401
    add_rows,
    argmax,
    clip,
    concat,
    cross_entropy,
    draw,
    embedding,
    embedding_part,
    expert_load,
    gather_rows,
    quick_gelu,
    relu,
    scatter_rows,
    sigmoid,
    silu,
    transpose,
    weighted_sum_rows,
    write_rows,
)

GATHERED_ROWS = 1 << 30  # the experts need nothing from the host, so they can be part of a graph at any size
_matmul = ops.MatMul()


def linear(x, weight, bias=None, stable=False):
    return kernels.dense(x, weight, bias)


def rms_norm(x, weight, eps):
    return kernels.rms_norm(x, weight, eps)


def layer_norm(x, weight, bias, eps):
    return kernels.layer_norm(x, weight, bias, eps)


def gelu(x):
    return kernels.gelu(x, "none")


def gelu_tanh(x):
    return kernels.gelu(x, "tanh")


def swiglu(gate_up):
    return kernels.swiglu(gate_up)


def rotary(x, cos, sin):
    heads, d = x.shape[-2:]
    # Every token has its own row of the tables, so batch and time are one axis for the kernel.
    rows = x.astype(ms.float32).reshape(1, -1, heads, d)
    y = kernels.rotary_position_embedding(rows, _both_halves(cos), _both_halves(sin))
    return y.reshape(x.shape).astype(x.dtype)


def _both_halves(table):
    """`[..., D/2]` -> `[1, N, 1, D]`."""
    return mint.cat((table, table), -1).reshape(1, -1, 1, 2 * table.shape[-1])


def conv1d(x, weight, bias, dilation=1, groups=1):
    x, weight = mint.unsqueeze(x, 2), mint.unsqueeze(weight, 2)
    return kernels.conv2d(x, weight, bias, (1, 1), (0, 0), (1, dilation), groups).squeeze(2)


def conv2d(x, weight, bias, stride, padding):
    return kernels.conv2d(x, weight, bias, (stride, stride), (padding, padding), (1, 1), 1)


def conv_transpose1d(x, weight, bias, stride, trim=0):
    """One product and shifted sums; the vocoder's kernels are one or two strides long.

    Input t contributes `x[t] @ weight[:, :, w]` to output `t * stride + w`. Cut into pieces of one stride, the
    contributions of piece j of all inputs lie side by side, j strides late:

        stride      |  0  |  1  |  2  |
        piece 0     |  a  |  b  |     |
        piece 1     |     |  a  |  b  |
    """
    b, c, t = x.shape
    channels, width = weight.shape[1:]
    pieces = width // stride
    if pieces * stride != width:
        return reference.conv_transpose1d(x, weight, bias, stride, trim)
    rows = mint.permute(x, (0, 2, 1)).reshape(b * t, c)
    products = _matmul(rows, weight.reshape(c, channels * width)).reshape(b, t, channels, pieces, stride)
    total = bias.reshape(1, channels, 1)
    for piece in range(pieces):
        part = mint.permute(products[:, :, :, piece], (0, 2, 1, 3)).reshape(b, channels, t * stride)
        total = total + _padded(part, piece * stride, (pieces - 1 - piece) * stride)
    return total[..., trim : max(total.shape[-1] - trim, trim)] if trim else total


def _padded(x, before, after):
    """Zeros in front of and behind the last axis."""
    parts = [mint.zeros((*x.shape[:-1], before), dtype=x.dtype)] if before else []
    parts.append(x)
    if after:
        parts.append(mint.zeros((*x.shape[:-1], after), dtype=x.dtype))
    return mint.cat(tuple(parts), -1) if len(parts) > 1 else x


def snake_beta(x, alpha, beta):
    alpha = mint.exp(alpha).reshape(1, -1, 1)
    beta = 1.0 / (mint.exp(beta).reshape(1, -1, 1) + 1e-9)
    return x + mint.square(mint.sin(x * alpha)) * beta


def scale_channels(x, scale):
    return x * scale


def write_rows_by_copy(buffer, index, rows):
    """Should the scatter that `reference` writes with not know the device's dtype."""
    return kernels.index_copy(buffer, index, rows)


TAKEN = (
    "embedding",
    "embedding_part",
    "silu",
    "sigmoid",
    "quick_gelu",
    "relu",
    "scatter_rows",
    "add_rows",
    "write_rows",
    "gather_rows",
    "weighted_sum_rows",
    "concat",
    "transpose",
    "clip",
    "argmax",
    "draw",
    "cross_entropy",
    "expert_load",
)
"""What is `reference`'s: single kernels of MindSpore on every device, or not worth a form of its own."""
FORMS = {name: (globals()[name],) for name in ascend_check.CASES}
"""operator -> its forms on Ascend, the preferred one first."""
FORMS["packed_attention"] += (packed_attention_by_runs,)
FORMS["experts"] += (experts_of_all_pairs,)
FORMS["write_rows"] += (write_rows_by_copy,)
OUTCOMES = {}
"""operator -> what the comparison on this device said; `describe` shows it."""
_settled = set()


def settle(dtype):
    """Compares each operator with `reference` in float32 and keeps the form that agrees in this dtype; once per dtype.

    What has been replaced by `reference` for one dtype stays replaced for all.
    """
    global GATHERED_ROWS
    if dtype in _settled:
        return
    _settled.add(dtype)
    for name, forms in FORMS.items():
        if name in TAKEN or globals()[name] is not getattr(reference, name):
            globals()[name], OUTCOMES[name] = ascend_check.choose(name, forms, dtype)
    if dtype not in kernels.ATTENTION_TYPES:
        for name in ("attention", "packed_attention"):
            OUTCOMES[name] = f"the kernels take half precision only, reference computes in {str(dtype).lower()}"
    if experts is reference.experts:
        GATHERED_ROWS = reference.GATHERED_ROWS
