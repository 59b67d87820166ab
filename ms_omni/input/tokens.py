"""Expanded prompts to arrays of token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ms_omni.errors import InputError
from ms_omni.input.files import PAD_TOKEN
from ms_omni.input.prompt import SpecialTokens
from ms_omni.input.tokenizer import ENCODING

MOST_TOKENS = 1 << 20
# Per token, and what stands for padding: what the tokenizer can return beside the ids.
_FIELDS = {"token_type_ids": 0, "special_tokens_mask": 1, "offset_mapping": (0, 0)}


def tokenize(
    tokenizer: Any, texts: Sequence[str], options: Mapping[str, Any], special: SpecialTokens
) -> dict[str, np.ndarray]:
    """Ids and mask `[B, T]` int64, and what else was asked for.

    Args:
        options: padding, padding_side, truncation, max_length, pad_to_multiple_of, add_special_tokens, and which of
            attention_mask, token_type_ids, special_tokens_mask, offset_mapping `[B, T, 2]`, length `[B]` and
            mm_token_type_ids (1 picture, 2 video, 3 sound) to return.

    Raises:
        InputError: an empty text, or truncation that would cut media tokens off.
    """
    truncation, max_length = options.get("truncation", False), options.get("max_length")
    names = ("return_token_type_ids", "return_special_tokens_mask", "return_offsets_mapping")
    with ENCODING:
        encoded = tokenizer(
            list(texts),
            add_special_tokens=options.get("add_special_tokens", True),
            padding=False,
            truncation=truncation,
            max_length=max_length if truncation else None,
            **{name: bool(options.get(name, False)) for name in names},
        )
    rows = [list(row) for row in encoded["input_ids"]]
    placeholders = (special.image_token, special.video_token, special.audio_token)
    placeholder_ids = tokenizer.convert_tokens_to_ids(list(placeholders))
    for token, token_id in zip(placeholders, placeholder_ids):
        if truncation and [row.count(token_id) for row in rows] != [text.count(token) for text in texts]:
            raise InputError(
                f"truncation to {max_length} tokens cuts off some of the media's {token} tokens. "
                "Raise max_length or turn truncation off."
            )
    if not all(rows):
        raise InputError("A text is empty: it has no tokens.")
    lengths, side = [len(row) for row in rows], options.get("padding_side") or _own_side(tokenizer)
    length = padded_length(
        lengths, padding=options.get("padding", True), max_length=max_length, multiple_of=options.get("pad_to_multiple_of")
    )
    fields: dict[str, Any] = {"input_ids": pad_rows(rows, length, tokenizer.convert_tokens_to_ids(PAD_TOKEN), side)}
    if options.get("return_attention_mask", True):
        fields["attention_mask"] = pad_rows([[1] * count for count in lengths], length, 0, side)
    fields |= {name: pad_rows(encoded[name], length, fill, side) for name, fill in _FIELDS.items() if name in encoded}
    if options.get("return_length"):
        fields["length"] = np.array(lengths, np.int64)
    if options.get("return_mm_token_type_ids"):
        fields["mm_token_type_ids"] = sum((fields["input_ids"] == one) * kind for kind, one in enumerate(placeholder_ids, 1))
    return fields


def _own_side(tokenizer) -> str:
    """As in the reference: the tokenizer's side counts where its files or `from_pretrained` named one."""
    return tokenizer.padding_side if "padding_side" in getattr(tokenizer, "init_kwargs", ()) else "left"


def padded_length(
    lengths: Sequence[int], *, padding: bool | str = True, max_length: int | None = None, multiple_of: int | None = None
) -> int:
    """The length of the array that holds rows of these lengths.

    Args:
        padding: True or "longest"; "max_length"; False or "do_not_pad" (rows must then be of one length).
        max_length: for "max_length".
        multiple_of: round the length up to a multiple.

    Raises:
        InputError: an unknown choice, or rows that cannot stand in one array.
    """
    padding = getattr(padding, "value", padding)
    if padding not in (True, False, None, "longest", "max_length", "do_not_pad"):
        raise InputError(f"padding is {padding!r}; expected True, False, 'longest', 'max_length' or 'do_not_pad'.")
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
    if length > max(MOST_TOKENS, *lengths):
        raise InputError(
            f"The texts have up to {max(lengths)} tokens and would be padded to {length}; at most {MOST_TOKENS} are filled up. "
            "Lower max_length or pad_to_multiple_of."
        )
    return length


def pad_rows(rows: Sequence[Sequence[Any]], length: int, fill: Any, side: str = "left") -> np.ndarray:
    """Rows of one value, or a pair of them, per token as one array int64 `[B, length]` or `[B, length, 2]`.

    Raises:
        InputError: a side that is neither "left" nor "right".
    """
    if side not in ("left", "right"):
        raise InputError(f"padding_side is {side!r}; expected 'left' or 'right'.")
    array = np.full((len(rows), length, *np.shape(fill)), fill, np.int64)
    for index, row in enumerate(rows):
        place = slice(length - len(row), length) if side == "left" else slice(0, len(row))
        array[index, place] = row
    return array
