"""Configurations that come with the package: configs/*.json of the repository, shipped as package data."""

from pathlib import Path

from ms_omni.errors import ConfigError

from .files import PUBLISHED, config_folder, read_json_object
from .omni import Qwen3OmniMoeConfig

_ALIASES = {"published": PUBLISHED}


def named_config_files() -> dict[str, Path]:
    """{name: file} of every configuration of a model that comes along."""
    return {path.stem: path for path in sorted(config_folder().glob("*.json")) if "thinker_config" in read_json_object(path)}


def named_configurations() -> tuple[str, ...]:
    """The names that `load_named_config` takes."""
    return (*named_config_files(), *_ALIASES)


def load_named_config(name: str) -> Qwen3OmniMoeConfig:
    """The configuration `name`, such as "tiny"; "published" is Instruct. Raises ConfigError that lists the names."""
    files = named_config_files()
    path = files.get(_ALIASES.get(name, name))
    if path is None:
        raise ConfigError(f"there is no configuration named {name!r}; expected one of {', '.join((*files, *_ALIASES))}.")
    return Qwen3OmniMoeConfig.from_dict(read_json_object(path), str(path), strict=True)
