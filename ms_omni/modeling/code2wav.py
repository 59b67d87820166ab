"""Code2wav, the vocoder: codec frames in, 24 kHz waveform out, whole or step by step with the same result.

    codes [B, Q, n] -> mean of Q embeddings -> transformer with a sliding window -> upsample -> decoder -> wave [B, 1, *]
"""

from dataclasses import dataclass
from typing import Optional

import mindspore as ms
import numpy as np
from mindspore import Tensor, mint, nn

from ..errors import InputError
from . import ops
from .causal_conv import CausalConv1d, CausalConvTranspose1d, History, StreamingCell
from .decoder import Decoder, DecoderLayer, build_attention, build_dense_mlp
from .layers import Embedding
from .packing import host_array
from .rope import inverse_frequencies
from .sliding_window import WindowContext, stream_rope_tables
from .vocoder_blocks import KERNEL, ConvNeXtBlock, DecoderBlock, LayerScale, SnakeBeta

CHUNK_FRAMES = 50
"""Frames that `decode` sends through at a time: enough to keep the kernels busy, and memory stays flat."""


@dataclass(frozen=True)
class Code2WavState:
    """What a stream of `batch` rows remembers after `frames` frames. Never modified: it can be kept and continued twice.

    keys, values: per layer `[B, K, n, D]`, n < sliding_window; tails: per convolution `[B, C, n]`, its last inputs.
    """

    batch: Optional[int]
    frames: int
    keys: tuple
    values: tuple
    tails: tuple


class PreTransformer(Decoder):
    """Mirrors `Qwen3OmniMoeCode2WavTransformerModel`: a dense decoder with layer scales and a sliding window."""

    def __init__(self, config):
        super().__init__(config, [self._layer(config) for _ in range(config.num_hidden_layers)])

    @staticmethod
    def _layer(config):
        layer = DecoderLayer(config.hidden_size, config.rms_norm_eps, build_attention(config, qk_norm=False),
                             build_dense_mlp(config))  # fmt: skip
        layer.self_attn_layer_scale = LayerScale(config.hidden_size)
        layer.mlp_layer_scale = LayerScale(config.hidden_size)
        return layer


class Code2Wav(nn.Cell):
    """Mirrors `Qwen3OmniMoeCode2Wav`."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.pre_transformer = PreTransformer(config)
        self.code_embedding = Embedding(config.codebook_size * config.num_quantizers, config.hidden_size)
        self.upsample = nn.CellList([self._upsampling(config, factor) for factor in config.upsampling_ratios])
        self.decoder = nn.CellList(self._decoder(config))
        self.inv_freq = inverse_frequencies(config.rope_theta, config.head_dim)

    @staticmethod
    def _upsampling(config, factor):
        width = config.hidden_size
        return nn.CellList([CausalConvTranspose1d(width, width, factor, factor), ConvNeXtBlock(width)])

    @staticmethod
    def _decoder(config):
        channels = [config.decoder_dim // 2**level for level in range(len(config.upsample_rates) + 1)]
        blocks = [DecoderBlock(width, rate) for width, rate in zip(channels, config.upsample_rates)]
        last = channels[-1]
        return [CausalConv1d(config.hidden_size, channels[0], KERNEL), *blocks, SnakeBeta(last),
                CausalConv1d(last, 1, KERNEL)]  # fmt: skip
