"""What a checkpoint's generation_config.json says about special tokens."""

import json
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError
from .sampling import as_ids


@dataclass(frozen=True)
class GenerationDefaults:
    """Ids that end or pad a text, unless the caller names others."""

    eos_token_id: tuple = ()
    pad_token_id: int | None = None

    @classmethod
    def from_pretrained(cls, folder):
        """Reads `folder`/generation_config.json; without that file there are no defaults."""
        path = Path(folder) / "generation_config.json"
        if not path.is_file():
            return cls()
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            eos, pad = data.get("eos_token_id"), data.get("pad_token_id")
            return cls(as_ids("eos_token_id", eos), None if pad is None else int(pad))
        except (ValueError, AttributeError, TypeError) as error:
            raise CheckpointError(f"{path} is not a usable generation config: {error}; mend or remove it") from None
