"""Configuration of the thinker: text decoder, audio encoder, vision encoder, special token ids."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

from .decoder import MoeDecoderConfig
from .fields import choice, flag, integer, integers, number, section
from .files import read_config_json
from .rope import normalise_rope
from .section import ConfigSection

ENCODER_ACTIVATIONS = ("gelu", "gelu_pytorch_tanh")
CHUNK_FRAMES = 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen3OmniMoeTextConfig(MoeDecoderConfig):
    """The thinker's text decoder."""

    tie_word_embeddings: bool = flag(default=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen3OmniMoeAudioEncoderConfig(ConfigSection):
    """The audio encoder: chunks of 2 * `n_window` mel frames, attention windows of `n_window_infer` mel frames."""

    num_mel_bins: int = integer()
    d_model: int = integer(low=4)
    encoder_layers: int = integer()
    encoder_attention_heads: int = integer()
    encoder_ffn_dim: int = integer()
    downsample_hidden_size: int = integer()
    output_dim: int = integer()
    n_window: int = integer()
    n_window_infer: int = integer()
    conv_chunksize: int = integer()
    max_source_positions: int = integer()
    activation_function: str = choice(*ENCODER_ACTIVATIONS)
    scale_embedding: bool = choice(False, default=False)

    def check(self) -> list[tuple[str, str]]:
        """Heads divide, sine and cosine halves exist, and a window holds at least one chunk."""
        problems = []
        if self.d_model % self.encoder_attention_heads:
            problems.append(
                (
                    "d_model",
                    f"got {self.d_model}, expected a multiple of encoder_attention_heads = {self.encoder_attention_heads}",
                )
            )
        if self.d_model % 2:
            problems.append(("d_model", f"got {self.d_model}, expected an even number (sine and cosine halves)"))
        if 2 * self.n_window != CHUNK_FRAMES:
            problems.append(
                (
                    "n_window",
                    f"got {self.n_window}, expected {CHUNK_FRAMES // 2}: the reference and the processor count 13 tokens "
                    f"for each chunk of {CHUNK_FRAMES} mel frames, whatever n_window says",
                )
            )
        if self.n_window_infer < 2 * self.n_window:
            problems.append(
                (
                    "n_window_infer",
                    f"got {self.n_window_infer}, expected at least one chunk of 2 * n_window = {2 * self.n_window} frames",
                )
            )
        return problems


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen3OmniMoeVisionEncoderConfig(ConfigSection):
    """Frames in groups of `temporal_patch_size`, patches of `patch_size`, `spatial_merge_size` squared to a token."""

    depth: int = integer()
    hidden_size: int = integer()
    num_heads: int = integer()
    intermediate_size: int = integer()
    patch_size: int = integer()
    temporal_patch_size: int = integer()
    spatial_merge_size: int = integer()
    in_channels: int = integer()
    out_hidden_size: int = integer()
    deepstack_visual_indexes: tuple[int, ...] = integers()
    num_position_embeddings: int = integer()
    hidden_act: str = choice(*ENCODER_ACTIVATIONS)
    rope_theta: float = number(default=10000.0)

    @classmethod
    def normalise(cls, data: dict, report: Callable[[str, str], None]) -> dict:
        """transformers 5.x writes the rotary base of the (row, column) positions as type "axial"."""
        return normalise_rope(data, report, types=("axial", "default"))

    def check(self) -> list[tuple[str, str]]:
        """Heads divide into rotary quarters, taps exist, position table is square."""
        problems = []
        if self.hidden_size % (4 * self.num_heads):
            problems.append(
                (
                    "hidden_size",
                    f"got {self.hidden_size}, expected a multiple of 4 * num_heads = "
                    f"{4 * self.num_heads} (rows and columns each rotate half of a head)",
                )
            )
        beyond = [index for index in self.deepstack_visual_indexes if index >= self.depth]
        if beyond or list(self.deepstack_visual_indexes) != sorted(set(self.deepstack_visual_indexes)):
            problems.append(
                (
                    "deepstack_visual_indexes",
                    f"got {list(self.deepstack_visual_indexes)}, expected rising numbers below depth = {self.depth}",
                )
            )
        if math.isqrt(self.num_position_embeddings) ** 2 != self.num_position_embeddings:
            problems.append(
                (
                    "num_position_embeddings",
                    f"got {self.num_position_embeddings}, expected a square (rows times columns)",
                )
            )
        return problems


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen3OmniMoeThinkerConfig(ConfigSection):
    """The part that understands: three sub-configurations and the ids of the placeholder tokens."""

    text_config: Qwen3OmniMoeTextConfig = section(Qwen3OmniMoeTextConfig)
    audio_config: Qwen3OmniMoeAudioEncoderConfig = section(Qwen3OmniMoeAudioEncoderConfig)
    vision_config: Qwen3OmniMoeVisionEncoderConfig = section(Qwen3OmniMoeVisionEncoderConfig)
    audio_token_id: int = integer(low=0)
    image_token_id: int = integer(low=0)
    video_token_id: int = integer(low=0)
    vision_start_token_id: int = integer(low=0)
    vision_end_token_id: int | None = integer(low=0, default=None)
    audio_start_token_id: int = integer(low=0)
    audio_end_token_id: int | None = integer(low=0, default=None)
    position_id_per_seconds: int = integer()
    seconds_per_chunk: int | None = integer(default=None)
    user_token_id: int | None = integer(low=0, default=None)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Qwen3OmniMoeThinkerConfig":
        """Read `folder`/config.json of a thinker saved alone or of a full checkpoint (its thinker_config)."""
        data, path = read_config_json(folder)
        if "thinker_config" in data:
            return cls.from_dict(data["thinker_config"], f"{path} (thinker_config)")
        return cls.from_dict(data, str(path))

    @classmethod
    def normalise(cls, data: dict, report: Callable[[str, str], None]) -> dict:
        """Bring the two places of tie_word_embeddings together in text_config.

        4.57 reads the text section's; 5.x reads the thinker's own key and always writes it, so it wins when present.
        """
        text, tied = data.get("text_config"), data.get("tie_word_embeddings")
        if tied is not None and isinstance(text, dict):
            data["text_config"] = {**text, "tie_word_embeddings": tied}
        return data

    def check(self) -> list[tuple[str, str]]:
        """Encoders end in the text decoder's width; placeholder ids are in its vocabulary."""
        width, vocabulary, problems = self.text_config.hidden_size, self.text_config.vocab_size, []
        for key, value in (
            ("audio_config.output_dim", self.audio_config.output_dim),
            ("vision_config.out_hidden_size", self.vision_config.out_hidden_size),
        ):
            if value != width:
                problems.append((key, f"got {value}, expected text_config.hidden_size = {width}"))
        for key in (
            "audio_token_id",
            "image_token_id",
            "video_token_id",
            "vision_start_token_id",
            "audio_start_token_id",
        ):
            if getattr(self, key) >= vocabulary:
                problems.append(
                    (key, f"got {getattr(self, key)}, expected an id below text_config.vocab_size = {vocabulary}")
                )
        if len({self.audio_token_id, self.image_token_id, self.video_token_id}) < 3:
            problems.append(("audio_token_id, image_token_id, video_token_id", "expected three different ids"))
        return problems

    def published(self) -> dict:
        """Tied embeddings are written in both places, for either version of transformers."""
        return {**super().published(), "tie_word_embeddings": self.text_config.tie_word_embeddings}
