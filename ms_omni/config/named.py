"""Configurations that come with the package: configs/*.json of the repository, shipped as package data."""

import json
from pathlib import Path

from ms_omni.errors import ConfigError

from .omni import Qwen3OmniMoeConfig

# In an installed package setup.py puts them beside ms_omni; in a checkout they stand at the top of the repository.
_FOLDERS = (Path(__file__).resolve().parents[1] / "_configs", Path(__file__).resolve().parents[2] / "configs")

_ALIASES = {"published": "instruct"}


def config_folder() -> Path:
    """The folder of the JSON files that come along. Raises ConfigError when there is none."""
    for folder in _FOLDERS:
        if folder.is_dir():
            return folder
    raise ConfigError(
        f"the configurations that come with ms_omni are in none of {[str(f) for f in _FOLDERS]}; reinstall it."
    )


def named_config_files() -> dict[str, Path]:
    """{name: file} of every configuration of a model that comes along."""
    return {
        path.stem: path
        for path in sorted(config_folder().glob("*.json"))
        if "thinker_config" in json.loads(path.read_text(encoding="utf-8"))
    }


def named_configurations() -> tuple[str, ...]:
    """The names that `load_named_config` takes."""
    return (*named_config_files(), *_ALIASES)


def load_named_config(name: str) -> Qwen3OmniMoeConfig:
    """The configuration `name`, such as "tiny"; "published" is Instruct. Raises ConfigError that lists the names."""
    if name not in named_configurations():
        raise ConfigError(f"there is no configuration named {name!r}; expected one of {', '.join(named_configurations())}.")
    files, name = named_config_files(), _ALIASES.get(name, name)
    return Qwen3OmniMoeConfig.from_dict(json.loads(files[name].read_text(encoding="utf-8")), str(files[name]))
