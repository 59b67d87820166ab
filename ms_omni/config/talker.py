"""Configuration of the talker (codec tokens out of thinker states), its code predictor, and the vocoder code2wav."""

import math
from collections.abc import Callable, Iterator
from typing import ClassVar

from . import fields
from .decoder import DecoderConfig, MoeDecoderConfig
from .section import ConfigSection
from .thinker import TEXT_NAMES, without_inherited_tie

CODEC_IDS = (
    "codec_pad_id",
    "codec_bos_id",
    "codec_eos_token_id",
    "codec_nothink_id",
    "codec_think_bos_id",
    "codec_think_eos_id",
)


class Qwen3OmniMoeTalkerTextConfig(MoeDecoderConfig):
    """The talker's decoder: routed experts plus one shared expert behind a sigmoid gate."""

    model_type = "qwen3_omni_moe_talker_text"
    section_path = ("talker_config", "text_config")
    attribute_map: ClassVar = {"num_local_experts": "num_experts"}  # 5.x saves it under the first name

    shared_expert_intermediate_size: fields.Width
    tie_word_embeddings: fields.OnlyFalse = False

    def is_sparse_layer(self, layer: int) -> bool:
        """True: the talker has experts in every layer; both versions of the reference ignore mlp_only_layers here."""
        return True


class Qwen3OmniMoeTalkerCodePredictorConfig(DecoderConfig):
    """The small decoder that adds codes 1 .. num_code_groups - 1 to each frame's code 0."""

    model_type = "qwen3_omni_moe_talker_code_predictor"
    section_path = ("talker_config", "code_predictor_config")

    head_dim: fields.Width = 128  # not what the other sizes make of it, in both versions of the reference
    vocab_size: fields.Vocabulary
    num_code_groups: fields.Groups
    tie_word_embeddings: fields.OnlyFalse = False

    def check(self) -> Iterator[tuple[str, str]]:
        """A sliding window narrower than a frame's sequence (num_code_groups + 1 positions) is not supported."""
        yield from super().check()
        window, kinds = getattr(self, "sliding_window", None), getattr(self, "layer_types", None)
        narrow = isinstance(window, int) and window <= self.num_code_groups
        if narrow and (not kinds or "sliding_attention" in kinds) and getattr(self, "use_sliding_window", True):
            yield self.got("sliding_window", "null (full attention)")


class Qwen3OmniMoeTalkerConfig(ConfigSection):
    """The part that speaks: decoder, code predictor, which thinker layer it listens to, ids and speakers."""

    section_path = ("talker_config",)
    attribute_map: ClassVar = {name: f"text_config.{name}" for name in TEXT_NAMES}
    links: ClassVar = {
        "code_predictor_config.hidden_size": "text_config.hidden_size",
        "code_predictor_config.num_code_groups": "num_code_groups",
    }

    text_config: Qwen3OmniMoeTalkerTextConfig
    code_predictor_config: Qwen3OmniMoeTalkerCodePredictorConfig
    accept_hidden_layer: fields.LayerNumber
    thinker_hidden_size: fields.Width
    num_code_groups: fields.Groups
    codec_pad_id: fields.TokenId
    codec_bos_id: fields.TokenId
    codec_eos_token_id: fields.TokenId
    codec_nothink_id: fields.TokenId
    codec_think_bos_id: fields.TokenId
    codec_think_eos_id: fields.TokenId
    spatial_merge_size: fields.Patch
    position_id_per_seconds: fields.Frames
    seconds_per_chunk: fields.Frames | None = None
    audio_token_id: fields.TokenId
    image_token_id: fields.TokenId
    video_token_id: fields.TokenId
    vision_start_token_id: fields.TokenId
    audio_start_token_id: fields.TokenId
    audio_end_token_id: fields.TokenId | None = None
    speaker_id: fields.NameTable
    tie_word_embeddings: fields.OnlyFalse = False

    @classmethod
    def normalise(cls, data: dict, report: Callable[[str, str], None]) -> dict:
        """As written, but for what 4.x inherits."""
        return without_inherited_tie(data)

    def check(self) -> Iterator[tuple[str, str]]:
        """The predictor continues the talker's width and code groups; ids are in the talker's vocabulary."""
        yield from super().check()
        yield from self.beyond(CODEC_IDS, "text_config.vocab_size")
        rows = self.text_config.vocab_size
        for name, code in self.speaker_id.items():
            if code >= rows:
                yield f"speaker_id.{name}", f"got {code}, expected an id below text_config.vocab_size = {rows}"


class Qwen3OmniMoeCode2WavConfig(DecoderConfig):
    """The vocoder: codebook embeddings, a transformer with a sliding window, upsampling convolutions."""

    section_path = ("code2wav_config",)

    codebook_size: fields.Vocabulary
    num_quantizers: fields.Groups
    sliding_window: fields.Frames
    decoder_dim: fields.Width
    upsampling_ratios: fields.Ratios
    upsample_rates: fields.Rates
    layer_scale_initial_scale: fields.NotNegative = 0.01

    @property
    def samples_per_frame(self) -> int:
        """Waveform samples (24 kHz) per codec frame."""
        return math.prod(self.upsampling_ratios) * math.prod(self.upsample_rates)

    def check(self) -> Iterator[tuple[str, str]]:
        """Each upsampling block halves the channels, so decoder_dim must allow it."""
        yield from super().check()
        halvings = len(self.upsample_rates)
        if self.decoder_dim % 2**halvings:
            reason = f"each of the {halvings} upsample_rates halves the channels"
            yield self.got("decoder_dim", f"a multiple of {2**halvings} ({reason})")
