"""Configurations of the thinker (text decoder, audio and vision encoder), the talker with its code predictor, the vocoder
code2wav, and the whole model; and those that come with the package.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, ClassVar

from ms_omni.errors import ConfigError

from . import fields
from .decoder import DecoderConfig, MoeDecoderConfig, RotarySection
from .interface import PUBLISHED, config_folder, read_json_object
from .section import ConfigSection

# Names of transformers' ACT2FN; modeling/layers.py has the functions.
ENCODER_ACTIVATIONS = ("gelu", "gelu_fast", "gelu_new", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu")
EncoderActivation = Annotated[str, fields.choice(*ENCODER_ACTIVATIONS)]
TEXT_NAMES = ("hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size")
"""What scripts ask a part for and mean its text decoder."""
PLACEHOLDERS = ("audio_token_id", "image_token_id", "video_token_id")
CHUNK_FRAMES = 100
CODEC_IDS = (
    "codec_pad_id",
    "codec_bos_id",
    "codec_eos_token_id",
    "codec_nothink_id",
    "codec_think_bos_id",
    "codec_think_eos_id",
)
SPEECH_SECTIONS = ("talker_config", "code2wav_config")
PROMPT_IDS = (
    *("im_start_token_id", "im_end_token_id", "tts_pad_token_id", "tts_bos_token_id", "tts_eos_token_id"),
    *("system_token_id", "user_token_id", "assistant_token_id"),
)
_ALIASES = {"published": PUBLISHED}


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
            yield self.mismatch("d_model", f"a multiple of encoder_attention_heads = {self.encoder_attention_heads}")
        if self.d_model % 2:
            yield self.mismatch("d_model", "an even number (sine and cosine halves)")
        if 2 * self.n_window != CHUNK_FRAMES:
            reason = f"the reference and the processor count 13 tokens for each chunk of {CHUNK_FRAMES} mel frames"
            yield self.mismatch("n_window", f"{CHUNK_FRAMES // 2}: {reason}, whatever n_window says")
        if self.n_window_infer < 2 * self.n_window:
            yield self.mismatch("n_window_infer", f"at least one chunk of 2 * n_window = {2 * self.n_window} frames")


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
            yield self.mismatch("hidden_size", f"{expected} (rows and columns each rotate half of a head)")
        taps = self.deepstack_visual_indexes
        if taps != sorted(set(taps)) or any(tap >= self.depth for tap in taps):
            yield self.mismatch("deepstack_visual_indexes", f"rising numbers below depth = {self.depth}")
        if math.isqrt(self.num_position_embeddings) ** 2 != self.num_position_embeddings:
            yield self.mismatch("num_position_embeddings", "a square (rows times columns)")


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
        yield from self.ids_outside(
            [*PLACEHOLDERS, "vision_start_token_id", "audio_start_token_id"], "text_config.vocab_size"
        )
        if len({getattr(self, key) for key in PLACEHOLDERS}) < 3:
            yield ", ".join(PLACEHOLDERS), "expected three different ids"


def without_inherited_tie(data: dict) -> dict:
    """`data` without the tie_word_embeddings, always true, that `to_dict` of 4.x finds in its base class, and that is never read."""
    return {key: data[key] for key in data if key != "tie_word_embeddings"} if "tie_encoder_decoder" in data else data


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

    head_dim: fields.Width = 128  # as in both versions of the reference, whatever the other sizes are
    vocab_size: fields.Vocabulary
    num_code_groups: fields.Groups
    tie_word_embeddings: fields.OnlyFalse = False

    def check(self) -> Iterator[tuple[str, str]]:
        """A sliding window narrower than a frame's sequence (num_code_groups + 1 positions) is not supported."""
        yield from super().check()
        window, kinds = getattr(self, "sliding_window", None), getattr(self, "layer_types", None)
        narrow = isinstance(window, int) and window <= self.num_code_groups
        if narrow and (not kinds or "sliding_attention" in kinds) and getattr(self, "use_sliding_window", True):
            yield self.mismatch("sliding_window", "null (full attention)")


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
        yield from self.ids_outside(CODEC_IDS, "text_config.vocab_size")
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
            yield self.mismatch("decoder_dim", f"a multiple of {2**halvings} ({reason})")


class Qwen3OmniMoeConfig(ConfigSection):
    """A full checkpoint. Without audio output (Thinking, Captioner) both speech sections are None."""

    model_type = "qwen3_omni_moe"
    attribute_map: ClassVar = {name: f"thinker_config.{name}" for name in Qwen3OmniMoeThinkerConfig.attribute_map}
    links: ClassVar = {
        "talker_config.thinker_hidden_size": "thinker_config.text_config.hidden_size",
        "talker_config.spatial_merge_size": "thinker_config.vision_config.spatial_merge_size",
        "code2wav_config.num_quantizers": "talker_config.num_code_groups",
    }

    thinker_config: Qwen3OmniMoeThinkerConfig
    talker_config: Qwen3OmniMoeTalkerConfig | None = None
    code2wav_config: Qwen3OmniMoeCode2WavConfig | None = None
    enable_audio_output: fields.Flag
    im_start_token_id: fields.TokenId
    im_end_token_id: fields.TokenId
    tts_pad_token_id: fields.TokenId
    tts_bos_token_id: fields.TokenId
    tts_eos_token_id: fields.TokenId
    system_token_id: fields.TokenId
    user_token_id: fields.TokenId
    assistant_token_id: fields.TokenId

    @classmethod
    def uses(cls, name: str, data: dict) -> bool:
        """Speech sections that are present but switched off are left out."""
        return name not in SPEECH_SECTIONS or data.get("enable_audio_output") is not False

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> Qwen3OmniMoeTextConfig:
        """The section of the thinker's text decoder."""
        return self.thinker_config.text_config

    def check(self) -> Iterator[tuple[str, str]]:
        """The three parts fit together."""
        yield from self.ids_outside(PROMPT_IDS, "thinker_config.text_config.vocab_size")
        talker, layers = self.talker_config, self.thinker_config.text_config.num_hidden_layers
        if talker is None or not self.enable_audio_output:
            return
        yield from super().check()
        if talker.accept_hidden_layer > layers:
            expected = f"at most thinker_config.text_config.num_hidden_layers = {layers}"
            yield self.mismatch("talker_config.accept_hidden_layer", expected)

    @classmethod
    def recognise(cls, data: Mapping, source: str) -> None:
        """Raises ConfigError when `data` names another model, or the thinker alone."""
        kind = data.get("model_type")
        if kind == "qwen3_omni_moe_thinker" or ("thinker_config" not in data and "text_config" in data):
            raise ConfigError(
                f"{source} describes a thinker without talker (model_type {kind!r}): load it with "
                "Qwen3OmniMoeThinkerForConditionalGeneration.from_pretrained."
            )
        if kind not in (None, "", "qwen3_omni_moe"):
            raise ConfigError(f"{source} has model_type {kind!r}, expected 'qwen3_omni_moe' (Qwen3-Omni).")


def named_config_files() -> dict[str, Path]:
    """{name: file} of every configuration of a model that comes with the package."""
    return {path.stem: path for path in sorted(config_folder().glob("*.json")) if "thinker_config" in read_json_object(path)}


def named_configurations() -> tuple[str, ...]:
    """The names that `load_named_config` takes."""
    return (*named_config_files(), *_ALIASES)


def load_named_config(name: str) -> Qwen3OmniMoeConfig:
    """The configuration `name`, such as "tiny"; "published" is Instruct. Raises ConfigError that lists the names."""
    files = named_config_files()
    path = files.get(_ALIASES.get(name, name))
    if path is None:
        raise ConfigError(f"there is no configuration named {name!r}; expected one of {', '.join((*files, *_ALIASES))}.")
    return Qwen3OmniMoeConfig.from_dict(read_json_object(path), str(path), strict=True)
