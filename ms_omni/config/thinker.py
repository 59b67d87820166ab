"""Configuration of the thinker: text decoder, audio encoder, vision encoder, special token ids."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, ClassVar

from . import fields
from .decoder import MoeDecoderConfig
from .rope import RotarySection
from .section import ConfigSection

# Names of transformers' ACT2FN; modeling/layers.py has the functions.
ENCODER_ACTIVATIONS = ("gelu", "gelu_fast", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu")
EncoderActivation = Annotated[str, fields.choice(*ENCODER_ACTIVATIONS)]
TEXT_NAMES = ("hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size")
"""What scripts ask a part for and mean its text decoder."""
PLACEHOLDERS = ("audio_token_id", "image_token_id", "video_token_id")
CHUNK_FRAMES = 100


class Qwen3OmniMoeTextConfig(MoeDecoderConfig):
    """The thinker's text decoder."""

    model_type = "qwen3_omni_moe_text"
    section_path = ("thinker_config", "text_config")

    norm_topk_prob: fields.Flag = True
    tie_word_embeddings: fields.Flag = False


class Qwen3OmniMoeAudioEncoderConfig(ConfigSection):
    """The audio encoder: chunks of 2 * `n_window` mel frames, attention windows of `n_window_infer` mel frames."""

    model_type = "qwen3_omni_moe_audio_encoder"
    section_path = ("thinker_config", "audio_config")
    attribute_map: ClassVar = {
        "hidden_size": "d_model",
        "intermediate_size": "encoder_ffn_dim",
        "num_attention_heads": "encoder_attention_heads",
        "num_hidden_layers": "encoder_layers",
    }

    num_mel_bins: fields.Width
    d_model: Annotated[int, fields.integer(4, 2**14)]
    encoder_layers: fields.Layers
    encoder_attention_heads: fields.Heads
    encoder_ffn_dim: fields.Width
    downsample_hidden_size: fields.Width
    output_dim: fields.Width
    n_window: fields.Frames
    n_window_infer: fields.Frames
    conv_chunksize: fields.Frames = 500
    max_source_positions: fields.TableRows
    activation_function: EncoderActivation = "gelu"
    scale_embedding: fields.OnlyFalse = False

    def check(self) -> Iterator[tuple[str, str]]:
        """Heads divide, sine and cosine halves exist, and a window holds at least one chunk."""
        if self.d_model % self.encoder_attention_heads:
            yield self.got("d_model", f"a multiple of encoder_attention_heads = {self.encoder_attention_heads}")
        if self.d_model % 2:
            yield self.got("d_model", "an even number (sine and cosine halves)")
        if 2 * self.n_window != CHUNK_FRAMES:
            reason = f"the reference and the processor count 13 tokens for each chunk of {CHUNK_FRAMES} mel frames"
            yield self.got("n_window", f"{CHUNK_FRAMES // 2}: {reason}, whatever n_window says")
        if self.n_window_infer < 2 * self.n_window:
            yield self.got("n_window_infer", f"at least one chunk of 2 * n_window = {2 * self.n_window} frames")


class Qwen3OmniMoeVisionEncoderConfig(RotarySection):
    """Frames in groups of `temporal_patch_size`, patches of `patch_size`, `spatial_merge_size` squared to a token."""

    model_type = "qwen3_omni_moe_vision_encoder"
    section_path = ("thinker_config", "vision_config")
    attribute_map: ClassVar = {"num_attention_heads": "num_heads", "num_hidden_layers": "depth"}
    rope_types = ("axial", "default")  # how transformers 5.x names the rotary base of (row, column) positions

    depth: fields.Layers
    hidden_size: fields.Width
    num_heads: fields.Heads
    intermediate_size: fields.Width
    patch_size: fields.Patch
    temporal_patch_size: fields.Patch
    spatial_merge_size: fields.Patch
    in_channels: fields.Patch = 3
    out_hidden_size: fields.Width
    deepstack_visual_indexes: fields.LayerNumbers
    num_position_embeddings: fields.TableRows = 2304
    hidden_act: EncoderActivation
    rope_theta: fields.Positive = 10000.0

    def check(self) -> Iterator[tuple[str, str]]:
        """Heads divide into rotary quarters, taps exist, position table is square."""
        if self.hidden_size % (4 * self.num_heads):
            expected = f"a multiple of 4 * num_heads = {4 * self.num_heads}"
            yield self.got("hidden_size", f"{expected} (rows and columns each rotate half of a head)")
        taps = self.deepstack_visual_indexes
        if taps != sorted(set(taps)) or any(tap >= self.depth for tap in taps):
            yield self.got("deepstack_visual_indexes", f"rising numbers below depth = {self.depth}")
        if math.isqrt(self.num_position_embeddings) ** 2 != self.num_position_embeddings:
            yield self.got("num_position_embeddings", "a square (rows times columns)")


class Qwen3OmniMoeThinkerConfig(ConfigSection):
    """The part that understands: three sub-configurations and the ids of the placeholder tokens."""

    model_type = "qwen3_omni_moe_thinker"
    section_path = ("thinker_config",)
    attribute_map: ClassVar = {name: f"text_config.{name}" for name in (*TEXT_NAMES, "tie_word_embeddings")}
    links: ClassVar = {
        "audio_config.output_dim": "text_config.hidden_size",
        "vision_config.out_hidden_size": "text_config.hidden_size",
    }

    text_config: Qwen3OmniMoeTextConfig
    audio_config: Qwen3OmniMoeAudioEncoderConfig
    vision_config: Qwen3OmniMoeVisionEncoderConfig
    audio_token_id: fields.TokenId
    image_token_id: fields.TokenId
    video_token_id: fields.TokenId
    vision_start_token_id: fields.TokenId
    vision_end_token_id: fields.TokenId | None = None
    audio_start_token_id: fields.TokenId
    audio_end_token_id: fields.TokenId | None = None
    position_id_per_seconds: fields.Frames
    seconds_per_chunk: fields.Frames | None = None
    user_token_id: fields.TokenId | None = None

    @classmethod
    def normalise(cls, data: dict, report: Callable[[str, str], None]) -> dict:
        """Bring the two places of tie_word_embeddings together in text_config.

        4.57 reads the text section's; 5.x reads the thinker's own key and always writes it, so it wins when present.
        """
        data = without_inherited_tie(data)
        text, tied = data.get("text_config"), data.get("tie_word_embeddings")
        if tied is not None and (text is None or isinstance(text, Mapping)):
            data["text_config"] = {**(text or {}), "tie_word_embeddings": tied}
        return data

    def _values(self) -> dict:
        return {**super()._values(), "tie_word_embeddings": self.text_config.tie_word_embeddings}

    def check(self) -> Iterator[tuple[str, str]]:
        """Encoders end in the text decoder's width; placeholder ids are in its vocabulary."""
        yield from super().check()
        yield from self.beyond([*PLACEHOLDERS, "vision_start_token_id", "audio_start_token_id"], "text_config.vocab_size")
        if len({getattr(self, key) for key in PLACEHOLDERS}) < 3:
            yield ", ".join(PLACEHOLDERS), "expected three different ids"


def without_inherited_tie(data: dict) -> dict:
    """`data` without the tie_word_embeddings, always true, that `to_dict` of 4.x finds in its base class and nobody reads."""
    return {key: data[key] for key in data if key != "tie_word_embeddings"} if "tie_encoder_decoder" in data else data
