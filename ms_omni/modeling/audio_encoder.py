"""The audio encoder: mel frames -> 13 vectors per second (Whisper-like encoder with attention windows).

mel [128, n] --chunks of 100 frames--> [C, 1, 128, 100] --3 convolutions, stride 2--> [C, 480, 16, 13]
    --linear, + sinusoids--> [C, 13, D] --valid rows, packed--> [N, D] --layers in windows of 8 s--> [N, out]
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from mindspore import Tensor, nn

from ..errors import InputError
from . import ops
from .encoder import Encoder, check_kind, stored
from .forward import check_arguments
from .layer import Cell, Layer, has_hooks, parameter
from .layers import ACTIVATIONS, LayerNorm, Linear
from .ops.fused import EncoderLayerWeights
from .packing import finite, host_array, marked, segments_of, whole_numbers

NORM_EPS = 1e-5


def conv_length(frames: Any) -> Any:
    """Length after one convolution of kernel 3, stride 2, padding 1."""
    return (frames - 1) // 2 + 1


def audio_token_count(frames: Any, n_window: int) -> Any:
    """Number of encoder outputs for mel frames (an int or an array): 13 per whole chunk of `2 * n_window` = 100.

    Reference: `_get_feat_extract_output_lengths` (module level; the method of the same purpose is wrong).
    """
    chunk = 2 * n_window
    whole, rest = frames // chunk, frames % chunk
    return conv_length(conv_length(conv_length(rest))) + whole * conv_length(conv_length(conv_length(chunk)))


def clip_lengths(features: Any, mask: Any, lengths: Any) -> np.ndarray:
    """Mel frames of each clip `[clips]` of features `[clips, mel, frames]`; mask `[clips, frames]` or lengths `[clips]`; without
    either all. Raises `InputError` for a mask or lengths that do not fit.
    """
    clips, _, frames = features.shape
    if mask is not None:
        mask = marked(mask, "feature_attention_mask")
        lengths = mask.sum(axis=-1)
        if mask.shape != (clips, frames) or (mask != (np.arange(frames) < lengths[:, None])).any():
            raise InputError(
                f"feature_attention_mask of shape {mask.shape} must mark the first frames of each of the "
                f"{clips} clips of {frames} mel frames"
            )
    lengths = np.full(clips, frames) if lengths is None else whole_numbers(lengths, "audio_feature_lengths").reshape(-1)
    if len(lengths) != clips or (lengths > frames).any():
        raise InputError(f"got lengths {lengths.tolist()} for {clips} clips of {frames} mel frames")
    return lengths


def sinusoids(length: int, channels: int, max_timescale: int = 10000) -> np.ndarray:
    """Sine and cosine position table `[length, channels]` (Vaswani et al. 2017, in Whisper's layout)."""
    step = np.log(max_timescale) / (channels // 2 - 1)
    scales = np.exp((-step * np.arange(channels // 2)).astype(np.float32))
    angles = np.arange(length, dtype=np.float32)[:, None] * scales[None]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


class AudioAttention(Cell):
    """Full attention inside each window, `[N, D]` -> `[N, D]`."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.heads = config.encoder_attention_heads
        self.scale = (config.d_model // self.heads) ** -0.5
        self.q_proj = Linear(config.d_model, config.d_model)
        self.k_proj = Linear(config.d_model, config.d_model)
        self.v_proj = Linear(config.d_model, config.d_model)
        self.out_proj = Linear(config.d_model, config.d_model)

    def construct(self, x: Tensor, segments: tuple[tuple[int, int], ...]) -> Tensor:
        shape = (x.shape[0], self.heads, -1)
        q, k, v = (proj(x).reshape(shape) for proj in (self.q_proj, self.k_proj, self.v_proj))  # [N, H, D]
        return self.out_proj(ops.packed_attention(q, k, v, segments, self.scale))


class AudioEncoderLayer(Cell):
    """Pre-norm transformer layer on packed rows."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.self_attn = AudioAttention(config)
        self.self_attn_layer_norm = LayerNorm(config.d_model, NORM_EPS)
        self.fc1 = Linear(config.d_model, config.encoder_ffn_dim)
        self.fc2 = Linear(config.encoder_ffn_dim, config.d_model)
        self.final_layer_norm = LayerNorm(config.d_model, NORM_EPS)
        self.activation_fn = ACTIVATIONS[config.activation_function]

    def construct(self, x: Tensor, segments: tuple[tuple[int, int], ...]) -> Tensor:
        x = x + self.self_attn(self.self_attn_layer_norm(x), segments)
        return x + self.fc2(self.activation_fn(self.fc1(self.final_layer_norm(x))))

    def weights(self) -> EncoderLayerWeights:
        """`EncoderLayerWeights`. Raises `CellsOnly`."""
        attn = self.self_attn
        for kind, cell in ((AudioEncoderLayer, self), (AudioAttention, attn)):
            check_kind(kind, cell)
        norm, mlp_norm = stored(LayerNorm, self.self_attn_layer_norm, self.final_layer_norm)
        *qkv, out, up, down = stored(Linear, attn.q_proj, attn.k_proj, attn.v_proj, attn.out_proj, self.fc1, self.fc2)
        return EncoderLayerWeights(norm, tuple(qkv), out, mlp_norm, up, down)

    def settings(self) -> tuple[int, float, float, Callable[[Tensor], Tensor]]:
        """What `EncoderWeights` has beside the layers."""
        return self.self_attn.heads, self.self_attn.scale, NORM_EPS, self.activation_fn


class Conv2d(Layer):
    """3 x 3 convolution with stride 2 and padding 1."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.weight = parameter(out_channels, in_channels, 3, 3)
        self.bias = parameter(out_channels, start=0.0)

    def operands(self) -> tuple[Tensor, Tensor]:
        return self.source(self.weight), self.source(self.bias)

    def construct(self, x: Tensor) -> Tensor:
        return ops.conv2d(x, *self.operands(), stride=2, padding=1)


class AudioOutput(Tensor):
    """Audio tokens `[N, D]`, a tensor in all it does, which also has the reference's names for itself."""

    hidden_states: Any = None
    attentions: Any = None

    @classmethod
    def of(cls, tensor: Any, hidden_states: Iterable[Tensor] | None = None) -> "AudioOutput":
        """The same tensor; where it came from, for a gradient, goes with it."""
        tensor.__class__ = cls
        if hidden_states is not None:
            tensor.hidden_states = tuple(hidden_states)
        return tensor

    @property
    def last_hidden_state(self) -> "AudioOutput":
        return self

    pooler_output = last_hidden_state


class AudioEncoder(Encoder):
    """Mirrors `Qwen3OmniMoeAudioEncoder`."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        channels, width = config.downsample_hidden_size, config.d_model
        self.conv2d1 = Conv2d(1, channels)
        self.conv2d2 = Conv2d(channels, channels)
        self.conv2d3 = Conv2d(channels, channels)
        bands = conv_length(conv_length(conv_length(config.num_mel_bins)))
        self.conv_out = Linear(channels * bands, width, bias=False)
        self.layers = nn.CellList([AudioEncoderLayer(config) for _ in range(config.encoder_layers)])
        self.ln_post = LayerNorm(width, NORM_EPS)
        self.proj1 = Linear(width, width)
        self.proj2 = Linear(width, config.output_dim)
        self.act = ACTIVATIONS[config.activation_function]
        chunk = audio_token_count(2 * config.n_window, config.n_window)  # positions begin anew in every chunk
        self.positions = sinusoids(min(chunk, config.max_source_positions), width)

    @property
    def input_layer(self) -> Cell:
        return self.conv2d1

    def construct(
        self,
        input_features: Any,
        feature_lens: Any = None,
        aftercnn_lens: Any = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> AudioOutput:
        """Encodes clips laid end to end: input_features `[mel, total frames]`, feature_lens `[clips]` -> `[N, out]`.

        The tensor also answers to the reference's `.last_hidden_state` and, with output_hidden_states, to `.hidden_states`:
        the layers' inputs and the last output. aftercnn_lens follow from feature_lens. Raises `InputError`.
        """
        check_arguments(output_attentions)
        features = host_array(input_features)
        lengths = [features.shape[-1]] if feature_lens is None else whole_numbers(feature_lens, "feature_lens").reshape(-1)
        chunks, rows, segments = self.pack(features, np.asarray(lengths))
        states = [] if output_hidden_states else None
        return AudioOutput.of(self.encode(chunks, rows, segments, states), states)

    def pack(self, features: Any, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray, tuple[tuple[int, int], ...]]:
        """Cuts clips into chunks, on the host.

        Returns chunks `[C, 1, mel, frames]` float32, the rows of the chunk grid that hold tokens int32 `[N]`, and the
        attention segments. As in the reference, a chunk is padded with zeros to the longest chunk of the call.
        Raises `InputError` for another number of mel bins, numbers that are not finite, empty clips and lengths that do not
        add up.
        """
        features = finite(features, "input_features", (self.config.num_mel_bins, "frames"))
        if lengths.sum() != features.shape[1] or (lengths < 1).any():
            raise InputError(
                f"got {features.shape[1]} mel frames for clips of {lengths.tolist()} frames; every clip needs "
                "at least one frame and the lengths must add up"
            )
        chunk = 2 * self.config.n_window
        sizes = [min(chunk, n - start) for n in lengths.tolist() for start in range(0, n, chunk)]
        chunks = np.zeros((len(sizes), 1, features.shape[0], max(sizes)), np.float32)
        start = 0
        for row, size in enumerate(sizes):
            chunks[row, 0, :, :size] = features[:, start : start + size]
            start += size
        tokens = [audio_token_count(size, self.config.n_window) for size in sizes]
        rows = np.concatenate([np.arange(n) + row * max(tokens) for row, n in enumerate(tokens)]).astype(np.int32)
        return chunks, rows, self._windows(lengths, max(tokens))

    def _windows(self, lengths, chunk_tokens):
        window = chunk_tokens * (self.config.n_window_infer // (2 * self.config.n_window))
        sizes = []
        for total in audio_token_count(lengths, self.config.n_window).tolist():
            sizes += [window] * (total // window) + ([total % window] if total % window else [])
        return segments_of(sizes)

    def encode(
        self, chunks: np.ndarray, rows: np.ndarray, segments: tuple[tuple[int, int], ...], states: list[Tensor] | None = None
    ) -> Tensor:
        """The device part, of what `pack` returns -> `[N, out]`; states: a list for the layers' inputs and last output."""
        x = self.downsample(chunks)  # [C, t, D]
        x = ops.gather_rows(x.reshape(-1, x.shape[-1]), Tensor(rows))  # [N, D]
        passed = self.states(x, segments, wanted=(len(self.layers),) if states is None else None)
        for x in passed:
            if states is not None:
                states.append(x)
        return self.project(x, x.shape[-1], self.ln_post, self.proj1, self.act, self.proj2)

    def downsample(self, chunks: np.ndarray) -> Tensor:
        """Convolutions, projection and positions, `conv_chunksize` chunks at a time: -> `[C, t, D]`."""
        limit = self.config.conv_chunksize
        parts = [self._downsample(Tensor(chunks[i : i + limit])) for i in range(0, chunks.shape[0], limit)]
        return parts[0] if len(parts) == 1 else ops.concat(parts, 0)

    def _downsample(self, chunks):
        x = chunks.astype(self.conv2d1.dtype)
        convolutions = self.conv2d1, self.conv2d2, self.conv2d3
        plain = all(type(convolution) is Conv2d and not has_hooks(convolution) for convolution in convolutions)
        if plain and not ops.recording():  # a gradient may have hooks of its own
            x = ops.downsample(x, [convolution.operands() for convolution in convolutions])
        else:
            for convolution in convolutions:
                x = ops.gelu(convolution(x))
        c, channels, bands, t = x.shape
        x = self.conv_out(ops.transpose(x, (0, 3, 1, 2)).reshape(c, t, channels * bands))
        positions = np.broadcast_to(self.positions[:t], (c, *self.positions[:t].shape))
        return x + Tensor(np.ascontiguousarray(positions)).astype(x.dtype)
