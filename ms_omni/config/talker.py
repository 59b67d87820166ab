"""Configuration of the talker (codec tokens out of thinker states), its code predictor, and the vocoder code2wav."""

import dataclasses
import math
from collections.abc import Callable

from .decoder import DecoderConfig, MoeDecoderConfig
from .fields import choice, integer, integers, name_table, number, section, shown
from .section import ConfigSection

CODEC_IDS = (
    "codec_pad_id",
    "codec_bos_id",
    "codec_eos_token_id",
    "codec_nothink_id",
    "codec_think_bos_id",
    "codec_think_eos_id",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen3OmniMoeTalkerTextConfig(MoeDecoderConfig):
    """The talker's decoder: routed experts plus one shared expert behind a sigmoid gate."""

    num_experts: int = integer(aliases=("num_local_experts",))  # 5.x saves it under the second name
    shared_expert_intermediate_size: int = integer()
    tie_word_embeddings: bool = choice(False, default=False)

    def is_sparse_layer(self, layer: int) -> bool:
        """True: the talker has experts in every layer; both versions of the reference ignore mlp_only_layers here."""
        return True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen3OmniMoeTalkerCodePredictorConfig(DecoderConfig):
    """The small decoder that adds codes 1 .. num_code_groups - 1 to each frame's code 0."""

    vocab_size: int = integer()
    num_code_groups: int = integer(low=2)
    tie_word_embeddings: bool = choice(False, default=False)

    @classmethod
    def normalise(cls, data: dict, report: Callable[[str, str], None]) -> dict:
        """A sliding window narrower than a frame's sequence (num_code_groups + 1 positions) is not supported."""
        data = super().normalise(data, report)
        window, kinds = data.get("sliding_window"), data.get("layer_types") or []
        narrow = isinstance(window, int) and window <= data.get("num_code_groups", 0)
        if narrow and (not kinds or "sliding_attention" in kinds) and data.get("use_sliding_window", True):
            report("sliding_window", f"got {shown(window)}, expected null (full attention)")
        return data


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen3OmniMoeTalkerConfig(ConfigSection):
    """The part that speaks: decoder, code predictor, which thinker layer it listens to, ids and speakers."""

    text_config: Qwen3OmniMoeTalkerTextConfig = section(Qwen3OmniMoeTalkerTextConfig)
    code_predictor_config: Qwen3OmniMoeTalkerCodePredictorConfig = section(Qwen3OmniMoeTalkerCodePredictorConfig)
    accept_hidden_layer: int = integer(low=0)
    thinker_hidden_size: int = integer()
    num_code_groups: int = integer(low=2)
    codec_pad_id: int = integer(low=0)
    codec_bos_id: int = integer(low=0)
    codec_eos_token_id: int = integer(low=0)
    codec_nothink_id: int = integer(low=0)
    codec_think_bos_id: int = integer(low=0)
    codec_think_eos_id: int = integer(low=0)
    spatial_merge_size: int = integer()
    position_id_per_seconds: int = integer()
    seconds_per_chunk: int | None = integer(default=None)
    audio_token_id: int = integer(low=0)
    image_token_id: int = integer(low=0)
    video_token_id: int = integer(low=0)
    vision_start_token_id: int = integer(low=0)
    audio_start_token_id: int = integer(low=0)
    audio_end_token_id: int | None = integer(low=0, default=None)
    speaker_id: dict = dataclasses.field(hash=False, metadata=name_table().metadata)
    tie_word_embeddings: bool = choice(False, default=False)

    def check(self) -> list[tuple[str, str]]:
        """The predictor continues the talker's width and code groups; ids are in the talker's vocabulary."""
        problems, text, predictor = [], self.text_config, self.code_predictor_config
        if predictor.hidden_size != text.hidden_size:
            problems.append(
                (
                    "code_predictor_config.hidden_size",
                    f"got {predictor.hidden_size}, expected text_config.hidden_size = {text.hidden_size}",
                )
            )
        if predictor.num_code_groups != self.num_code_groups:
            problems.append(
                (
                    "code_predictor_config.num_code_groups",
                    f"got {predictor.num_code_groups}, expected num_code_groups = {self.num_code_groups}",
                )
            )
        ids = {key: getattr(self, key) for key in CODEC_IDS}
        ids.update({f"speaker_id.{name}": value for name, value in self.speaker_id.items()})
        for key, value in ids.items():
            if value >= text.vocab_size:
                problems.append((key, f"got {value}, expected an id below text_config.vocab_size = {text.vocab_size}"))
        return problems


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen3OmniMoeCode2WavConfig(DecoderConfig):
    """The vocoder: codebook embeddings, a transformer with a sliding window, upsampling convolutions."""

    codebook_size: int = integer()
    num_quantizers: int = integer()
    sliding_window: int = integer()
    decoder_dim: int = integer()
    upsampling_ratios: tuple[int, ...] = integers(low=1)
    upsample_rates: tuple[int, ...] = integers(low=1, at_least=1)
    layer_scale_initial_scale: float = number(default=0.01)

    @property
    def samples_per_frame(self) -> int:
        """Waveform samples (24 kHz) per codec frame."""
        return math.prod(self.upsampling_ratios) * math.prod(self.upsample_rates)

    def check(self) -> list[tuple[str, str]]:
        """Each upsampling block halves the channels, so decoder_dim must allow it."""
        problems, halvings = super().check(), len(self.upsample_rates)
        if self.decoder_dim % 2**halvings:
            problems.append(
                (
                    "decoder_dim",
                    f"got {self.decoder_dim}, expected a multiple of {2**halvings} (each of the "
                    f"{halvings} upsample_rates halves the channels)",
                )
            )
        return problems
