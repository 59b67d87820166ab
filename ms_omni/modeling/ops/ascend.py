"""The operators on Ascend: fused kernels where they exist, elsewhere spellings that suit the device.

`Reference` avoids what is slow on CPU: broadcasting, native convolutions, one kernel per activation. On Ascend these
are the fast way. What is taken over are single kernels of MindSpore that exist on both. Before the first model is built,
the forms of each are compared on the device with its formula, and one that differs is replaced (`ascend_settle.py`).
"""

from typing import ClassVar

import mindspore as ms
from mindspore import mint, ops

from . import ascend_attention, ascend_moe, ascend_settle
from . import ascend_kernels as kernels
from .reference import Reference

_matmul = ops.MatMul()


def write_rows_by_copy(buffer, index, rows):
    """Should the scatter that `Reference` writes with not know the device's dtype."""
    return kernels.index_copy(buffer, index, rows)


class Ascend(Reference):
    """A method calls kernels, or `Reference`, but no other operator: each may be replaced by itself."""

    GRAPH_EXPERT_ROWS = 1 << 30  # the experts need nothing from the host, so they can be part of a graph at any size

    attention = staticmethod(ascend_attention.attention)
    packed_attention = staticmethod(ascend_attention.packed_attention)
    route_topk = staticmethod(ascend_moe.route_topk)
    experts = staticmethod(ascend_moe.experts)

    @staticmethod
    def linear(x, weight, bias=None, stable=False):
        return kernels.dense(x, weight, bias)

    @staticmethod
    def rms_norm(x, weight, eps):
        return kernels.rms_norm(x, weight, eps)

    @staticmethod
    def layer_norm(x, weight, bias, eps):
        return kernels.layer_norm(x, weight, bias, eps)

    @staticmethod
    def gelu(x):
        return kernels.gelu(x, "none")

    @staticmethod
    def gelu_tanh(x):
        return kernels.gelu(x, "tanh")

    @staticmethod
    def swiglu(gate_up):
        return kernels.swiglu(gate_up)

    @staticmethod
    def rotary(x, cos, sin):
        heads, d = x.shape[-2:]
        # Every token has its own row of the tables, so batch and time are one axis for the kernel.
        rows = x.astype(ms.float32).reshape(1, -1, heads, d)
        y = kernels.rotary_position_embedding(rows, _both_halves(cos), _both_halves(sin))
        return y.reshape(x.shape).astype(x.dtype)

    @staticmethod
    def conv1d(x, weight, bias, dilation=1, groups=1):
        x, weight = mint.unsqueeze(x, 2), mint.unsqueeze(weight, 2)
        return kernels.conv2d(x, weight, bias, (1, 1), (0, 0), (1, dilation), groups).squeeze(2)

    @staticmethod
    def conv2d(x, weight, bias, stride, padding):
        return kernels.conv2d(x, weight, bias, (stride, stride), (padding, padding), (1, 1), 1)

    @staticmethod
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
            return Reference.conv_transpose1d(x, weight, bias, stride, trim)
        rows = mint.permute(x, (0, 2, 1)).reshape(b * t, c)
        products = _matmul(rows, weight.reshape(c, channels * width)).reshape(b, t, channels, pieces, stride)
        total = bias.reshape(1, channels, 1)
        for piece in range(pieces):
            part = mint.permute(products[:, :, :, piece], (0, 2, 1, 3)).reshape(b, channels, t * stride)
            total = total + _padded(part, piece * stride, (pieces - 1 - piece) * stride)
        return total[..., trim : max(total.shape[-1] - trim, trim)] if trim else total

    @staticmethod
    def snake_beta(x, alpha, beta):
        alpha = mint.exp(alpha).reshape(1, -1, 1)
        beta = 1.0 / (mint.exp(beta).reshape(1, -1, 1) + 1e-9)
        return x + mint.square(mint.sin(x * alpha)) * beta

    @staticmethod
    def scale_channels(x, scale):
        return x * scale

    # ---- other forms and the comparison on the device -----------------------------------------------------------------

    OTHER_FORMS: ClassVar = {
        "packed_attention": (ascend_attention.packed_attention_by_runs,),
        "experts": (ascend_moe.experts_of_all_pairs,),
        "write_rows": (write_rows_by_copy,),
    }
    SETTLED: ClassVar[frozenset] = frozenset()
    """dtypes that the forms have been chosen for, in a class that `settled` has made of this one."""

    @classmethod
    def settled(cls, dtype):
        """The vocoder computes in float32 beside every other dtype."""
        wanted = cls.SETTLED | {dtype, ms.float32}
        return cls if wanted == cls.SETTLED else ascend_settle.settled(cls.__mro__[1] if cls.SETTLED else cls, wanted)


def _both_halves(table):
    """`[..., D/2]` -> `[1, N, 1, D]`."""
    return mint.cat((table, table), -1).reshape(1, -1, 1, 2 * table.shape[-1])


def _padded(x, before, after):
    """Zeros in front of and behind the last axis."""
    parts = [mint.zeros((*x.shape[:-1], before), dtype=x.dtype)] if before else []
    parts.append(x)
    if after:
        parts.append(mint.zeros((*x.shape[:-1], after), dtype=x.dtype))
    return mint.cat(tuple(parts), -1) if len(parts) > 1 else x
