"""The blocks of the vocoder's convolutional half. `history` is what earlier steps left (see `causal_conv.py`)."""

from mindspore import nn

from . import ops
from .causal_conv import CausalConv1d, CausalConvTranspose1d, History, give_out_slots
from .layer import Cell, Layer, exact_parameters, parameter
from .layers import LayerNorm, Linear

KERNEL = 7
DILATIONS = (1, 3, 9)
NORM_EPS = 1e-6  # fixed in the reference, not part of the configuration


class LayerScale(Layer):
    """A learnt factor per channel, `[..., D]` -> `[..., D]` (Touvron et al. 2021)."""

    def __init__(self, dim, start):
        super().__init__()
        self.scale = parameter(dim, start=start)

    def operands(self):
        return (self.source(self.scale),)

    def construct(self, x):
        return ops.scale_channels(x, *self.operands())


class SnakeBeta(Layer):
    """`x + sin^2(x e^alpha) / e^beta` per channel, `[B, C, T]` -> `[B, C, T]` (Lee et al. 2022, "BigVGAN")."""

    def __init__(self, channels):
        super().__init__()
        self.alpha = parameter(channels, start=0.0)  # of a logarithm
        self.beta = parameter(channels, start=0.0)

    def operands(self):
        return self.source(self.alpha), self.source(self.beta)

    def construct(self, x):
        return ops.snake_beta(x, *self.operands())


class ConvNeXtBlock(Layer):
    """Depthwise convolution, then a scaled MLP over channels: `[B, C, T]` -> `[B, C, T]` (Liu et al. 2022)."""

    def __init__(self, dim):
        super().__init__()
        self.dwconv = CausalConv1d(dim, dim, KERNEL, groups=dim)
        self.norm = LayerNorm(dim, NORM_EPS)
        self.pwconv1 = Linear(dim, 4 * dim)
        self.pwconv2 = Linear(4 * dim, dim)
        self.gamma = parameter(dim, start=1e-6)

    def operands(self):
        return (self.source(self.gamma),)

    def construct(self, x, history):
        rows = ops.transpose(self.dwconv(x, history), (0, 2, 1))  # [B, T, C]
        rows = self.pwconv2(ops.gelu(self.pwconv1(self.norm(rows))))
        return x + ops.transpose(ops.scale_channels(rows, *self.operands()), (0, 2, 1))


class ResidualUnit(Cell):
    """Snake, dilated convolution, snake, 1x1 convolution, and the input added: `[B, C, T]` -> `[B, C, T]`."""

    def __init__(self, dim, dilation):
        super().__init__()
        self.act1 = SnakeBeta(dim)
        self.conv1 = CausalConv1d(dim, dim, KERNEL, dilation)
        self.act2 = SnakeBeta(dim)
        self.conv2 = CausalConv1d(dim, dim, 1)

    def construct(self, x, history):
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

    The first step of a stream gives `rate` fewer (see `CausalConvTranspose1d`), which may leave nothing; so does a whole
    signal without a history.
    """

    @exact_parameters()
    def __init__(self, config, layer_idx):
        super().__init__()
        self.config = config
        in_channels, out_channels = (config.decoder_dim // 2 ** (layer_idx + more) for more in (0, 1))
        rate = config.upsample_rates[layer_idx]
        upsampling = CausalConvTranspose1d(in_channels, out_channels, 2 * rate, rate)
        units = [ResidualUnit(out_channels, dilation) for dilation in DILATIONS]
        self.block = nn.CellList([SnakeBeta(in_channels), upsampling, *units])
        give_out_slots(self)

    def construct(self, hidden, history=None):
        history = History.before(self) if history is None else history
        x = hidden
        snake, upsampling, *units = self.block
        x = upsampling(snake(x), history)
        if x.shape[-1]:
            for unit in units:
                x = unit(x, history)
        return x
