"""What the public model classes share: loading, saving, and what scripts call on a model."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import InputError
from .loading import LoadingMixin

from .checkpoint import save_checkpoint  # isort: skip  (loading explains a missing MindSpore first)
from .locking import exclusive
from .modeling.layer import coded_names, widen

UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_ANYWAY = ("is_main_process", "save_function", "push_to_hub", "variant", "token", "save_peft_format", "save_original_format")


class PretrainedMixin(LoadingMixin):
    """Loads and saves a cell whose parameters carry the checkpoint's names behind `checkpoint_prefix`."""

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


def check_saving(safe_serialization: bool, options: Mapping[str, Any]) -> None:
    """Raises `InputError` for what cannot be saved so, and for words that nobody knows."""
    if not safe_serialization:
        raise InputError(
            "safe_serialization=False asks for a pickle of PyTorch's; only safetensors are written, leave it out"
        )
    if options.get("push_to_hub"):
        raise InputError(
            "push_to_hub=True: nothing is uploaded; save into a folder and upload that with the hub's own command"
        )
    if options.get("variant") is not None:
        raise InputError(f"variant is {options['variant']!r}, but weights have one name here; save into a folder of its own")
    unknown = sorted(options.keys() - set(_ANYWAY))
    if unknown:
        raise InputError(f"save_pretrained has no argument {', '.join(unknown)}")


def as_bytes(size: int | str) -> int:
    """Bytes of a size such as 5_000_000_000, "5GB" or "500 MiB". Raises `InputError`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Z]*)", str(size).strip().upper())
    if match is None or match[2] not in UNITS or not (number := int(float(match[1]) * UNITS[match[2]])):
        raise InputError(f"max_shard_size is {size!r}, expected a number of bytes or a text such as '5GB'")
    return number


@contextmanager
def holding(cell: Any, values: Mapping[str, Any] | None) -> Iterator[None]:
    """The cell with `values`, tensors by parameter name, in the place of its own for a while. Raises `InputError`."""
    own = dict(cell.parameters_and_names())
    values = values or {}
    codes = sorted(coded_names(cell) & values.keys())
    if codes:
        raise InputError(
            f"state_dict has {', '.join(codes[:5])}, stored as codes in this model, which numbers do not replace; load the checkpoint "
            "without quantize= to save it with other values"
        )
    wrong = [name for name, value in values.items() if name not in own or tuple(value.shape) != tuple(own[name].shape)]
    if wrong:
        raise InputError(f"state_dict has names or shapes that the model has not: {', '.join(wrong[:5])}")
    if not values:
        yield
        return
    with exclusive:  # nobody is to compute with them meanwhile
        widen(cell, values)  # numbers of the caller's are not rounded
        before = {name: own[name].value().copy() for name in values}
        try:
            for name, value in values.items():
                own[name].set_data(value.astype(own[name].dtype))
            yield
        finally:
            for name, value in before.items():
                own[name].set_data(value)
