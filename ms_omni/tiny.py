"""Checkpoints in the published format with random weights, so that everything can be tried with no download.

The weights are random but not degenerate: activations stay near one, every bias, gain, gate and layer scale matters, so
that a part which is left out or mixed up changes the result.
"""

import copy
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .checkpoint.names import patch_shape_of, sources
from .checkpoint.safetensors import DTYPES, Pending, write_shards
from .config import Qwen3OmniMoeConfig, load_named_config, named_configurations, read_json_object
from .config.omni import PROMPT_IDS, SPEECH_SECTIONS
from .errors import InputError
from .files import new_folder
from .runtime import require_mindspore

DTYPE_NAMES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}
PLACEHOLDER_IDS = (
    "audio_token_id",
    "image_token_id",
    "video_token_id",
    "vision_start_token_id",
    "vision_end_token_id",
    "audio_start_token_id",
    "audio_end_token_id",
    "user_token_id",
)
ROUTER_GAIN = 2.0  # spreads the router's logits, so that the chosen experts are no near-ties
HEAD_GAIN = 2.0  # the same for the next token
EMBEDDING_STD = 0.4  # also the head's scale where the two are tied
UNIT_GAIN = 0.4  # of the vocoder's residual units: many in a row, each adds to the stream
WAVE_GAIN = 0.06  # keeps the waveform between -1 and 1


def write_tiny_checkpoint(
    folder: str | Path,
    *,
    seed: int = 0,
    geometry: Any = "tiny",
    dtype: str = "bfloat16",
    shards: int = 2,
    talker: bool = True,
) -> Qwen3OmniMoeConfig:
    """Write config, weights, tokenizer, chat template and preprocessor settings to the new folder `folder`.

    Args:
        folder: new, or empty.
        seed: the same seed and geometry give the same bytes; each tensor depends on the seed and its own name only.
        geometry: name of a configuration that comes along ("tiny", "odd"; for measurements "mini", "mid" and
            "published"), a config.json or the folder that holds one, a dict, or a Qwen3OmniMoeConfig. Special token ids
            are replaced by those of the tiny tokenizer.
        dtype: of the weights in the files: "bfloat16", "float16" or "float32".
        shards: number of weight files; with one there is no index.
        talker: False writes a checkpoint that only understands, as Thinking and Captioner do.

    Returns:
        The configuration that was written.

    Raises:
        InputError: unknown dtype or number of shards.
        CheckpointError: `folder` is not empty, the disk is too small, or (ConfigError) the geometry is unusable.
    """
    if dtype not in DTYPE_NAMES:
        raise InputError(f"dtype is {dtype!r}, expected one of {', '.join(DTYPE_NAMES)}.")
    if not isinstance(shards, int) or shards < 1:
        raise InputError(f"shards is {shards!r}, expected a number of files, at least 1.")
    config = _read_geometry(geometry)
    kind = DTYPE_NAMES[dtype]
    needed = sum(math.prod(source.shape) for source in _published_tensors(config)) * DTYPES[kind].itemsize
    with new_folder(folder, needed_bytes=needed) as target:
        config = _write_settings(target, config, dtype, talker)
        tensors = [
            Pending(source.name, kind, source.shape, _values(seed, source.name, source.shape, kind))
            for source in _published_tensors(config)
        ]
        write_shards(target, tensors, {"format": "pt"}, shards=shards)
    return config


def _read_geometry(geometry) -> Qwen3OmniMoeConfig:
    if isinstance(geometry, Qwen3OmniMoeConfig):
        return geometry
    if isinstance(geometry, Mapping):
        return Qwen3OmniMoeConfig.from_dict(geometry)
    if geometry in named_configurations():
        return load_named_config(geometry)
    path = Path(geometry)
    if path.is_dir():
        return Qwen3OmniMoeConfig.from_pretrained(path)
    if path.is_file():
        return Qwen3OmniMoeConfig.from_dict(read_json_object(path), str(path), strict=True)
    return load_named_config(str(geometry))


def _write_settings(folder: Path, config: Qwen3OmniMoeConfig, dtype: str, talker: bool) -> Qwen3OmniMoeConfig:
    """Tokenizer, processor and config.json, with the tokenizer's ids in the configuration."""
    from .input.tiny_processor import write_tiny_processor

    ids = write_tiny_processor(folder, vocab_size=config.thinker_config.text_config.vocab_size)
    content = copy.deepcopy(config.to_dict())
    content.update({key: ids[key] for key in PROMPT_IDS}, dtype=dtype)
    content.pop("torch_dtype", None)
    if not talker:
        content["enable_audio_output"] = False
        for name in SPEECH_SECTIONS:
            content.pop(name, None)
    for name in ("thinker_config", "talker_config"):
        for key in set(PLACEHOLDER_IDS) & set(content.get(name) or {}):
            content[name][key] = ids[key]
    written = Qwen3OmniMoeConfig.from_dict(content, "the tiny configuration", strict=True)
    written.save_pretrained(folder)
    _match_preprocessor(folder / "preprocessor_config.json", written.thinker_config)
    return written


def _match_preprocessor(path: Path, thinker) -> None:
    """Patches and mel bins as the encoders of this geometry take them."""
    settings = read_json_object(path)
    settings.update(
        patch_size=thinker.vision_config.patch_size,
        merge_size=thinker.vision_config.spatial_merge_size,
        temporal_patch_size=thinker.vision_config.temporal_patch_size,
        feature_size=thinker.audio_config.num_mel_bins,
    )
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _published_tensors(config: Qwen3OmniMoeConfig):
    """The tensors of a checkpoint of this geometry, named and shaped as published: read off cells without memory."""
    require_mindspore()
    from mindspore.nn.utils import no_init_parameters

    from .model import Qwen3OmniMoeForConditionalGeneration

    with no_init_parameters():
        model = Qwen3OmniMoeForConditionalGeneration(config)
    patch_shape = patch_shape_of(config.thinker_config.vision_config)
    for name, parameter in model.parameters_and_names():
        yield from sources(name, tuple(parameter.shape), patch_shape)


def _values(seed, name, shape, kind):
    return lambda: random_weight(seed, name, shape).astype(DTYPES[kind])


def random_weight(seed: int, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Float64 values for the published tensor `name`; they depend on seed, name and shape alone.

    RandomState's stream is frozen by numpy, so recorded values that follow from these weights stay valid.
    """
    state = np.random.RandomState(np.frombuffer(hashlib.sha256(f"{seed}/{name}".encode()).digest(), np.uint32))
    noise, last = state.standard_normal(shape), name.rsplit(".", 1)[-1]
    if last == "bias":
        return 0.1 * noise
    if last in ("alpha", "beta"):  # snake: exponents of frequency and height
        return 0.3 * noise
    if last in ("scale", "gamma"):  # layer scales
        return 0.6 + 0.15 * np.clip(noise, -2, 2)
    if len(shape) == 1:  # gains of norms
        return 1 + 0.2 * noise
    if "pos_embed" in name:
        return 0.3 * noise
    if name.endswith("model.embed_tokens.weight"):
        return EMBEDDING_STD * noise
    if "embedding" in name:  # codes
        return noise
    return _gain(name, shape) / math.sqrt(_fan_in(name, shape)) * noise


def _gain(name: str, shape: tuple[int, ...]) -> float:
    if name.endswith("mlp.gate.weight"):
        return ROUTER_GAIN
    if "head" in name:
        return HEAD_GAIN
    if name.startswith("code2wav.decoder."):
        return WAVE_GAIN if shape[0] == 1 else UNIT_GAIN if ".conv2." in name else 1.0
    return 1.0


def _fan_in(name: str, shape: tuple[int, ...]) -> int:
    """Inputs that one output sums over. A transposed convolution [in, out, k] sees k / stride taps of each channel."""
    if name.startswith("code2wav.upsample.") and name.endswith(".0.conv.weight"):
        return shape[0]  # kernel = stride
    if name.startswith("code2wav.decoder.") and name.endswith(".block.1.conv.weight"):
        return 2 * shape[0]  # kernel = 2 * stride
    return math.prod(shape[1:])
