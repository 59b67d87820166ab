"""Configuration of the whole model: thinker, and talker with vocoder where the checkpoint speaks."""

from collections.abc import Mapping
from typing import ClassVar

from ms_omni.errors import ConfigError

from .fields import Flag, TokenId
from .section import ConfigSection
from .talker import Qwen3OmniMoeCode2WavConfig, Qwen3OmniMoeTalkerConfig, unequal
from .thinker import Qwen3OmniMoeTextConfig, Qwen3OmniMoeThinkerConfig, beyond_vocabulary

SPEECH_SECTIONS = ("talker_config", "code2wav_config")
PROMPT_IDS = (
    "im_start_token_id",
    "im_end_token_id",
    "tts_pad_token_id",
    "tts_bos_token_id",
    "tts_eos_token_id",
    "system_token_id",
    "user_token_id",
    "assistant_token_id",
)


class Qwen3OmniMoeConfig(ConfigSection):
    """A full checkpoint. Without audio output (Thinking, Captioner) both speech sections are None."""

    model_type = "qwen3_omni_moe"
    sub_configs: ClassVar = {
        "thinker_config": Qwen3OmniMoeThinkerConfig,
        "talker_config": Qwen3OmniMoeTalkerConfig,
        "code2wav_config": Qwen3OmniMoeCode2WavConfig,
    }
    attribute_map: ClassVar = {
        name: f"thinker_config.text_config.{name}"
        for name in ("hidden_size", "num_attention_heads", "num_hidden_layers", "tie_word_embeddings", "vocab_size")
    }

    thinker_config: Qwen3OmniMoeThinkerConfig
    talker_config: Qwen3OmniMoeTalkerConfig | None = None
    code2wav_config: Qwen3OmniMoeCode2WavConfig | None = None
    enable_audio_output: Flag
    im_start_token_id: TokenId
    im_end_token_id: TokenId
    tts_pad_token_id: TokenId
    tts_bos_token_id: TokenId
    tts_eos_token_id: TokenId
    system_token_id: TokenId
    user_token_id: TokenId
    assistant_token_id: TokenId

    @classmethod
    def wants(cls, name: str, data: dict) -> bool:
        """Speech sections that are present but switched off are left out."""
        return name not in SPEECH_SECTIONS or data.get("enable_audio_output") is not False

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> Qwen3OmniMoeTextConfig:
        """The section of the thinker's text decoder."""
        return self.thinker_config.text_config

    def check(self) -> list[tuple[str, str]]:
        """The three parts fit together."""
        thinker, talker, vocoder = self.thinker_config, self.talker_config, self.code2wav_config
        text, merge = thinker.text_config, thinker.vision_config.spatial_merge_size
        ids = {key: getattr(self, key) for key in PROMPT_IDS}
        problems = beyond_vocabulary(ids, "thinker_config.text_config.vocab_size", text.vocab_size)
        if not self.enable_audio_output:
            return problems
        if talker is None or vocoder is None:
            absent = [name for name in SPEECH_SECTIONS if getattr(self, name) is None]
            return problems + [(name, "missing, but enable_audio_output is true") for name in absent]
        problems += unequal(
            (
                "talker_config.thinker_hidden_size",
                talker.thinker_hidden_size,
                "thinker_config.text_config.hidden_size",
                text.hidden_size,
            ),
            (
                "talker_config.spatial_merge_size",
                talker.spatial_merge_size,
                "thinker_config.vision_config.spatial_merge_size",
                merge,
            ),
            (
                "code2wav_config.num_quantizers",
                vocoder.num_quantizers,
                "talker_config.num_code_groups",
                talker.num_code_groups,
            ),
        )
        if talker.accept_hidden_layer > text.num_hidden_layers:
            expected = f"at most thinker_config.text_config.num_hidden_layers = {text.num_hidden_layers}"
            problems.append(("talker_config.accept_hidden_layer", f"got {talker.accept_hidden_layer}, expected {expected}"))
        return problems

    @classmethod
    def _recognise(cls, data: Mapping, source: str) -> None:
        """Raises ConfigError when `data` names another model, or the thinker alone."""
        kind = data.get("model_type")
        if kind == "qwen3_omni_moe_thinker" or ("thinker_config" not in data and "text_config" in data):
            raise ConfigError(
                f"{source} describes a thinker without talker (model_type {kind!r}): load it with "
                "Qwen3OmniMoeThinkerForConditionalGeneration.from_pretrained."
            )
        if kind not in (None, "", "qwen3_omni_moe"):
            raise ConfigError(f"{source} has model_type {kind!r}, expected 'qwen3_omni_moe' (Qwen3-Omni).")
