"""What stands beside the weights of a folder: configuration, tokenizer, template and preprocessor files."""

import json
import os
import shutil
from fnmatch import fnmatch
from pathlib import Path

from ms_omni.config import CONFIG_FILE
from ms_omni.errors import CheckpointError
from ms_omni.files import open_regular, write_text

TEMPLATES = "additional_chat_templates"
QUANTISATION = "quantization_config"  # in config.json, or in one of its sections
_OF_WEIGHTS = (QUANTISATION, "compression_config", "quantization")  # the last is MLX's
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf")
# They say how a tool stored the weights, and nothing that we write is stored so.
_DESCRIPTIONS = ("quant*_config.json", "hf_quant_config.json", "quant_model_description*.json", "recipe.yaml")


def outside(target: str | Path, source: Path) -> None:
    """Raises CheckpointError for a target inside the folder that is read."""
    if Path(os.path.realpath(target)).is_relative_to(source.resolve()):
        raise CheckpointError(f"{target} lies inside {source}; choose a folder beside it.")


def write_config(folder: Path, content: dict, quantisation: dict | None) -> None:
    """Changes the config.json in `folder` where it is to say something else of how its weights are stored.

    content: what it holds; quantisation: what the new one says, None for nothing.
    """
    plain = _without(content)
    if quantisation is None and plain == content:
        return
    if quantisation is not None:
        plain[QUANTISATION] = quantisation
    write_text(folder / CONFIG_FILE, json.dumps(plain, indent=2, ensure_ascii=False) + "\n")


def _without(content: dict) -> dict:
    """A configuration that says nothing of quantised weights, in any section."""
    kept = {key: value for key, value in content.items() if key not in _OF_WEIGHTS}
    return {key: _without(value) if isinstance(value, dict) else value for key, value in kept.items()}


def copy_other_files(source: Path, target: Path) -> None:
    """Configuration, tokenizer, template and preprocessor files, as they are; not what tools say of how they stored the weights.

    Raises:
        CheckpointError: one of them is a link to a file elsewhere; those into the hub cache's folder of this model are its own.
    """
    root = source.resolve()
    home = root.parent.parent if root.parent.name == "snapshots" else root
    for item in sorted([*source.iterdir(), *(source / TEMPLATES).glob("*.jinja")]):
        weights = item.name.endswith(_WEIGHT_SUFFIXES) or item.name.endswith(".index.json")
        described = any(fnmatch(item.name, pattern) for pattern in _DESCRIPTIONS)
        if weights or described or item.name.startswith(".") or not item.is_file():
            continue
        if not item.resolve().is_relative_to(home):
            raise CheckpointError(
                f"{item} is a link to {item.resolve()}, outside the checkpoint; links are not followed out of it. Remove "
                "the link, or put the file itself there."
            )
        copy = target / item.relative_to(source)
        copy.parent.mkdir(exist_ok=True)
        with open_regular(item) as file, open(copy, "wb") as written:
            shutil.copyfileobj(file, written)
        shutil.copystat(item, copy)
