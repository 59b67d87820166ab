"""The blocks of the vocoder's convolutional half, over time and continued step by step. `history`: the inputs of earlier steps that
a step needs.

    x  ... 5 6 7 | 8 9       a causal convolution reads (kernel - 1) * dilation inputs before each output; those before
         `-----'             the step (5 6 7) come from the history, zeros at the start of the stream

A whole signal is one step from an empty history, so there is no second implementation.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from mindspore import Tensor, nn

from . import ops
from .layer import Cell, Layer, exact_parameters, parameter
from .layers import LayerNorm, Linear


class History:
    """The last inputs of every convolution of a stream: `tails[slot]` is `[B, C, n]`, or None before the first input.

    Cells replace entries of their own slot in this list; the tensors themselves are never written to.
    """

    def __init__(self, tails: Iterable) -> None:
        self.tails = list(tails)

    @classmethod
    def before(cls, network: nn.Cell) -> "History":
        """The history of a stream that has not begun."""
        return cls([None] * (1 + max(cell.slot for cell in streaming_cells(network))))

    def extend(self, slot: int, x: Tensor, width: int, padded: bool) -> Tensor:
        """x `[B, C, T]` with up to `width` earlier inputs in front -> `[B, C, n + T]`; stores the last `width` of that.

        Before the first input there are `width` zeros if padded, else nothing.
        """
        before = self._zeros(x, width) if self.tails[slot] is None and padded else self.tails[slot]
        if before is not None:
            x = ops.concat((before, x), -1)
        self.tails[slot] = self._last(x, width)
        return x

    def take(self, slot: int, x: Tensor, width: int) -> Tensor:
        """The `width` inputs before x `[B, C, T]`, zeros before the stream: `[B, C, width]`; stores the last ones of x."""
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

    def __init__(self, shape: tuple[int, ...], out_channels: int) -> None:
        super().__init__()
        self.weight = parameter(*shape)
        self.bias = parameter(out_channels, start=0.0)

    def operands(self) -> tuple[Tensor, Tensor]:
        return self.source(self.weight), self.source(self.bias)


class StreamingCell(Cell):
    """A cell with an entry of its own in the `History`; `number_slots` of the whole network numbers the slots."""

    def __init__(self) -> None:
        super().__init__()
        self.slot: Any = None


class CausalConv1d(StreamingCell):
    """`[B, C, T]` -> `[B, M, T]`, zeros before the stream; mirrors `Qwen3OmniMoeCausalConvNet`."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, dilation: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = Convolution((out_channels, in_channels // groups, kernel), out_channels)
        self.dilation = dilation
        self.groups = groups
        self.reach = (kernel - 1) * dilation

    def construct(self, x: Tensor, history: History) -> Tensor:
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
        outputs    |  a  | a + b | b + c |  c  |        returned: a + b, b + c; the next step starts from c again
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.conv = Convolution((in_channels, out_channels, kernel), out_channels)
        self.stride = stride
        self.cut = kernel - stride
        self.reach = self.cut // stride

    def construct(self, x: Tensor, history: History) -> Tensor:
        if self.reach:
            x = history.extend(self.slot, x, self.reach, padded=False)
        return ops.conv_transpose1d(x, *self.conv.operands(), self.stride, self.cut)


def streaming_cells(network: nn.Cell) -> list["StreamingCell"]:
    """The convolutions of a network that need earlier inputs."""
    return [cell for _, cell in network.cells_and_names() if isinstance(cell, StreamingCell) and cell.reach]


def number_slots(network: nn.Cell) -> int:
    """Numbers the convolutions of a network that need earlier inputs; returns how many there are."""
    cells = streaming_cells(network)
    for slot, cell in enumerate(cells):
        cell.slot = slot
    return len(cells)


KERNEL = 7
DILATIONS = (1, 3, 9)
NORM_EPS = 1e-6  # fixed in the reference, not part of the configuration


class LayerScale(Layer):
    """A learnt factor per channel, `[..., D]` -> `[..., D]` (Touvron et al. 2021)."""

    def __init__(self, dim: int, start: float) -> None:
        super().__init__()
        self.scale = parameter(dim, start=start)

    def operands(self) -> tuple[Tensor]:
        return (self.source(self.scale),)

    def construct(self, x: Tensor) -> Tensor:
        return ops.scale_channels(x, *self.operands())


class SnakeBeta(Layer):
    """`x + sin^2(x e^alpha) / e^beta` per channel, `[B, C, T]` -> `[B, C, T]` (Lee et al. 2022, "BigVGAN")."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = parameter(channels, start=0.0)  # of a logarithm
        self.beta = parameter(channels, start=0.0)

    def operands(self) -> tuple[Tensor, Tensor]:
        return self.source(self.alpha), self.source(self.beta)

    def construct(self, x: Tensor) -> Tensor:
        return ops.snake_beta(x, *self.operands())


class ConvNeXtBlock(Layer):
    """Depthwise convolution, then a scaled MLP over channels: `[B, C, T]` -> `[B, C, T]` (Liu et al. 2022)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dwconv = CausalConv1d(dim, dim, KERNEL, groups=dim)
        self.norm = LayerNorm(dim, NORM_EPS)
        self.pwconv1 = Linear(dim, 4 * dim)
        self.pwconv2 = Linear(4 * dim, dim)
        self.gamma = parameter(dim, start=1e-6)

    def operands(self) -> tuple[Tensor]:
        return (self.source(self.gamma),)

    def construct(self, x: Tensor, history: History) -> Tensor:
        rows = ops.transpose(self.dwconv(x, history), (0, 2, 1))  # [B, T, C]
        rows = self.pwconv2(ops.gelu(self.pwconv1(self.norm(rows))))
        return x + ops.transpose(ops.scale_channels(rows, *self.operands()), (0, 2, 1))


class ResidualUnit(Cell):
    """Snake, dilated convolution, snake, 1x1 convolution, and the input added: `[B, C, T]` -> `[B, C, T]`."""

    def __init__(self, dim: int, dilation: int) -> None:
        super().__init__()
        self.act1 = SnakeBeta(dim)
        self.conv1 = CausalConv1d(dim, dim, KERNEL, dilation)
        self.act2 = SnakeBeta(dim)
        self.conv2 = CausalConv1d(dim, dim, 1)

    def construct(self, x: Tensor, history: History) -> Tensor:
        before = history.take(self.conv1.slot, x, self.conv1.reach)
        return ops.residual_unit(
            x,
            before,
            self.act1.operands(),
            self.conv1.conv.operands(),
            self.conv1.dilation,
            self.act2.operands(),
            self.conv2.conv.operands(),
        )


class DecoderBlock(Cell):
    """Snake, upsampling by the rate of its level, and one residual unit per dilation: `[B, C, T]` -> `[B, C / 2, T * rate]`.

    The first step of a stream, and a whole signal without a history, returns `rate` samples fewer (see `CausalConvTranspose1d`),
    possibly none.
    """

    @exact_parameters()
    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        in_channels, out_channels = (config.decoder_dim // 2 ** (layer_idx + more) for more in (0, 1))
        rate = config.upsample_rates[layer_idx]
        upsampling = CausalConvTranspose1d(in_channels, out_channels, 2 * rate, rate)
        units = [ResidualUnit(out_channels, dilation) for dilation in DILATIONS]
        self.block = nn.CellList([SnakeBeta(in_channels), upsampling, *units])
        number_slots(self)

    def construct(self, hidden: Tensor, history: History | None = None) -> Tensor:
        history = History.before(self) if history is None else history
        x = hidden
        snake, upsampling, *units = self.block
        x = upsampling(snake(x), history)
        if x.shape[-1]:
            for unit in units:
                x = unit(x, history)
        return x
