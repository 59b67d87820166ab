"""Configuration objects: pydantic models, equal whatever version of transformers wrote the JSON."""

from .files import CONFIG_FILE, read_config_json, read_json_object
from .named import load_named_config, named_config_files, named_configurations
from .omni import Qwen3OmniMoeConfig
from .section import ConfigSection
from .talker import (
    Qwen3OmniMoeCode2WavConfig,
    Qwen3OmniMoeTalkerCodePredictorConfig,
    Qwen3OmniMoeTalkerConfig,
    Qwen3OmniMoeTalkerTextConfig,
)
from .thinker import (
    Qwen3OmniMoeAudioEncoderConfig,
    Qwen3OmniMoeTextConfig,
    Qwen3OmniMoeThinkerConfig,
    Qwen3OmniMoeVisionEncoderConfig,
)

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
    "load_named_config",
    "named_config_files",
    "named_configurations",
    "read_config_json",
    "read_json_object",
]
