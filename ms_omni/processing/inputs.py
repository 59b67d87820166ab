"""What the processor returns: a mapping of arrays."""

from __future__ import annotations

from collections import UserDict
from typing import Any

import numpy as np

from ms_omni.errors import InputError


class ModelInputs(UserDict):
    """Model inputs by name, as keys and as attributes; `model.generate(**inputs)` takes them as they are."""

    def __getattr__(self, name: str) -> Any:
        if name == "data" or name not in self.data:
            raise AttributeError(f"The model inputs have no {name!r}; they have {', '.join(self.__dict__.get('data', ()))}.")
        return self.data[name]

    def to(self, *_: Any, **__: Any) -> ModelInputs:
        """Return the inputs unchanged: the model moves and casts arrays itself. Here so that scripts need no change."""
        return self

    def convert_to_tensors(self, tensor_type: str | None) -> ModelInputs:
        """The same inputs as numpy arrays (None, "np") or MindSpore tensors ("ms").

        Raises:
            InputError: any other framework.
        """
        kind = getattr(tensor_type, "value", tensor_type)
        if kind in (None, "np"):
            return self
        if kind != "ms":
            raise InputError(
                f"return_tensors is {kind!r}; expected None or 'np' for numpy arrays, or 'ms' for MindSpore tensors."
            )
        import mindspore

        return ModelInputs(
            {name: mindspore.Tensor(value) if isinstance(value, np.ndarray) else value for name, value in self.data.items()}
        )


def pad_left(
    rows: list[list[int]],
    pad_id: int,
    *,
    padding: bool | str = True,
    side: str = "left",
    max_length: int | None = None,
    multiple_of: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Token ids and attention mask `[B, T]` int64 of rows of any lengths.

    Args:
        padding: True or "longest"; "max_length"; False or "do_not_pad" (rows must then be of one length).
        side: "left" or "right".
        max_length: for "max_length".
        multiple_of: round the length up to a multiple.

    Raises:
        InputError: an unknown choice, or rows that cannot stand in one array.
    """
    padding = getattr(padding, "value", padding)
    if padding not in (True, False, None, "longest", "max_length", "do_not_pad") or side not in ("left", "right"):
        raise InputError(
            f"padding is {padding!r} on the {side!r} side; expected True, False, 'longest', 'max_length' "
            "or 'do_not_pad', on 'left' or 'right'."
        )
    lengths = [len(row) for row in rows]
    length = max(lengths)
    if padding == "max_length":
        if max_length is None:
            raise InputError("padding='max_length' needs max_length.")
        length = max(length, max_length)
    if padding in (False, None, "do_not_pad"):
        if min(lengths) != length:
            raise InputError(
                f"The texts have {min(lengths)} to {length} tokens and padding is off; one array cannot "
                "hold them. Leave padding on."
            )
    elif multiple_of:
        length = -(-length // multiple_of) * multiple_of
    ids = np.full((len(rows), length), pad_id, np.int64)
    mask = np.zeros((len(rows), length), np.int64)
    for index, row in enumerate(rows):
        place = slice(length - len(row), length) if side == "left" else slice(0, len(row))
        ids[index, place], mask[index, place] = row, 1
    return ids, mask
