"""Configuration of the whole model: thinker, and talker with vocoder where the checkpoint speaks."""

from collections.abc import Iterator, Mapping
from typing import ClassVar

from ms_omni.errors import ConfigError

from . import fields
from .section import ConfigSection
from .talker import Qwen3OmniMoeCode2WavConfig, Qwen3OmniMoeTalkerConfig
from .thinker import Qwen3OmniMoeTextConfig, Qwen3OmniMoeThinkerConfig

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
    def wants(cls, name: str, data: dict) -> bool:
        """Speech sections that are present but switched off are left out."""
        return name not in SPEECH_SECTIONS or data.get("enable_audio_output") is not False

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> Qwen3OmniMoeTextConfig:
        """The section of the thinker's text decoder."""
        return self.thinker_config.text_config

    def check(self) -> Iterator[tuple[str, str]]:
        """The three parts fit together."""
        yield from self.beyond(PROMPT_IDS, "thinker_config.text_config.vocab_size")
        talker, layers = self.talker_config, self.thinker_config.text_config.num_hidden_layers
        if talker is None or not self.enable_audio_output:
            return
        yield from super().check()
        if talker.accept_hidden_layer > layers:
            expected = f"at most thinker_config.text_config.num_hidden_layers = {layers}"
            yield self.got("talker_config.accept_hidden_layer", expected)

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
