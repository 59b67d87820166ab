"""Placeholders in the prompt to as many tokens as the media have, and the expanded prompts to arrays of token ids; transformers'
tokenizers, for several threads and with `return_tensors="pt"` and "ms" as in the processor.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, wraps
from typing import TYPE_CHECKING, Any

import numpy as np

from ms_omni.errors import InputError
from ms_omni.input.interface import ModelInputs

if TYPE_CHECKING:
    from ms_omni.input.arguments import CallOptions

PAD_TOKEN = "<|endoftext|>"
MOST_TOKENS = 1 << 20
FRAMES_PER_CHUNK = 100  # one second of mel frames
TOKENS_PER_CHUNK = 13
_TRUNCATIONS = ("longest_first", "only_first", "only_second", "do_not_truncate")
# What the tokenizer can return for each token beside its id, and the value for padding.
_FIELDS = {"token_type_ids": 0, "special_tokens_mask": 1, "offset_mapping": (0, 0)}
ENCODING = threading.RLock()
"""Held while a tokenizer encodes: it sets padding and truncation for all threads first, and fails while another encodes."""


@dataclass(frozen=True)
class SpecialTokens:
    """Texts of the tokens that stand for media, and that enclose them."""

    image_token: str
    audio_token: str
    video_token: str
    vision_bos_token: str
    vision_eos_token: str
    audio_bos_token: str
    audio_eos_token: str


@dataclass(frozen=True)
class MediaCounts:
    """Tokens per picture, sound (sound tracks included, in the order of the prompt) and video."""

    image_tokens: Sequence[int]
    audio_tokens: Sequence[int]
    video_grids: np.ndarray  # [n, 3]: time, height, width in patches
    video_second_per_grid: Sequence[float]
    video_has_sound: Sequence[bool]  # its sound is among the sounds, and its tokens are interleaved
    merge_size: int
    position_id_per_seconds: float

    def video_tokens_per_grid(self, index: int) -> int:
        """Tokens of one time step of a video."""
        return int(self.video_grids[index][1:].prod()) // self.merge_size**2


def audio_token_count(frames: Any) -> Any:
    """Tokens of `frames` mel frames (int or integer array): 13 for each whole second, the rest halved three times."""
    rest = frames % FRAMES_PER_CHUNK
    halved = (rest - 1) // 2 + 1
    return ((halved - 1) // 2 + 1 - 1) // 2 + 1 + frames // FRAMES_PER_CHUNK * TOKENS_PER_CHUNK


def text_batch(text: Any) -> list[str]:
    """The texts of a batch.

    Raises:
        InputError: None, or not texts.
    """
    if isinstance(text, str):
        return [text]
    if not isinstance(text, (list, tuple)) or not text or not all(isinstance(item, str) for item in text):
        raise InputError(
            "text must be a text or a non-empty list of texts (apply_chat_template makes them of "
            f"conversations); got {'None' if text is None else type(text).__name__}."
        )
    return list(text)


def count_placeholders(texts: Sequence[str], token: str) -> int:
    """How often a placeholder occurs in all texts together."""
    return sum(text.count(token) for text in texts)


def expand_placeholders(texts: Sequence[str], tokens: SpecialTokens, counts: MediaCounts) -> list[str]:
    """Repeat each placeholder as often as its medium has tokens.

    A video with sound becomes vision_bos, audio_bos, both kinds of tokens by time, audio_eos, vision_eos.

    Raises:
        InputError: the numbers of placeholders and media differ, or a video placeholder is not enclosed.
    """
    _check_counts(texts, tokens, counts)
    images, videos = iter(counts.image_tokens), iter(range(len(counts.video_grids)))
    audios = iter(counts.audio_tokens)
    placeholders = (tokens.image_token, tokens.audio_token, tokens.video_token)
    pattern = re.compile("|".join(map(re.escape, placeholders)))

    def replacement(match: re.Match[str]) -> str:
        if match.group() == tokens.image_token:
            return tokens.image_token * next(images)
        if match.group() == tokens.audio_token:
            return tokens.audio_token * next(audios)
        _check_enclosed(match, tokens)
        index = next(videos)
        if counts.video_has_sound[index]:
            return _interleave(index, next(audios), tokens, counts)
        return tokens.video_token * (int(counts.video_grids[index][0]) * counts.video_tokens_per_grid(index))

    return [pattern.sub(replacement, text) for text in texts]


def _check_counts(texts: Sequence[str], tokens: SpecialTokens, counts: MediaCounts) -> None:
    standalone = len(counts.audio_tokens) - sum(counts.video_has_sound)
    rows = (
        ("image", tokens.image_token, len(counts.image_tokens)),
        ("audio", tokens.audio_token, standalone),
        ("video", tokens.video_token, len(counts.video_grids)),
    )
    wrong = [
        f"{count_placeholders(texts, token)} {token} but {given} {kind} item(s)"
        for kind, token, given in rows
        if count_placeholders(texts, token) != given
    ]
    if wrong:
        hint = " (sound tracks of videos not counted)" if any(counts.video_has_sound) else ""
        raise InputError(f"The text holds {'; '.join(wrong)}{hint}. There must be one placeholder for each.")


def _check_enclosed(match: re.Match[str], tokens: SpecialTokens) -> None:
    before, after = match.string[: match.start()], match.string[match.end() :]
    if not (before.endswith(tokens.vision_bos_token) and after.startswith(tokens.vision_eos_token)):
        raise InputError(
            f"The video placeholder at character {match.start()} of the text must stand as "
            f"{tokens.vision_bos_token}{tokens.video_token}{tokens.vision_eos_token}."
        )


def _interleave(index: int, audio_tokens: int, tokens: SpecialTokens, counts: MediaCounts) -> str:
    """Video and audio tokens in the order of their time, video first on ties."""
    steps = np.repeat(np.arange(int(counts.video_grids[index][0])), counts.video_tokens_per_grid(index))
    video_times = steps * float(counts.video_second_per_grid[index]) * float(counts.position_id_per_seconds)
    times = np.concatenate([video_times, np.arange(audio_tokens, dtype=np.float64)])
    is_video = np.argsort(times, kind="stable") < len(video_times)
    interleaved = "".join(tokens.video_token if video else tokens.audio_token for video in is_video)
    return tokens.audio_bos_token + interleaved + tokens.audio_eos_token


def videos_with_sound(
    known: Sequence[bool | None], sounds: int, audio_placeholders: int, audio_from_video_indices: Sequence[int | None] | None
) -> list[bool]:
    """Which videos have their sound track among the sounds.

    Args:
        known: for each video, whether its file has sound; None if it came as bare frames.
        sounds: number of sounds given, sound tracks included.
        audio_placeholders: number of sounds that have a placeholder of their own in the text.
        audio_from_video_indices: as the caller says: for each sound the video it belongs to, or None.

    Raises:
        InputError: the numbers do not fit, or fit in more than one way.
    """
    if audio_from_video_indices is not None:
        return _sound_by_indices(len(known), sounds, audio_from_video_indices)
    open_count = sum(value is None for value in known)
    left = sounds - audio_placeholders - sum(value is True for value in known)
    if left not in (0, open_count):
        raise InputError(
            f"use_audio_in_video: {sounds} sound(s) were given for {audio_placeholders} audio placeholder(s) and "
            f"{len(known)} video(s), of which {sum(value is True for value in known)} are known to have sound and "
            f"{open_count} unknown. Pass the sound tracks among `audio` in the order of the prompt, and "
            "audio_from_video_indices to say which is whose."
        )
    return [left > 0 if value is None else value for value in known]


def _sound_by_indices(videos: int, sounds: int, indices: Sequence[int | None]) -> list[bool]:
    owners = [index for index in indices if index is not None]
    if len(indices) != sounds or len(set(owners)) != len(owners) or any(not 0 <= owner < videos for owner in owners):
        raise InputError(
            f"audio_from_video_indices is {list(indices)!r}; expected for each of the {sounds} sound(s) "
            f"None or the number (below {videos}) of the one video it belongs to."
        )
    if owners != sorted(owners):
        raise InputError(f"audio_from_video_indices is {list(indices)!r}; sounds must come in the order of the prompt.")
    return [index in owners for index in range(videos)]


def tokenize(
    tokenizer: Any, texts: Sequence[str], options: Mapping[str, Any], special: SpecialTokens
) -> dict[str, np.ndarray]:
    """Ids and mask `[B, T]` int64, and what else the options ask for.

    Args:
        options: padding, padding_side, truncation, max_length, pad_to_multiple_of, add_special_tokens, and which of
            attention_mask, token_type_ids, special_tokens_mask, offset_mapping `[B, T, 2]`, length `[B]` and
            mm_token_type_ids (1 picture, 2 video, 3 sound) to return.

    Raises:
        InputError: an empty text, or truncation that would cut media tokens off.
    """
    truncation, max_length = _truncation(options.get("truncation")), options.get("max_length")
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
        fields["mm_token_type_ids"] = sum(
            (fields["input_ids"] == token) * kind for kind, token in enumerate(placeholder_ids, 1)
        )
    return fields


def _truncation(requested: Any) -> bool | str:
    kind = getattr(requested, "value", requested)
    if kind is None or isinstance(kind, bool):
        return bool(kind)
    if not isinstance(kind, str) or kind not in _TRUNCATIONS:
        raise InputError(f"truncation is {requested!r}, expected True, False or one of {', '.join(_TRUNCATIONS)}.")
    return kind


def _own_side(tokenizer: Any) -> str:
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
        InputError: an unknown choice, or rows that one array cannot hold.
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
        columns = slice(length - len(row), length) if side == "left" else slice(0, len(row))
        array[index, columns] = row
    return array


def with_arrays(tokenizer: Any) -> Any:
    """The same tokenizer for several threads, whose results may be arrays that can do what scripts for PyTorch ask of tensors."""
    tokenizer.__class__ = _class_with_arrays(type(tokenizer))
    return tokenizer


def _converted(name: str) -> Callable:
    def method(self: Any, *args: Any, return_tensors: Any = None, **kwargs: Any) -> Any:
        plain = getattr(super(_ArrayResults, self), name)
        kind = getattr(return_tensors, "value", return_tensors)
        if kind not in ("pt", "ms"):
            return plain(*args, return_tensors=return_tensors, **kwargs)
        result = plain(*args, return_tensors="np", **kwargs)
        if isinstance(result, np.ndarray):
            return ModelInputs({"ids": result}).convert_to_tensors(kind)["ids"]
        return ModelInputs(result).convert_to_tensors(kind) if hasattr(result, "keys") else result

    method.__name__ = method.__qualname__ = name
    return method


def _one_at_a_time(name: str, base: type) -> Callable:
    plain = getattr(base, name)

    @wraps(plain)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        with ENCODING:
            return plain(self, *args, **kwargs)

    return method


class _ArrayResults:
    """Put in front of a tokenizer's class: PyTorch is asked for by name in these methods, and not installed."""

    __call__, encode, pad, apply_chat_template = map(_converted, ("__call__", "encode", "pad", "apply_chat_template"))

    def __reduce__(self) -> tuple:
        return _restored, (type(self).__mro__[2], self.__dict__)


@cache
def _class_with_arrays(base: type) -> type:
    encoding = ("_encode_plus", "_batch_encode_plus", "_add_tokens")  # which all public methods call
    methods = {name: _one_at_a_time(name, base) for name in encoding if hasattr(base, name)}
    return type(base.__name__, (_ArrayResults, base), {"__module__": base.__module__, "__doc__": base.__doc__, **methods})


def _restored(base: Any, state: dict[str, Any]) -> Any:
    tokenizer = base.__new__(base)
    tokenizer.__dict__.update(state)
    return with_arrays(tokenizer)


@dataclass
class MultiModalData:
    """Token counts of media; None where not asked for. Read as attributes, `x["..."]` and `"..." in x`."""

    num_image_tokens: list[int] | None = None
    num_video_tokens: list[int] | None = None
    num_audio_tokens: list[int] | None = None
    num_image_patches: list[int] | None = None

    def __contains__(self, key: str) -> bool:
        return getattr(self, key, None) is not None

    def __getitem__(self, key: str) -> list[int]:
        if key in self:
            return getattr(self, key)
        raise KeyError(key)


def count_tokens(
    processor: Any,
    options: CallOptions,
    image_sizes: Sequence[Sequence[int]] | None,
    video_sizes: Sequence[Sequence[int]] | None,
    audio_lengths: Sequence[int] | None,
) -> MultiModalData:
    """Tokens of pictures (height, width), videos (frames, height, width) and sounds (samples), in that processor."""
    data, image, video = MultiModalData(), processor.image_processor, processor.video_processor
    if image_sizes is not None:
        own = options.vision("image")
        data.num_image_patches = [image.get_number_of_image_patches(*size, own) for size in image_sizes]
        data.num_image_tokens = [n // own.get("merge_size", image.merge_size) ** 2 for n in data.num_image_patches]
    if video_sizes is not None:
        own = options.vision("video")
        patches = [video.get_num_of_video_patches(*size, own) for size in video_sizes]
        data.num_video_tokens = [n // own.get("merge_size", video.merge_size) ** 2 for n in patches]
    if audio_lengths is not None:
        hop = processor.feature_extractor.hop_length
        data.num_audio_tokens = [int(audio_token_count(length // hop)) for length in audio_lengths]
    return data
