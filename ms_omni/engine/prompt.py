"""Conversations as the engine reads them: the rows of a batch, each without padding and with the media that belong to it."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError
from ..modeling.audio_encoder import audio_token_count, clip_lengths
from ..modeling.cache import KVCache
from ..modeling.forward import given_positions
from ..modeling.packing import finite, host_array, patch_grids, whole_numbers
from ..modeling.positions import get_rope_index, media_runs
from .blocks import CHUNK
from .kv_pool import check_past

DIGEST_BYTES = 16
MEDIA = {"image": ("pixel_values", "image_grid_thw"), "video": ("pixel_values_videos", "video_grid_thw")}
"""Of pictures and videos: the patches of all, one behind the other, and the grid of each."""


@dataclass(frozen=True)
class Medium:
    """A picture, video or sound.

    content: what its encoder takes: patches `[N, C]` and grid int64 `[1, 3]`, or mel frames `[mel, frames]`; indices int32
    `[n]`: which tokens of the prompt its features stand for; pieces: the content in parts that an encoder looks at one by one, and the
    tokens of each, so that others need not wait for the whole: frames of a video, windows of a sound.
    """

    kind: str
    content: tuple[np.ndarray, ...]
    indices: np.ndarray
    pieces: tuple[tuple[tuple[np.ndarray, ...], int], ...]

    def before(self, stop: int) -> "Medium":
        """With no more pieces than have tokens in front of this index."""
        starts = np.cumsum([0, *(count for _, count in self.pieces)])
        count = int((self.indices[starts[:-1]] < stop).sum())
        return replace(self, indices=self.indices[: starts[count]], pieces=self.pieces[:count])


class EncoderCall(NamedTuple):
    """Of an encoder: for a piece of a medium, whose features stand at indices int32 `[n]` of the prompt; digest: of its content:
    equal pieces, wherever they stand, have equal features.
    """

    medium: Medium
    content: tuple[np.ndarray, ...]
    indices: np.ndarray
    digest: bytes


@dataclass(frozen=True)
class Prompt:
    """ids int64 `[T]`; positions float32 `[3, T]`; following: the position of the next token; seconds float `[n]`: of a grid step
    of each video, or None; embeds `[T, D]`, given in place of ids, which then are empty, or None; past_tokens: so many tokens at the
    beginning are in a cache of the caller's, with their media; chunk: tokens that are read at a time.
    """

    ids: np.ndarray
    positions: np.ndarray
    following: np.float32
    media: tuple[Medium, ...] = ()
    seconds: np.ndarray | None = None
    embeds: np.ndarray | None = None
    past_tokens: int = 0
    chunk: int = CHUNK

    def __len__(self) -> int:
        return self.positions.shape[1]

    @cached_property
    def calls(self) -> list[EncoderCall]:
        """Of encoders, in the order in which reading needs them."""
        found = []
        for medium in self.media:
            start = 0
            for content, count in medium.pieces:
                own = digest(medium.kind.encode(), *content)
                found.append(EncoderCall(medium, content, medium.indices[start : start + count], own))
                start += count
        return sorted(found, key=lambda call: call.indices[-1])

    def grids(self) -> dict[str, Any]:
        """Of its pictures and videos, as `get_rope_index` takes them, None where there are none."""
        found = {kind: [medium.content[1] for medium in self.media if medium.kind == kind] for kind in MEDIA}
        return {f"{kind}_grid_thw": np.concatenate(grids) if grids else None for kind, grids in found.items()} | {
            "second_per_grids": self.seconds
        }

    def prefix(self, grows: bool) -> "Prompt":
        """Its full chunks alone; grows: as far as they stand in front of the last piece of its last sound, which may change."""
        stop = len(self)
        if grows:
            sounds = [call for call in self.calls if call.medium.kind == "audio"]
            stop = int(sounds[-1].indices[0]) if sounds else 0
        stop -= stop % self.chunk
        media = tuple(medium.before(stop) for medium in self.media if medium.indices[0] < stop)
        embeds = None if self.embeds is None else self.embeds[:stop]
        return replace(self, ids=self.ids[:stop], positions=self.positions[:, :stop], media=media, embeds=embeds)

    def keys(self) -> tuple[bytes, ...]:
        """One for each of its full chunks: equal keys mean that the same was read from the first token on, in such chunks."""
        found, size = [], self.chunk
        key = digest(size.to_bytes(4, "little"))
        for stop in range(size, len(self) + 1, size):
            key = digest(key, self.digest(stop - size, stop))
            found.append(key)
        return tuple(found)

    def digest(self, start: int, stop: int) -> bytes:
        """Of all that reading the tokens `[start, stop)` takes, beside what was read before them."""
        text = self.ids if self.embeds is None else self.embeds
        parts = [text[start:stop], self.positions[:, start:stop]]
        for call in self.calls:
            inside = np.flatnonzero((call.indices >= start) & (call.indices < stop))
            if len(inside):
                parts += [call.digest, inside[:1], call.indices[inside] - start]
        return digest(*parts)


def digest(*parts: bytes | np.ndarray) -> bytes:
    """A fingerprint of bytes and of arrays, by type, shape and content."""
    state = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        if isinstance(part, np.ndarray):
            state.update(f"{part.dtype}{part.shape}".encode())
            part = np.ascontiguousarray(part).view(np.ndarray).reshape(-1).view(np.uint8).data
        state.update(part)
    return state.digest()


def prompts(
    config: Any, inputs: Mapping[str, Any], valid: np.ndarray, cache: KVCache | None = None, chunk: int | None = None
) -> list[Prompt]:
    """The conversations of a batch. inputs: of the thinker, as one call of the processor returns them; valid bool `[B, T]`:
    which tokens are no padding; cache: holds the first of them; chunk: tokens that are read at a time.

    Raises `InputError` where placeholders and media disagree.
    """
    chunk = chunk or CHUNK
    if cache is not None and cache.length:
        return _continued(config, inputs, valid, cache, chunk)
    positions, deltas = _positions(config, inputs, valid)
    embeds = None if "inputs_embeds" not in inputs else host_array(inputs["inputs_embeds"])
    ids = host_array(inputs["input_ids"]).astype(np.int64) if embeds is None else np.empty((len(valid), 0), np.int64)
    media = _Media(config, inputs, chunk)
    found = []
    for row, mask in enumerate(valid):
        line = ids[row][mask] if embeds is None else ids[row]
        own = () if embeds is not None else tuple(media.in_row(line))
        following = np.float32(deltas[row, 0] + np.float32(mask.sum()))
        given = None if embeds is None else embeds[row][mask]
        seconds = media.seconds_of(own)
        own_positions = np.ascontiguousarray(positions[:, row, mask])
        found.append(Prompt(line, own_positions, following, own, seconds, given, chunk=chunk))
    media.finish()
    return found


def _continued(config, inputs, valid, cache, chunk):
    """The conversations of which a cache holds the beginning, with media and positions: plain text goes on from there."""
    ids = host_array(inputs["input_ids"]) if "input_ids" in inputs else None
    check_past(cache, ids, valid, [config.image_token_id, config.video_token_id, config.audio_token_id])
    past_tokens, deltas = valid[:, : cache.length].sum(axis=1), getattr(cache, "rope_deltas", None)
    deltas = np.zeros((len(valid), 1), np.float32) if deltas is None else deltas
    found = []
    for row, mask in enumerate(valid):
        line = host_array(inputs["input_ids"])[row][mask].astype(np.int64)
        positions = np.broadcast_to(np.arange(len(line), dtype=np.float32) + deltas[row, 0], (3, len(line)))
        following = np.float32(len(line) + deltas[row, 0])
        found.append(Prompt(line, positions, following, past_tokens=int(past_tokens[row]), chunk=chunk))
    return found


def _positions(config, inputs, valid):
    """Positions float32 `[3, B, T]` and deltas `[B, 1]`: given ones, those of plain text, or read off the tokens."""
    count = valid.sum(axis=1, keepdims=True).astype(np.float32)
    if inputs.get("position_ids") is not None:
        positions = given_positions(inputs["position_ids"], valid.shape)[0]
        last = np.where(valid, positions.max(axis=0), -np.inf).max(axis=1, keepdims=True)
        return positions, last.astype(np.float32) + 1 - count
    if "inputs_embeds" in inputs:
        line = np.maximum(np.cumsum(valid, axis=1) - 1, 0).astype(np.float32)
        return np.broadcast_to(line, (3, *valid.shape)), np.zeros_like(count)
    merge = config.vision_config.spatial_merge_size
    given = [(name, inputs.get(name)) for name in ("image_grid_thw", "video_grid_thw")]
    images, videos = (None if grid is None else patch_grids(grid, name, merge) for name, grid in given)
    seconds = inputs.get("video_second_per_grid")
    seconds = None if seconds is None else host_array(seconds)
    return get_rope_index(config, merge, host_array(inputs["input_ids"]), valid, images, videos, seconds)


class _Media:
    """The media of a batch, handed out in the order in which their placeholders stand in its rows."""

    def __init__(self, config, inputs, chunk) -> None:
        self.chunk = chunk
        self.config, self.merge = config, config.vision_config.spatial_merge_size
        self.tokens = {"image": config.image_token_id, "video": config.video_token_id, "audio": config.audio_token_id}
        self.waiting: dict[str, Iterator[tuple]] = {kind: _cut(inputs, *names, self.merge) for kind, names in MEDIA.items()}
        self.waiting["audio"] = _clips(inputs)
        seconds = inputs.get("video_second_per_grid")
        self.seconds = None if seconds is None else host_array(seconds).reshape(-1)

    def in_row(self, ids: np.ndarray) -> Iterator[Medium]:
        for run, start, stop in media_runs(ids, self.config):
            for kind in ("video", "audio") if run == "audio_in_video" else (run,):
                indices = start + np.flatnonzero(ids[start:stop] == self.tokens[kind]).astype(np.int32)
                while len(indices):  # sounds may stand side by side
                    medium, indices = self._take(kind, indices)
                    yield medium

    def seconds_of(self, media):
        """Those of a row's videos, which are taken in order."""
        count = sum(medium.kind == "video" for medium in media)
        if not count or self.seconds is None:
            return None
        own, self.seconds = self.seconds[:count], self.seconds[count:]
        return own

    def _take(self, kind, indices):
        content = next(self.waiting[kind], None)
        if content is None:
            raise InputError(
                f"the prompt has {len(indices)} {kind} placeholders more than the {kind} inputs have tokens for; pass all that "
                "the processor returned"
            )
        count = self._count(kind, content)
        if count > len(indices):
            raise InputError(
                f"the prompt has {len(indices)} placeholders for a medium ({kind}) that makes {count} tokens; pass the ids and "
                "features of one processor call"
            )
        return Medium(kind, content, indices[:count], tuple(self._pieces(kind, content))), indices[count:]

    def _count(self, kind, content):
        if kind == "audio":
            return int(audio_token_count(content[0].shape[1], self.config.audio_config.n_window))
        return int(content[1].prod()) // self.merge**2

    def _pieces(self, kind, content):
        """Parts of at most `chunk` tokens where it can be cut, each with its tokens; see `Medium`."""
        if kind == "audio":
            yield from self._windows(*content)
            return
        patches, ((frames, height, width),) = content[0], content[1].tolist()
        area = height * width
        step = max(self.chunk * self.merge**2 // area, 1) if kind == "video" else frames
        for a, b in pairwise([*range(0, frames, step), frames]):
            part = patches[a * area : b * area], np.array([[b - a, height, width]])
            yield part, self._count(kind, part)

    def _windows(self, mel):
        """Of a sound. A rest that is no chunk of mel frames is padded to one only beside another: it stays with the window before
        it, or, where windows are to be found again when the sound has grown, it comes with a silent chunk to be encoded first.
        """
        audio, frames = self.config.audio_config, mel.shape[1]
        window, least = audio.n_window_infer, 2 * audio.n_window
        starts = list(range(0, frames, window * max(self.chunk // int(audio_token_count(window, audio.n_window)), 1)))
        short = len(starts) > 1 and frames - starts[-1] < least
        if short and self.chunk == CHUNK:
            starts.pop()
        parts: list[tuple] = [(mel[:, a:b],) for a, b in pairwise([*starts, frames])]
        if short and self.chunk != CHUNK:
            parts[-1] += (np.zeros((len(mel), least), np.float32),)
        for part in parts:
            yield part, self._count("audio", part)

    def finish(self):
        """Raises `InputError` for media that no row shows."""
        for kind, waiting in self.waiting.items():
            left = sum(1 for _ in waiting)
            if left:
                raise InputError(
                    f"{left} {kind} inputs have no placeholders in the prompt; pass the ids and features of one call"
                )


def _cut(inputs, pixels, grids, merge):
    """The patches and the grid of each picture or video."""
    if inputs.get(pixels) is None:
        return
    if inputs.get(grids) is None:
        raise InputError(f"{pixels} came without {grids}; pass the grids of one processor call")
    patches, start = finite(inputs[pixels], pixels), 0
    rows = patch_grids(inputs[grids], grids, merge)
    if rows.prod(axis=1).sum() != len(patches):
        raise InputError(
            f"{grids} {rows.tolist()} describes {rows.prod(axis=1).sum()} patches, but {pixels} has {len(patches)}"
        )
    for grid in rows:
        stop = start + int(grid.prod())
        yield patches[start:stop], grid[None]
        start = stop


def _clips(inputs):
    """The mel frames `[mel, frames]` of each sound."""
    if inputs.get("input_features") is None:
        return
    features = finite(inputs["input_features"], "input_features")
    lengths = inputs.get("audio_feature_lengths")
    lengths = None if lengths is None else whole_numbers(lengths, "audio_feature_lengths").reshape(-1)
    if features.ndim == 2:
        if lengths is None:
            raise InputError("input_features of shape [mel, frames] need audio_feature_lengths, one per clip")
        yield from ((clip,) for clip in np.split(features, np.cumsum(lengths)[:-1], axis=1))
        return
    lengths = clip_lengths(features, inputs.get("feature_attention_mask"), lengths)
    yield from ((clip[:, :length],) for clip, length in zip(features, lengths))
