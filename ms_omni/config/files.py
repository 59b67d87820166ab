"""The JSON files of a checkpoint folder."""

import json
from pathlib import Path

from ms_omni.errors import ConfigError

from .fields import shown

CONFIG_FILE = "config.json"


def existing_folder(folder: str | Path) -> Path:
    """`folder` as an existing directory. Raises ConfigError that says what was found instead."""
    root = Path(folder)
    if not root.exists():
        raise ConfigError(
            f"{str(folder)!r} is not a folder on this machine. A checkpoint is read from a local folder "
            "and nothing is downloaded: fetch the checkpoint first and pass the folder's path."
        )
    if not root.is_dir():
        raise ConfigError(f"{root} is a file; expected the checkpoint's folder, the one that holds {CONFIG_FILE}.")
    return root


def read_config_json(folder: str | Path) -> tuple[dict, Path]:
    """The content of `folder`/config.json and its path. Raises ConfigError for a wrong folder or unreadable JSON."""
    root = existing_folder(folder)
    path = root / CONFIG_FILE
    if not path.is_file():
        inside = ", ".join(sorted(item.name for item in root.iterdir())[:8]) or "nothing"
        raise ConfigError(f"{root} has no {CONFIG_FILE} (it holds: {inside}); expected a Qwen3-Omni checkpoint folder.")
    return read_json_object(path), path


def read_json_object(path: Path) -> dict:
    """A JSON file whose top level is an object. Raises ConfigError saying where it stops being JSON."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as text: {error}") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid JSON: {error}. Fetch the file again.") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds {shown(content)}, expected a JSON object.")
    return content
