"""Sound to log-mel features, by transformers' extractor, which this module imports, but without PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ms_omni.errors import InputError
from ms_omni.input.audio import check_clip
from ms_omni.input.files import AUDIO_KEYS, audio_settings, of_transformers
from ms_omni.input.interface import ModelInputs

_FRAMES_AT_ONCE = 6000


class WhisperFeatureExtractor(of_transformers("WhisperFeatureExtractor")):
    """As transformers' class of this name, whose files name it; `return_tensors` as in the processor."""

    def __call__(self, raw_speech: Any, *args: Any, return_tensors: Any = None, **kwargs: Any) -> Any:
        """Mel features of one or several sounds; by default cut or padded to `n_samples`, as in transformers.

        Returns:
            input_features float32 `[n, mel, frames]` and, with `return_attention_mask=True`, attention_mask `[n, frames]`.
        """
        features = super().__call__(raw_speech, *args, return_tensors="np", **kwargs)
        return ModelInputs(features).convert_to_tensors(return_tensors)

    def _np_extract_fbank_features(self, waveform_batch: np.ndarray, device: str) -> np.ndarray:
        """As transformers', but a minute at a time: the spectrum of an hour would take gigabytes."""
        return np.stack([self._log_mel(waveform) for waveform in waveform_batch])

    def _log_mel(self, waveform: np.ndarray) -> np.ndarray:
        """float32 `[mel, frames]` of samples float32 `[samples]`."""
        from transformers.audio_utils import spectrogram, window_function

        window = window_function(self.n_fft, "hann")
        padded = np.pad(waveform, self.n_fft // 2, mode="reflect")
        mel = np.empty((self.feature_size, len(waveform) // self.hop_length), np.float32)
        for start in range(0, mel.shape[1], _FRAMES_AT_ONCE):
            stop = min(start + _FRAMES_AT_ONCE, mel.shape[1])
            mel[:, start:stop] = spectrogram(
                padded[start * self.hop_length : (stop - 1) * self.hop_length + self.n_fft],
                window,
                self.n_fft,
                self.hop_length,
                power=2.0,
                center=False,
                dither=self.dither,
                mel_filters=self.mel_filters,
                log_mel="log10",
            )
        np.maximum(mel, mel.max() - 8.0, out=mel)
        mel += 4.0
        mel /= 4.0
        return mel


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


def encode_audio(
    clips: Sequence[np.ndarray], extractor: Any, options: Mapping[str, Any] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Features of clips of any length; nothing is cut unless `options` ask for it.

    Args:
        clips: mono float32 at the extractor's rate.
        extractor: transformers' `WhisperFeatureExtractor`.
        options: padding (True, "longest", "max_length", or False for clips of one length), truncation, max_length and
            pad_to_multiple_of in samples.

    Returns:
        `input_features` float32 `[n, mel, frames]`, padded to the longest clip, and its mask int32 `[n, frames]`.

    Raises:
        InputError: padding that cannot be; MediaError: a clip that is too short, or not finite.
    """
    options = dict(options or {})
    options.pop("sampling_rate", None)
    padding = options.setdefault("padding", True)
    options.setdefault("truncation", False)
    if padding not in (True, False, "longest", "max_length", "do_not_pad"):
        raise InputError(f"audio_kwargs: padding is {padding!r}; expected True, False, 'longest' or 'max_length'.")
    if padding in (False, "do_not_pad") and len({len(clip) for clip in clips}) > 1:
        raise InputError("audio_kwargs: padding is off and the sounds differ in length; one array cannot hold them.")
    for index, clip in enumerate(clips):
        check_clip(clip[: options.get("max_length")] if options["truncation"] else clip, f"Sound {index}")
    features = extractor(
        [np.asarray(clip, np.float32) for clip in clips],
        sampling_rate=extractor.sampling_rate,
        return_attention_mask=True,
        return_tensors="np",
        **options,
    )
    mask = np.asarray(features["attention_mask"], np.int32)
    values = np.asarray(features["input_features"], np.float32)
    if values.shape[-1] != mask.shape[-1]:
        raise InputError(f"The mel features have {values.shape[-1]} frames but their mask {mask.shape[-1]}.")
    return values, mask
