"""What a model generates by unless a call says otherwise."""

import json
import os
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..files import read_text, write_text
from ..folders import saved_files
from .checks import as_ids
from .options import RESULT_OPTIONS, TEXT_OPTIONS
from .sampling import NAMES
from .unsupported import MEANINGLESS, NEEDED

GENERATION_FILE = "generation_config.json"
OPTIONS = {*NAMES, *TEXT_OPTIONS, *RESULT_OPTIONS, *NEEDED, *MEANINGLESS}


class GenerationConfig:
    """Defaults of `generate` as attributes, `model.generation_config.max_new_tokens = 64`; what nobody set is None.

    A checkpoint's generation_config.json gives the ids that end and pad a text; how texts are sampled is, as in the reference,
    up to the call or to what is set here.
    """

    def __init__(self, **values: Any):
        self.__dict__.update(_loaded={}, **values)

    def __getattr__(self, name: str) -> Any:
        if name not in OPTIONS:
            raise AttributeError(f"GenerationConfig has no {name!r}")
        return None

    def __repr__(self) -> str:
        return f"GenerationConfig({', '.join(f'{name}={value!r}' for name, value in self.to_dict().items())})"

    def to_dict(self) -> dict[str, Any]:
        """What was set, by name."""
        return {name: value for name, value in self.__dict__.items() if value is not None and name != "_loaded"}

    to_diff_dict = to_dict

    def to_json_string(self) -> str:
        """What was set, as the text of a generation_config.json."""
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Writes `save_directory`/generation_config.json. Raises `CheckpointError` where one is that ms_omni did not write."""
        with saved_files(save_directory) as folder:
            write_text(folder / GENERATION_FILE, self.to_json_string())

    def load(self, **values: Any) -> None:
        """Sets what is not set yet, as the checkpoint's and not as the user's."""
        values = {name: value for name, value in values.items() if getattr(self, name) is None}
        self.__dict__.update(values)
        self.__dict__["_loaded"] = {**self.__dict__["_loaded"], **values}

    def changes(self) -> dict[str, Any]:
        """What was set otherwise than by `load`."""
        return {name: value for name, value in self.to_dict().items() if self.__dict__["_loaded"].get(name) != value}

    def update(self, **values: Any) -> dict[str, Any]:
        """Sets these values; returns what was left over, which is nothing."""
        self.__dict__.update(values)
        return {}

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "GenerationConfig":
        """The special tokens of `folder`/generation_config.json; nothing without that file.

        Raises:
            CheckpointError: the file is no JSON object, or its ids are none.
        """
        path = Path(folder) / GENERATION_FILE
        if not os.path.lexists(path):
            return cls()
        try:
            data = json.loads(read_text(path))
            ids = {name: as_ids(name, data.get(name)) for name in ("eos_token_id", "pad_token_id")}
        except (ValueError, AttributeError, TypeError, OSError, RecursionError) as error:
            raise CheckpointError(f"{path} is not a usable generation config: {error}; mend or remove it") from None
        pad = ids["pad_token_id"][0] if ids["pad_token_id"] else None
        config = cls()
        config.load(eos_token_id=list(ids["eos_token_id"]) or None, pad_token_id=pad)
        return config
