"""What the public model classes share: loading, saving, and what scripts call on a model."""

import os
from pathlib import Path
from typing import Any

from .errors import InputError
from .loading import LoadingMixin

from .checkpoint import save_checkpoint  # isort: skip  (loading explains a missing MindSpore first)
from .model_object import ModelObject
from .saving import as_bytes, check_saving, holding


class PretrainedMixin(LoadingMixin, ModelObject):
    """Loads and saves a cell whose parameters carry the checkpoint's names behind `checkpoint_prefix`."""

    config: Any
    cells: Any  # of MindSpore's Cell

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        dtype: Any = None,
        *,
        max_shard_size: int | str | None = None,
        safe_serialization: bool = True,
        state_dict: dict | None = None,
        **options: Any,
    ) -> None:
        """Writes config.json, generation_config.json and safetensors shards under the checkpoint's own names.

        dtype: default, as each parameter is in memory, and bfloat16 of what is stored as codes (`ms-omni convert --quantize` writes
        codes). max_shard_size: bytes, or a text such as "2GB". state_dict: values by parameter name
        that are written in the place of the model's own. Of transformers' other options those that name what happens anyway
        are taken. What was saved there before is replaced, in one step; files that ms_omni did not write are not.

        Raises `InputError` for safe_serialization=False, push_to_hub=True and a state_dict that does not fit,
        `CheckpointError` for a folder that holds foreign files of these names or cannot be written.
        """
        check_saving(safe_serialization, options)
        if any(getattr(cell, "process_group", None) is not None for cell in (self, *self.cells())):
            raise InputError(
                "this process holds a part of the model only; save it from one process (parallel=None), or use "
                "ms-omni convert"
            )
        size: dict[str, Any] = {} if max_shard_size is None else {"shard_bytes": as_bytes(max_shard_size)}
        defaults = getattr(self, "generation_config", None)
        with holding(self, state_dict):
            save_checkpoint(self, Path(save_directory), self.config, dtype, generation_config=defaults, **size)
