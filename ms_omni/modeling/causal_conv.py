"""Convolutions over time that can be continued: what a step needs of earlier steps travels in a `History`.

    x  ... 5 6 7 | 8 9       a causal convolution reads (kernel - 1) * dilation inputs before each output; those before
         `-----'             the step (5 6 7) come from the history, zeros at the start of the stream

A whole signal is one step from an empty history, so there is no second implementation.
"""

import numpy as np
from mindspore import Tensor

from . import ops
from .layer import Cell, Layer, parameter


class History:
    """The last inputs of every convolution of a stream: `tails[slot]` is `[B, C, n]`, or None before the first input.

    Cells replace entries of their own slot in this list; the tensors themselves are never written to.
    """

    def __init__(self, tails):
        self.tails = list(tails)

    @classmethod
    def before(cls, network):
        """That of a network whose stream has not begun."""
        return cls([None] * (1 + max(cell.slot for cell in streaming_cells(network))))

    def extend(self, slot, x, width, padded):
        """x `[B, C, T]` with up to `width` earlier inputs in front -> `[B, C, n + T]`; keeps the last `width` of that.

        Before the first input there are `width` zeros if padded, else nothing.
        """
        before = self._zeros(x, width) if self.tails[slot] is None and padded else self.tails[slot]
        if before is not None:
            x = ops.concat((before, x), -1)
        self.tails[slot] = self._last(x, width)
        return x

    def take(self, slot, x, width):
        """The `width` inputs before x `[B, C, T]`, zeros before the stream: `[B, C, width]`; keeps the last ones of x."""
        before = self._zeros(x, width) if self.tails[slot] is None else self.tails[slot]
        self.tails[slot] = self._last(x if x.shape[-1] >= width else ops.concat((before, x), -1), width)
        return before

    @staticmethod
    def _zeros(x, width):
        return Tensor(np.zeros((*x.shape[:2], width), np.float32)).astype(x.dtype)

    @staticmethod
    def _last(x, width):
        # A copy: a view would keep the whole of x alive.
        return x[..., max(x.shape[-1] - width, 0) :].contiguous()


class Convolution(Layer):
    """Weight and bias of a convolution."""

    def __init__(self, shape, out_channels):
        super().__init__()
        self.weight = parameter(*shape)
        self.bias = parameter(out_channels, start=0.0)

    def operands(self):
        return self.source(self.weight), self.source(self.bias)


class StreamingCell(Cell):
    """A cell with a place of its own in the `History`; `slot` is given out by whoever owns the whole network."""

    def __init__(self):
        super().__init__()
        self.slot = None


class CausalConv1d(StreamingCell):
    """`[B, C, T]` -> `[B, M, T]`, zeros before the stream; mirrors `Qwen3OmniMoeCausalConvNet`."""

    def __init__(self, in_channels, out_channels, kernel, dilation=1, groups=1):
        super().__init__()
        self.conv = Convolution((out_channels, in_channels // groups, kernel), out_channels)
        self.dilation = dilation
        self.groups = groups
        self.reach = (kernel - 1) * dilation

    def construct(self, x, history):
        if self.reach:
            x = history.extend(self.slot, x, self.reach, padded=True)
        return ops.conv1d(x, *self.conv.operands(), self.dilation, self.groups)


class CausalConvTranspose1d(StreamingCell):
    """`[B, C, T]` -> `[B, M, T * stride]`, less (kernel - stride) once per stream; kernel a multiple of stride.

    Mirrors `Qwen3OmniMoeCausalTransConvNet`, which cuts kernel - stride outputs off both ends. Those at the beginning
    lack earlier inputs, those at the end wait for later ones, so that what is left is complete. Reading
    kernel / stride - 1 earlier inputs again makes every step complete in the same way: its first outputs, cut off here,
    came out of the step before, and the last come out of the next. With kernel = 2 * stride:

        inputs                 a        b        c
        outputs    |  a  | a + b | b + c |  c  |        kept: a + b, b + c; the next step starts from c again
    """

    def __init__(self, in_channels, out_channels, kernel, stride):
        super().__init__()
        self.conv = Convolution((in_channels, out_channels, kernel), out_channels)
        self.stride = stride
        self.cut = kernel - stride
        self.reach = self.cut // stride

    def construct(self, x, history):
        if self.reach:
            x = history.extend(self.slot, x, self.reach, padded=False)
        return ops.conv_transpose1d(x, *self.conv.operands(), self.stride, self.cut)


def streaming_cells(network):
    """The convolutions of a network that remember inputs."""
    return [cell for _, cell in network.cells_and_names() if isinstance(cell, StreamingCell) and cell.reach]


def give_out_slots(network):
    """Numbers the convolutions of a network that remember inputs; returns how many there are."""
    cells = streaming_cells(network)
    for slot, cell in enumerate(cells):
        cell.slot = slot
    return len(cells)
