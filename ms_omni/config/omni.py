"""Configuration of the whole model: thinker, and talker with vocoder where the checkpoint speaks."""

import dataclasses
from pathlib import Path

from ms_omni.errors import ConfigError

from .fields import flag, integer, optional_section, section
from .files import read_config_json
from .section import ConfigSection
from .talker import Qwen3OmniMoeCode2WavConfig, Qwen3OmniMoeTalkerConfig
from .thinker import Qwen3OmniMoeThinkerConfig

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Qwen3OmniMoeConfig(ConfigSection):
    """A full checkpoint. Without audio output (Thinking, Captioner) both speech sections are None."""

    thinker_config: Qwen3OmniMoeThinkerConfig = section(Qwen3OmniMoeThinkerConfig)
    talker_config: Qwen3OmniMoeTalkerConfig | None = optional_section(Qwen3OmniMoeTalkerConfig)
    code2wav_config: Qwen3OmniMoeCode2WavConfig | None = optional_section(Qwen3OmniMoeCode2WavConfig)
    enable_audio_output: bool = flag()
    im_start_token_id: int = integer(low=0)
    im_end_token_id: int = integer(low=0)
    tts_pad_token_id: int = integer(low=0)
    tts_bos_token_id: int = integer(low=0)
    tts_eos_token_id: int = integer(low=0)
    system_token_id: int = integer(low=0)
    user_token_id: int = integer(low=0)
    assistant_token_id: int = integer(low=0)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "Qwen3OmniMoeConfig":
        """Read `folder`/config.json. Raises ConfigError for a wrong folder, broken JSON, missing or invalid keys."""
        data, path = read_config_json(folder)
        return cls.from_dict(data, str(path))

    @classmethod
    def from_dict(cls, data, source: str = "the configuration") -> "Qwen3OmniMoeConfig":
        """As ConfigSection.from_dict; other models and a thinker saved alone are told apart first."""
        config = data.to_dict() if hasattr(data, "to_dict") and not isinstance(data, dict) else data
        check_model_type(config, source)
        return super().from_dict(config, source)

    @classmethod
    def wants(cls, name: str, data: dict) -> bool:
        """Speech sections that are present but switched off are left out."""
        return name not in SPEECH_SECTIONS or data.get("enable_audio_output") is True

    def check(self) -> list[tuple[str, str]]:
        """The three parts fit together."""
        if self.talker_config is None or self.code2wav_config is None:
            return [
                (name, "missing, but enable_audio_output is true")
                for name in SPEECH_SECTIONS
                if getattr(self, name) is None and self.enable_audio_output
            ]
        thinker, talker, vocoder = self.thinker_config, self.talker_config, self.code2wav_config
        text, expected = thinker.text_config, []
        expected.append(
            (
                "talker_config.thinker_hidden_size",
                talker.thinker_hidden_size,
                "thinker_config.text_config.hidden_size",
                text.hidden_size,
            )
        )
        expected.append(
            (
                "talker_config.spatial_merge_size",
                talker.spatial_merge_size,
                "thinker_config.vision_config.spatial_merge_size",
                thinker.vision_config.spatial_merge_size,
            )
        )
        expected.append(
            (
                "code2wav_config.num_quantizers",
                vocoder.num_quantizers,
                "talker_config.num_code_groups",
                talker.num_code_groups,
            )
        )
        problems = [(key, f"got {got}, expected {source} = {value}") for key, got, source, value in expected if got != value]
        if talker.accept_hidden_layer > text.num_hidden_layers:
            problems.append(
                (
                    "talker_config.accept_hidden_layer",
                    f"got {talker.accept_hidden_layer}, expected at most "
                    f"thinker_config.text_config.num_hidden_layers = {text.num_hidden_layers}",
                )
            )
        for key in PROMPT_IDS:
            if getattr(self, key) >= text.vocab_size:
                problems.append(
                    (
                        key,
                        f"got {getattr(self, key)}, expected an id below "
                        f"thinker_config.text_config.vocab_size = {text.vocab_size}",
                    )
                )
        return problems


def check_model_type(data, source: str) -> None:
    """Raises ConfigError when `data` names another model, or the thinker alone."""
    kind = data.get("model_type") if isinstance(data, dict) else None
    if kind == "qwen3_omni_moe_thinker" or (
        isinstance(data, dict) and "thinker_config" not in data and "text_config" in data
    ):
        raise ConfigError(
            f"{source} describes a thinker without talker (model_type {kind!r}): load it with "
            "Qwen3OmniMoeThinkerForConditionalGeneration.from_pretrained."
        )
    if kind not in (None, "", "qwen3_omni_moe"):
        raise ConfigError(f"{source} has model_type {kind!r}, expected 'qwen3_omni_moe' (Qwen3-Omni).")
