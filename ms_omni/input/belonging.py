"""Whether a processor's settings and tokenizer belong to the model whose config.json stands beside them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ms_omni.errors import CheckpointError
from ms_omni.input.prompt import SpecialTokens
from ms_omni.input.settings import ProcessorSettings, read_json

_VISION = {"patch_size": "patch_size", "temporal_patch_size": "temporal_patch_size", "merge_size": "spatial_merge_size"}
_PLACEHOLDERS = {  # in config.json, and in `SpecialTokens`
    "audio_token_id": "audio_token",
    "image_token_id": "image_token",
    "video_token_id": "video_token",
    "vision_start_token_id": "vision_bos_token",
    "vision_end_token_id": "vision_eos_token",
    "audio_start_token_id": "audio_bos_token",
    "audio_end_token_id": "audio_eos_token",
}
_TOKENS = {
    "im_start_token_id": "<|im_start|>",
    "im_end_token_id": "<|im_end|>",
    "tts_pad_token_id": "<tts_pad>",
    "tts_bos_token_id": "<tts_text_bos>",
    "tts_eos_token_id": "<tts_text_eod>",
    "system_token_id": "system",
    "user_token_id": "user",
    "assistant_token_id": "assistant",
}


def check_belonging(folder: Path, tokenizer: Any, special: SpecialTokens, settings: ProcessorSettings) -> None:
    """Compare with the folder's config.json; without one there is nothing to compare.

    Raises:
        CheckpointError: they disagree, all differences in one message; or config.json cannot be read.
    """
    config = read_json(folder / "config.json")
    if config is None or not str(config.get("model_type", "")).startswith("qwen3_omni_moe"):
        return
    wrong = [*_settings(config, settings), *_ids(config, tokenizer, special)]
    if wrong:
        raise CheckpointError(
            f"{folder}: the processor's files and config.json disagree, so they belong to different models, or one was changed: "
            f"{'; '.join(wrong)}. Take all files from one checkpoint."
        )


def _settings(config: Mapping[str, Any], settings: ProcessorSettings) -> Iterator[str]:
    vision = _inside(config, "thinker_config", "vision_config")
    for kind, own in (("pictures", settings.image), ("videos", settings.video)):
        for name, theirs in _VISION.items():
            if vision.get(theirs, getattr(own, name)) != getattr(own, name):
                yield f"{name} of {kind} is {getattr(own, name)}, vision_config.{theirs} {vision[theirs]!r}"
    bands, theirs = settings.audio.get("feature_size"), _inside(config, "thinker_config", "audio_config").get("num_mel_bins")
    if None not in (bands, theirs) and bands != theirs:
        yield f"feature_size is {bands}, audio_config.num_mel_bins {theirs!r}"


def _ids(config: Mapping[str, Any], tokenizer: Any, special: SpecialTokens) -> Iterator[str]:
    vocabulary = tokenizer.get_vocab()
    texts = {**_TOKENS, **{key: getattr(special, name) for key, name in _PLACEHOLDERS.items()}}
    for part in ((), ("thinker_config",), ("talker_config",)):
        section = _inside(config, *part)
        for key, text in texts.items():
            if section.get(key) is not None and vocabulary.get(text, section[key]) != section[key]:
                yield f"{text} has the id {vocabulary[text]}, {'.'.join((*part, key))} is {section[key]!r}"
    size = _inside(config, "thinker_config", "text_config").get("vocab_size")
    largest = max(vocabulary.values())
    if isinstance(size, int) and largest >= size:
        yield f"the tokenizer has ids up to {largest}, text_config.vocab_size is {size}"


def _inside(config: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """A section; a configuration of the thinker alone has its sections at the top."""
    if "thinker_config" not in config and names[:1] == ("thinker_config",):
        names = names[1:]
    for name in names:
        section = config.get(name)
        config = section if isinstance(section, Mapping) else {}
    return config
