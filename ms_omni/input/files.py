"""The processor's files in a checkpoint folder: tokenizer, chat template, preprocessor settings; and whether they belong to the model
whose config.json stands beside them.
"""

from __future__ import annotations

import importlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from ms_omni.errors import CheckpointError
from ms_omni.files import read_text, saved_files
from ms_omni.input.audio import SAMPLING_RATE_HZ
from ms_omni.input.media import is_count, is_real
from ms_omni.input.prompt import PAD_TOKEN, SpecialTokens, with_arrays
from ms_omni.input.tiny_processor import NAMED_TOKENS
from ms_omni.input.vision import ImageProcessor, VideoProcessor, read_configs, read_json

_PROCESSOR_FILES = (  # which would be read before, or beside, the files written here
    "processor_config.json",
    "video_preprocessor_config.json",
    "chat_template.*",
    "additional_chat_templates/*.jinja",
)
_NEEDED_AUDIO_KEYS = ("feature_size", "hop_length", "n_fft", "sampling_rate")
# What the mel features are by the model's design: 100 frames a second, 13 tokens of them; noise is for training.
_AUDIO = {"sampling_rate": SAMPLING_RATE_HZ, "hop_length": 160, "n_fft": 400, "padding_side": "right", "dither": 0.0}
AUDIO_KEYS = (*_NEEDED_AUDIO_KEYS, "padding_value", "padding_side", "dither", "return_attention_mask", "chunk_length")
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
_first_use = threading.RLock()
"""Held while transformers imports: it imports its parts at their first use, and a second thread would see them half imported."""


@dataclass(frozen=True)
class ProcessorSettings:
    """Settings for pictures, for video frames, and the mel extractor's arguments."""

    image: ImageProcessor
    video: VideoProcessor
    audio: Mapping[str, Any]


def of_transformers(name: str) -> Any:
    """A class or module of transformers, without its remark that no PyTorch was found: none is needed."""
    remark = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
    with _first_use:
        before = os.environ.get(remark)
        os.environ[remark] = "1"
        try:
            return getattr(importlib.import_module("transformers"), name)
        finally:
            if before is None:
                del os.environ[remark]
            else:
                os.environ[remark] = before


def load_tokenizer(folder: Path, options: Mapping[str, Any] = MappingProxyType({})) -> Any:
    """The tokenizer, from files of transformers 4.x or 5.x; options: its arguments, instead of the files' values.

    Raises:
        CheckpointError: no tokenizer files, or damaged ones.
    """
    _check_regular(folder)
    if not (folder / "tokenizer.json").exists() and not (folder / "vocab.json").exists():
        raise CheckpointError(f"{folder} has no tokenizer.json (nor vocab.json and merges.txt).")
    config = read_json(folder / "tokenizer_config.json")
    if config is None:
        raise CheckpointError(f"{folder} has no tokenizer_config.json.")
    # 5.x writes extra_special_tokens as a list, where 4.57 wants a dict; tokenizer.json has the tokens in any case.
    override = {"extra_special_tokens": {}} if isinstance(config.get("extra_special_tokens"), list) else {}
    with _first_use:
        return _load_tokenizer(folder, {**override, **options})


def _load_tokenizer(folder: Path, options: Mapping[str, Any]) -> Any:
    logging = of_transformers("logging")
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # 5.x remarks on keys of config.json, which it reads for the model's kind only
    try:
        tokenizer = of_transformers("AutoTokenizer").from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **options
        )
        return with_arrays(tokenizer)
    except Exception as error:  # the tokenizers library raises bare Exception
        raise CheckpointError(f"The tokenizer in {folder} cannot be loaded: {_reason(error)}") from error
    finally:
        logging.set_verbosity(verbosity)


def _check_regular(folder: Path) -> None:
    """Raises `CheckpointError` for a pipe, device or folder in place of a file: transformers would wait for ever, or take another."""
    for path in folder.iterdir():
        if path.suffix in (".json", ".jinja", ".txt", ".model") and path.exists() and not path.is_file():
            raise CheckpointError(f"{path} is not a regular file.")


def _read_template(path: Path) -> str:
    try:
        return read_text(path)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as a template: {error}.") from error


def _reason(error: Exception) -> str:
    if "trust_remote_code" in str(error) or "custom code" in str(error):
        return "its tokenizer_config.json names a tokenizer whose code comes with the checkpoint, and none is run here"
    return str(error) or type(error).__name__


def special_tokens(tokenizer: Any) -> SpecialTokens:
    """The media tokens' texts: as the tokenizer's own configuration names them, else as published.

    Raises:
        CheckpointError: one of them, or the padding token, is not in the vocabulary.
    """
    texts = {name: str(tokenizer.init_kwargs.get(name) or default) for name, default in NAMED_TOKENS.items()}
    vocabulary = tokenizer.get_vocab()
    missing = [text for text in (*texts.values(), PAD_TOKEN) if text not in vocabulary]
    if missing:
        raise CheckpointError(
            f"The tokenizer lacks {', '.join(sorted(set(missing)))}; it is not Qwen3-Omni's. Check "
            "that the tokenizer files belong to this checkpoint."
        )
    return SpecialTokens(**texts)


def read_settings(folder: Path) -> ProcessorSettings:
    """The settings in a folder's files.

    Raises:
        CheckpointError: no such file, not JSON, or a needed key is missing or unsupported.
    """
    image, video, audio = read_configs(folder)
    return ProcessorSettings(
        ImageProcessor.from_config(image, f"{folder}: the image settings"),
        VideoProcessor.from_config(video, f"{folder}: the video settings"),
        audio_settings(audio, f"{folder}: the audio settings"),
    )


def audio_settings(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The mel extractor's arguments from the content of a preprocessor file.

    Raises:
        CheckpointError: a needed key is missing or its value is not supported.
    """
    missing = [key for key in _NEEDED_AUDIO_KEYS if config.get(key) is None]
    if missing:
        raise CheckpointError(f"{where} lack {', '.join(missing)}.")
    for key, only in _AUDIO.items():
        value = config.get(key, only)
        if isinstance(value, np.ndarray) or value != only or isinstance(value, bool) != isinstance(only, bool):
            raise CheckpointError(f"{where}: {key} is {value!r}; the model hears sound with {only!r} only.")
    wrong = {key: config[key] for key in ("feature_size", "chunk_length") if not is_count(config.get(key, 1))}
    if not is_real(config.get("padding_value", 0.0), -np.inf):
        wrong["padding_value"] = config["padding_value"]
    if wrong:
        listed = ", ".join(f"{key} is {value!r}" for key, value in wrong.items())
        raise CheckpointError(f"{where}: {listed}; expected numbers, of bands and seconds whole ones of at least 1.")
    return {key: config[key] for key in AUDIO_KEYS if config.get(key) is not None}


def load_chat_template(folder: Path, tokenizer: Any) -> str | dict[str, str] | None:
    """The chat template: chat_template.jinja, chat_template.json, processor_config.json, then the tokenizer's own.

    More templates by name may stand in additional_chat_templates/; the result is then a dict.
    """
    template = _first_template(folder, tokenizer)
    named = {path.stem: _read_template(path) for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    if not named:
        return template
    default = template if isinstance(template, dict) else {"default": template} if template else {}
    return {**default, **named}


def _first_template(folder: Path, tokenizer: Any) -> str | dict[str, str] | None:
    path = folder / "chat_template.jinja"
    if path.exists():
        return _read_template(path)
    for name in ("chat_template.json", "processor_config.json"):
        content = read_json(folder / name) or {}
        template = content.get("chat_template")
        if _is_template(template):
            return template
        if name == "chat_template.json" and content:
            raise CheckpointError(f"{folder / name} has no text as chat_template; it has {', '.join(content)}.")
    if tokenizer.chat_template is not None and not _is_template(tokenizer.chat_template):
        raise CheckpointError(f"{folder}: the tokenizer's chat_template is a {type(tokenizer.chat_template).__name__}.")
    return tokenizer.chat_template


def _is_template(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, dict) and all(isinstance(text, str) for text in value.values()))


def save(folder: Path, tokenizer: Any, template: str | dict[str, str] | None, settings: ProcessorSettings) -> None:
    """Write everything in the published layout, which 4.57 and 5.x read alike.

    Raises:
        CheckpointError: the folder holds files of these names that we did not write, or cannot be written.
    """
    with saved_files(folder, replaces=_PROCESSOR_FILES) as fresh:
        tokenizer.save_pretrained(fresh)
        vision = settings.image.to_dict()
        _write_json(
            fresh / "preprocessor_config.json",
            {
                **settings.audio,
                **vision,
                "feature_extractor_type": "WhisperFeatureExtractor",
                "image_processor_type": "Qwen2VLImageProcessor",
                "processor_class": "Qwen3OmniMoeProcessor",
            },
        )
        if settings.video.patch_size != settings.image.patch_size or settings.video.image_mean != settings.image.image_mean:
            _write_json(fresh / "video_preprocessor_config.json", settings.video.to_dict())
        if template is not None:
            _save_templates(fresh, template if isinstance(template, dict) else {"default": template})


def _save_templates(folder: Path, templates: Mapping[str, str]) -> None:
    for name, text in templates.items():
        path = folder / "chat_template.jinja"
        if name == "default":
            _write_json(folder / "chat_template.json", {"chat_template": text})
        else:
            path = folder / "additional_chat_templates" / f"{Path(name).name}.jinja"
            path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def check_against_config(folder: Path, tokenizer: Any, special: SpecialTokens, settings: ProcessorSettings) -> None:
    """Compare with the folder's config.json; without one there is nothing to compare.

    Raises:
        CheckpointError: they disagree, all differences in one message; or config.json cannot be read.
    """
    config = read_json(folder / "config.json")
    if config is None or not str(config.get("model_type", "")).startswith("qwen3_omni_moe"):
        return
    wrong = [*_setting_differences(config, settings), *_id_differences(config, tokenizer, special)]
    if wrong:
        raise CheckpointError(
            f"{folder}: the processor's files and config.json disagree, so they belong to different models, or one was changed: "
            f"{'; '.join(wrong)}. Take all files from one checkpoint."
        )


def _setting_differences(config: Mapping[str, Any], settings: ProcessorSettings) -> Iterator[str]:
    vision = _section(config, "thinker_config", "vision_config")
    for kind, own in (("pictures", settings.image), ("videos", settings.video)):
        for name, theirs in _VISION.items():
            if vision.get(theirs, getattr(own, name)) != getattr(own, name):
                yield f"{name} of {kind} is {getattr(own, name)}, vision_config.{theirs} {vision[theirs]!r}"
    bands, theirs = (
        settings.audio.get("feature_size"),
        _section(config, "thinker_config", "audio_config").get("num_mel_bins"),
    )
    if None not in (bands, theirs) and bands != theirs:
        yield f"feature_size is {bands}, audio_config.num_mel_bins {theirs!r}"


def _id_differences(config: Mapping[str, Any], tokenizer: Any, special: SpecialTokens) -> Iterator[str]:
    vocabulary = tokenizer.get_vocab()
    texts = {**_TOKENS, **{key: getattr(special, name) for key, name in _PLACEHOLDERS.items()}}
    for part in ((), ("thinker_config",), ("talker_config",)):
        section = _section(config, *part)
        for key, text in texts.items():
            if section.get(key) is not None and vocabulary.get(text, section[key]) != section[key]:
                yield f"{text} has the id {vocabulary[text]}, {'.'.join((*part, key))} is {section[key]!r}"
    size = _section(config, "thinker_config", "text_config").get("vocab_size")
    largest = max(vocabulary.values())
    if isinstance(size, int) and largest >= size:
        yield f"the tokenizer has ids up to {largest}, text_config.vocab_size is {size}"


def _section(config: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """A section; a configuration of the thinker alone has its sections at the top."""
    if "thinker_config" not in config and names[:1] == ("thinker_config",):
        names = names[1:]
    for name in names:
        section = config.get(name)
        config = section if isinstance(section, Mapping) else {}
    return config
