"""Configuration objects: pydantic models, equal whatever version of transformers wrote the JSON."""

from .interface import CONFIG_FILE, config_folder, read_config_json, read_json_object
from .omni import (
    Qwen3OmniMoeAudioEncoderConfig,
    Qwen3OmniMoeCode2WavConfig,
    Qwen3OmniMoeConfig,
    Qwen3OmniMoeTalkerCodePredictorConfig,
    Qwen3OmniMoeTalkerConfig,
    Qwen3OmniMoeTalkerTextConfig,
    Qwen3OmniMoeTextConfig,
    Qwen3OmniMoeThinkerConfig,
    Qwen3OmniMoeVisionEncoderConfig,
    load_named_config,
    named_config_files,
    named_configurations,
)
from .section import ConfigSection

__all__ = [
    "CONFIG_FILE",
    "ConfigSection",
    "Qwen3OmniMoeAudioEncoderConfig",
    "Qwen3OmniMoeCode2WavConfig",
    "Qwen3OmniMoeConfig",
    "Qwen3OmniMoeTalkerCodePredictorConfig",
    "Qwen3OmniMoeTalkerConfig",
    "Qwen3OmniMoeTalkerTextConfig",
    "Qwen3OmniMoeTextConfig",
    "Qwen3OmniMoeThinkerConfig",
    "Qwen3OmniMoeVisionEncoderConfig",
    "config_folder",
    "load_named_config",
    "named_config_files",
    "named_configurations",
    "read_config_json",
    "read_json_object",
]
