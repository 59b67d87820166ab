"""The JSON files of a checkpoint folder, and those that come with the package."""

import functools
import json
from pathlib import Path
from typing import Any

from ms_omni.errors import ConfigError
from ms_omni.files import read_text
from ms_omni.hub import resolve

CONFIG_FILE = "config.json"
PUBLISHED = "instruct"

# In an installed package setup.py puts them beside ms_omni; in a checkout they stand at the top of the repository.
_FOLDERS = (Path(__file__).resolve().parents[1] / "_configs", Path(__file__).resolve().parents[2] / "configs")


def read_config_json(folder: str | Path, **where: Any) -> tuple[dict, Path]:
    """The content of config.json and its path, of a folder or a model's name; where: arguments of `hub.resolve`.

    Raises CheckpointError where there is no such folder or model, ConfigError for unreadable JSON.
    """
    root = resolve(folder, weights=False, **where)
    path = root / CONFIG_FILE
    if not path.is_file():
        inside = ", ".join(sorted(item.name for item in root.iterdir())[:8]) or "nothing"
        raise ConfigError(f"{root} has no {CONFIG_FILE} (it holds: {inside}); expected a Qwen3-Omni checkpoint folder.")
    return read_json_object(path), path


def read_json_object(path: str | Path) -> dict:
    """A JSON file whose top level is an object. Raises ConfigError saying where it stops being JSON."""
    try:
        content = json.loads(read_text(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as text: {error}") from None
    except (ValueError, RecursionError) as error:  # a number of over 4300 digits is a ValueError too
        raise ConfigError(f"{path} is not valid JSON: {error}. Fetch the file again.") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds a {type(content).__name__}, expected a JSON object.")
    return content


def config_folder() -> Path:
    """The folder of the JSON files that come along. Raises ConfigError when there is none."""
    for folder in _FOLDERS:
        if folder.is_dir():
            return folder
    raise ConfigError(
        f"the configurations that come with ms_omni are in none of {[str(f) for f in _FOLDERS]}; reinstall it."
    )


@functools.cache
def published_content() -> dict:
    """The config.json of the published Instruct checkpoint, the source of every default; not to be changed."""
    return read_json_object(config_folder() / f"{PUBLISHED}.json")
