"""Qwen3-Omni on MindSpore: text, images, audio and video in; text and 24 kHz speech out."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "Qwen3OmniMoeForConditionalGeneration": "model",
    "Qwen3OmniMoeThinkerForConditionalGeneration": "model",
    "Qwen3OmniMoeTalkerForConditionalGeneration": "model",
    "Qwen3OmniMoeCode2Wav": "model",
    "Qwen3OmniMoeAudioEncoder": "pretrained",
    "Qwen3OmniMoeCode2WavDecoderBlock": "pretrained",
    "Qwen3OmniMoeCode2WavTransformerModel": "pretrained",
    "Qwen3OmniMoePreTrainedModel": "pretrained",
    "Qwen3OmniMoePreTrainedModelForConditionalGeneration": "pretrained",
    "Qwen3OmniMoeTalkerCodePredictorModel": "pretrained",
    "Qwen3OmniMoeTalkerCodePredictorModelForConditionalGeneration": "pretrained",
    "Qwen3OmniMoeTalkerModel": "pretrained",
    "Qwen3OmniMoeThinkerModel": "pretrained",
    "Qwen3OmniMoeThinkerTextModel": "pretrained",
    "Qwen3OmniMoeThinkerTextPreTrainedModel": "pretrained",
    "Qwen3OmniMoeVisionEncoder": "pretrained",
    "Qwen3OmniMoeProcessor": "input.processor",
    "process_mm_info": "media",
    "process_audio_info": "media",
    "process_vision_info": "media",
    "extract_vision_info": "media",
    "fetch_image": "media",
    "fetch_video": "media",
    "smart_resize": "media",
    "parse_tool_calls": "input.interface",
    "LogitsProcessor": "generation.logits",
    "LogitsProcessorList": "generation.logits",
    "StoppingCriteria": "generation.logits",
    "StoppingCriteriaList": "generation.logits",
    "Qwen3OmniMoeAudioEncoderConfig": "config",
    "Qwen3OmniMoeCode2WavConfig": "config",
    "Qwen3OmniMoeConfig": "config",
    "Qwen3OmniMoeTalkerCodePredictorConfig": "config",
    "Qwen3OmniMoeTalkerConfig": "config",
    "Qwen3OmniMoeTalkerTextConfig": "config",
    "Qwen3OmniMoeTextConfig": "config",
    "Qwen3OmniMoeThinkerConfig": "config",
    "Qwen3OmniMoeVisionEncoderConfig": "config",
}

_OTHER_NAMES = {  # what scripts ask transformers for when they leave the choice of the class to it
    "AutoConfig": "Qwen3OmniMoeConfig",
    "AutoProcessor": "Qwen3OmniMoeProcessor",
    "AutoModel": "Qwen3OmniMoeForConditionalGeneration",
    "AutoModelForMultimodalLM": "Qwen3OmniMoeForConditionalGeneration",
    "AutoModelForTextToWaveform": "Qwen3OmniMoeForConditionalGeneration",
}

__all__ = ["__version__", *sorted([*_EXPORTS, *_OTHER_NAMES])]


def __getattr__(name: str) -> Any:
    # Imported on first use: `import ms_omni` costs nothing, and MindSpore is only needed by the model classes.
    name = _OTHER_NAMES.get(name, name)
    if name not in _EXPORTS:
        raise AttributeError(f"module 'ms_omni' has no attribute {name!r}")
    return getattr(import_module(f".{_EXPORTS[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
