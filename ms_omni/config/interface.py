"""The JSON files of configurations, and what scripts for transformers ask a configuration beside its fields: dtype, attention,
copies, JSON text and files.
"""

import copy
import functools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel, PrivateAttr
from typing_extensions import Self

from ms_omni.errors import ConfigError
from ms_omni.files import read_text
from ms_omni.hub import resolve

from ..files import explained, write_text

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
    """The folder of the JSON files that come with the package. Raises ConfigError when there is none."""
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


# What every configuration of transformers answers, whether or not its file says so.
GENERIC = {
    "architectures": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "is_encoder_decoder": False,
    "output_attentions": False,
    "output_hidden_states": False,
    "pad_token_id": None,
    "return_dict": True,
    "tie_word_embeddings": False,
    "use_cache": True,
    "use_return_dict": True,
}


class TransformersInterface(BaseModel):
    """Methods of transformers' configurations, in terms of the sections and the JSON that `ConfigSection` keeps."""

    sub_configs: ClassVar[dict[str, Any]] = {}
    """The nested sections: {field: class}."""

    _content: dict = PrivateAttr(default_factory=dict)  # the JSON object as read; keys that are no fields live here only
    _attention: Any = PrivateAttr(default=None)
    _source: str = PrivateAttr(default="")

    def to_dict(self) -> dict:
        """The JSON object."""
        raise NotImplementedError

    @classmethod
    def validated(cls, config: Any) -> Self:
        """`config`, if a model can be built from it."""
        raise NotImplementedError

    @property
    def dtype(self) -> str | None:
        """Name of the dtype that the checkpoint's weights have, such as "bfloat16"; settable with any library's dtype."""
        return self._content.get("dtype", self._content.get("torch_dtype"))

    @dtype.setter
    def dtype(self, value: Any) -> None:
        self._content = {key: self._content[key] for key in self._content if key not in ("dtype", "torch_dtype")}
        if value is not None:
            name = value if isinstance(value, str) else getattr(value, "__name__", str(value))
            self._content["dtype"] = name.rpartition(".")[2].lower()

    torch_dtype = dtype

    @property
    def name_or_path(self) -> str:
        """The folder or name that the configuration was read from, or ""."""
        return self._source

    @name_or_path.setter
    def name_or_path(self, value: Any) -> None:
        self._source = str(value)

    @property
    def _attn_implementation(self) -> Any:
        return self._attention

    @_attn_implementation.setter
    def _attn_implementation(self, value: Any) -> None:
        self._attention = value
        for _, section in self._sections():
            section._attn_implementation = value

    def _sections(self) -> Iterator[tuple[str, Any]]:
        found = ((name, getattr(self, name)) for name in self.sub_configs)
        return ((name, section) for name, section in found if section is not None)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> Any:
        """The section of the text decoder; this section itself where it has none, or for `encoder` alone."""
        return self if encoder and not decoder else getattr(self, "text_config", self)

    def update(self, config_dict: Mapping[str, Any]) -> None:
        """Set several values; for a section, a dict of those that change. Raises ConfigError."""
        for key, value in config_dict.items():
            here = getattr(self, key, None)
            if key in self.sub_configs and here is not None and isinstance(value, Mapping):
                here.update(value)
            else:
                setattr(self, key, value)

    def copy(self, **changes: Any) -> Self:
        """A copy that shares nothing, with some values changed as by `update`. Raises ConfigError if they do not fit."""
        other = copy.deepcopy(self)
        other.update(changes)
        return self.validated(other) if changes else other

    def __copy__(self) -> Self:
        return copy.deepcopy(self)

    def to_diff_dict(self) -> dict:
        """As `to_dict`, which adds none of the generic keys that transformers leaves out here."""
        return self.to_dict()

    def to_json_string(self, use_diff: bool = True) -> str:
        """The JSON text with sorted keys; `use_diff` changes nothing, see `to_diff_dict`."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    def to_json_file(self, json_file_path: str | Path, use_diff: bool = True) -> None:
        """Write `to_json_string` into a file, whole or not at all."""
        with explained(json_file_path):
            write_text(json_file_path, self.to_json_string())

    def save_pretrained(self, save_directory: str | Path) -> Path:
        """Write `config.json` into a folder (made if needed), whole or not at all, and return its path."""
        path = Path(save_directory, CONFIG_FILE)
        with explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n")
        return path

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"

    __str__ = __repr__
