"""Code2wav, the vocoder: codec frames in, 24 kHz waveform out, whole or step by step with the same result.

codes [B, Q, n] -> mean of Q embeddings -> sliding-window transformer -> upsample -> decoder -> wave [B, 1, *]
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from ..errors import InputError
from ..locking import exclusive
from . import ops
from .cache import WindowContext
from .decoder import Attention, Decoder, DecoderLayer, build_attention, build_dense_mlp
from .layer import Cell, exact_parameters
from .layers import Embedding, Linear
from .packing import host_array
from .positions import stream_rope_tables
from .vocoder_blocks import (
    KERNEL,
    CausalConv1d,
    CausalConvTranspose1d,
    ConvNeXtBlock,
    DecoderBlock,
    History,
    LayerScale,
    SnakeBeta,
    number_slots,
)

CHUNK_FRAMES = 50
"""Frames that `decode` computes at a time: enough to keep the kernels busy with constant memory."""


@dataclass(frozen=True)
class Code2WavState:
    """State of a stream of `batch` rows after `frames` frames. Never modified, so it can be continued twice.

    keys, values: per layer `[B, K, n, D]`, n < sliding_window; tails: per convolution `[B, C, n]`, its last inputs.
    """

    batch: int | None
    frames: int
    keys: tuple
    values: tuple
    tails: tuple


class PreTransformer(Decoder):
    """Mirrors `Qwen3OmniMoeCode2WavTransformerModel`: a dense decoder with layer scales and a sliding window."""

    @exact_parameters()
    def __init__(self, config: Any) -> None:
        super().__init__(config, [self._layer(config) for _ in range(config.num_hidden_layers)])
        self.window = config.sliding_window

    @staticmethod
    def _layer(config):
        layer = DecoderLayer(
            config.hidden_size, config.rms_norm_eps, build_attention(config, qk_norm=False), build_dense_mlp(config)
        )
        layer.self_attn_layer_scale = LayerScale(config.hidden_size, config.layer_scale_initial_scale)
        layer.mlp_layer_scale = LayerScale(config.hidden_size, config.layer_scale_initial_scale)
        return layer


class Code2Wav(Cell):
    """Mirrors `Qwen3OmniMoeCode2Wav`; codes are integers `[B, Q, n]` (numpy or Tensor), waves float32 in [-1, 1].

    decode(codes)          the whole wave
    step(codes), reset()   the next piece of one stream, whose state this cell stores
    stream()               a separate stream, also with step and reset; any number of them at the same time
    advance(codes, state)  the primitive under all of these: state in, state out

    It computes in float32 in every model: `snake_beta` takes sines of large numbers and divides by ones that may be as small as
    1e-9, and its parameters are few.

    Concatenated pieces equal the whole, however the frames are split: bit for bit where the operators are `cpu`'s
    float32 kernels (see `ops.describe`), else up to the rounding of sums. Rows of a batch do not influence one another,
    and later frames do not influence samples that are out already: a shorter row's wave can be cut at
    `num_samples(its frames)`.

    n frames give `samples_per_frame * n - held_samples` samples, as in the reference: each upsampling by a rate s in
    `decoder` adds up the contributions of two neighbouring inputs, so its last s outputs wait for the next input, and
    its first s, which have one contribution only, are dropped. A stream therefore runs one input of every level late.
    At the published rates (8, 5, 4, 3) that is 8*5*4*3 + 5*4*3 + 4*3 + 3 = 555 samples (23 ms). The reference's chunked
    decoding loses them at every boundary; here the next step brings them out.
    """

    transformer_model, decoder_block = PreTransformer, DecoderBlock

    @exact_parameters()
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.pre_transformer = self.transformer_model(config)
        self.code_embedding = Embedding(config.codebook_size * config.num_quantizers, config.hidden_size)
        self.upsample = nn.CellList([self._upsampling(config, factor) for factor in config.upsampling_ratios])
        self.decoder = nn.CellList(self._decoder(config))
        self.slots = number_slots(self)
        self._ask_for_stable_sums()
        self.reset()

    @staticmethod
    def _upsampling(config, factor):
        width = config.hidden_size
        return nn.CellList([CausalConvTranspose1d(width, width, factor, factor), ConvNeXtBlock(width)])

    def _decoder(self, config):
        levels = len(config.upsample_rates)
        blocks = [self.decoder_block(config, level) for level in range(levels)]
        last = config.decoder_dim // 2**levels
        return [
            CausalConv1d(config.hidden_size, config.decoder_dim, KERNEL),
            *blocks,
            SnakeBeta(last),
            CausalConv1d(last, 1, KERNEL),
        ]

    def _ask_for_stable_sums(self):
        """Rounding that depended on how the frames are split would be amplified by every convolution that follows."""
        for _, cell in self.cells_and_names():
            if isinstance(cell, (Linear, Attention)):
                cell.stable = True

    @property
    def held_samples(self) -> int:
        """Samples of the last frames that only the next frames would complete (see the class): 555 at the published rates."""
        rates = self.config.upsample_rates
        return sum(math.prod(rates[level:]) for level in range(len(rates)))

    def num_samples(self, frames: int) -> int:
        """Length of the wave that `frames` frames give; frames so few that a level has no complete output give 0."""
        return max(self.config.samples_per_frame * frames - self.held_samples, 0)

    @property
    def input_layer(self) -> Embedding:
        return self.code_embedding

    @property
    def total_upsample(self) -> int:
        """Samples per frame: 1920 as published."""
        return self.config.samples_per_frame

    def construct(self, codes: Any) -> Tensor:
        """As the reference's forward: `decode`."""
        return self.decode(codes)

    def chunked_decode(self, codes: Any, chunk_size: int = 300, left_context_size: int = 25) -> Tensor:
        """The whole wave, `chunk_size` frames at a time: exactly `decode(codes)`, where the reference's approximates it.

        left_context_size changes nothing: a stream stores all of the sliding window. Raises `InputError`.
        """
        if chunk_size < 1 or left_context_size < 0:
            raise InputError(
                f"got chunk_size={chunk_size}, left_context_size={left_context_size}; expected at least 1 and 0"
            )
        return self.decode(codes, chunk_size)

    def decode(self, codes: Any, chunk_frames: int | None = None) -> Tensor:
        """The whole wave `[B, 1, num_samples(n)]` of codes `[B, Q, n]`, n >= 0. Raises `InputError`."""
        stream = self.stream()
        codes = check_codes(codes, self.config)
        frames = codes.shape[-1]
        size = chunk_frames or CHUNK_FRAMES
        waves = [stream.step(codes[..., start : start + size]) for start in range(0, max(frames, 1), size)]
        with exclusive:
            return waves[0] if len(waves) == 1 else ops.concat(waves, -1)

    @exclusive
    def step(self, codes: Any) -> Tensor:
        """The next piece of this cell's own stream (see `Code2WavStream.step`)."""
        wave, self.own_state = self.advance(codes, self.own_state)
        return wave

    def reset(self) -> None:
        """Starts this cell's own stream anew."""
        self.own_state = self.new_state()

    def stream(self) -> "Code2WavStream":
        """A new stream, independent of all others."""
        return Code2WavStream(self)

    def new_state(self) -> Code2WavState:
        """The state of a stream that has not begun; its first step decides the batch size."""
        layers = (None,) * self.config.num_hidden_layers
        return Code2WavState(None, 0, layers, layers, (None,) * self.slots)

    @exclusive
    def advance(self, codes: Any, state: Code2WavState) -> tuple[Tensor, Code2WavState]:
        """One step: codes `[B, Q, n]`, n >= 0, and a state -> the wave that n more frames complete, and the next state.

        Cost and memory depend on n and on the sliding window, not on what has passed. Raises `InputError`.
        """
        codes = check_codes(codes, self.config)
        batch, _, frames = codes.shape
        if state.batch not in (None, batch):
            raise InputError(
                f"code2wav: this stream has {state.batch} rows, got codes for {batch}; reset() it or use stream()"
            )
        if frames == 0:
            return silence(batch), replace(state, batch=batch)
        context = WindowContext(state.keys, state.values, batch, frames, self.config.sliding_window)
        history = History(state.tails)
        rope = stream_rope_tables(state.frames, frames, batch, self.pre_transformer.inv_freq)
        hidden = self.pre_transformer.run(self._embed(codes), (*rope, context.mask, None), context)
        wave = self._synthesise(ops.transpose(hidden, (0, 2, 1)), history)
        passed = state.frames + frames
        return wave, Code2WavState(batch, passed, tuple(context.keys), tuple(context.values), tuple(history.tails))

    def _embed(self, codes):
        """The mean of each frame's embeddings, one table per quantizer: `[B, Q, n]` -> `[B, n, D]`."""
        batch, quantizers, frames = codes.shape
        rows = codes.transpose(0, 2, 1) + np.arange(quantizers) * self.config.codebook_size  # [B, n, Q]
        rows = rows.reshape(-1, quantizers).astype(np.int32)
        mean = np.full(rows.shape, 1 / quantizers, np.float32)
        indices, table = self.code_embedding.rows(Tensor(rows))
        return ops.weighted_sum_rows(table, indices, Tensor(mean)).reshape(batch, frames, -1)

    def _synthesise(self, x, history):
        """`[B, D, n]` -> `[B, 1, samples]`."""
        for upsampling, block in self.upsample:
            x = block(upsampling(x, history), history)
        first, *blocks, snake, last = self.decoder
        x = first(x, history)
        for block in blocks:
            x = block(x, history)
            if x.shape[-1] == 0:  # the first frames may not complete an output; the levels above have nothing to do
                return silence(x.shape[0])
        return ops.clip(last(snake(x), history).astype(ms.float32), -1.0, 1.0)


class Code2WavStream:
    """One utterance (or a batch of them), synthesised piece by piece."""

    def __init__(self, code2wav: Code2Wav) -> None:
        self.code2wav = code2wav
        self.reset()

    def reset(self) -> None:
        """Starts a new utterance."""
        self.state = self.code2wav.new_state()

    @exclusive
    def step(self, codes: Any) -> Tensor:
        """The samples `[B, 1, *]` that codes `[B, Q, n]` complete, n >= 0; none at all when the first steps are small.

        Raises `InputError` and leaves the stream as it was.
        """
        wave, self.state = self.code2wav.advance(codes, self.state)
        return wave


def silence(batch: int) -> Tensor:
    """A wave without samples, `[B, 1, 0]`."""
    return Tensor(np.zeros((batch, 1, 0), np.float32))


def check_codes(codes: Any, config: Any) -> np.ndarray:
    """codes as an integer array `[B, Q, n]` with values in `[0, codebook_size)`, or `InputError`."""
    codes = host_array(codes)
    quantizers, size = config.num_quantizers, config.codebook_size
    expected = f"expected integers of shape [batch, {quantizers}, frames], each from 0 to {size - 1}"
    if codes.ndim != 3 or codes.shape[1] != quantizers or codes.shape[0] == 0:
        raise InputError(f"code2wav: got codes of shape {list(codes.shape)}; {expected}")
    if not np.issubdtype(codes.dtype, np.integer):
        raise InputError(f"code2wav: got codes of dtype {codes.dtype}; {expected}")
    if codes.size and not 0 <= codes.min() <= codes.max() < size:
        raise InputError(
            f"code2wav: got codes from {codes.min()} to {codes.max()}; {expected}. Leave out the frame of the end token"
        )
    return codes
