"""transformers' mel extractor, with the result that scripts for PyTorch want but without PyTorch. Imports transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ms_omni.input.files import of_transformers
from ms_omni.input.inputs import ModelInputs
from ms_omni.input.settings import AUDIO_KEYS, audio_settings


class WhisperFeatureExtractor(of_transformers("WhisperFeatureExtractor")):
    """As transformers' class of this name, whose files name it; `return_tensors` as in the processor."""

    def __call__(self, raw_speech: Any, *args: Any, return_tensors: Any = None, **kwargs: Any) -> Any:
        """Mel features of one or several sounds; by default cut or padded to `n_samples`, as in transformers.

        Returns:
            input_features float32 `[n, mel, frames]` and, with `return_attention_mask=True`, attention_mask `[n, frames]`.
        """
        features = super().__call__(raw_speech, *args, return_tensors="np", **kwargs)
        return ModelInputs(features).convert_to_tensors(return_tensors)


def mel_extractor(source: Any) -> Any:
    """The extractor for what the processor was given: an extractor (returned as it is), or a dict of settings.

    Raises:
        CheckpointError: settings that are missing, or not supported.
    """
    if not isinstance(source, Mapping):
        return source
    return WhisperFeatureExtractor(**audio_settings(source, "feature_extractor"))


def settings_of(extractor: Any) -> dict[str, Any]:
    """An extractor's arguments, as they are now."""
    return {key: getattr(extractor, key) for key in AUDIO_KEYS if getattr(extractor, key, None) is not None}
