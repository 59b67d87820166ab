"""Placeholders in the prompt to as many tokens as the media have."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ms_omni.errors import InputError


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
    video_has_sound: Sequence[bool]  # its sound is among the sounds and is woven in
    merge_size: int
    position_id_per_seconds: float

    def video_tokens_per_grid(self, index: int) -> int:
        """Tokens of one time step of a video."""
        return int(self.video_grids[index][1:].prod()) // self.merge_size**2


def count_placeholders(texts: Sequence[str], token: str) -> int:
    """How often a placeholder stands in all texts together."""
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
            return _weave(index, next(audios), tokens, counts)
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


def _weave(index: int, audio_tokens: int, tokens: SpecialTokens, counts: MediaCounts) -> str:
    """Video and audio tokens in the order of their time, video first on ties."""
    steps = np.repeat(np.arange(int(counts.video_grids[index][0])), counts.video_tokens_per_grid(index))
    video_times = steps * float(counts.video_second_per_grid[index]) * float(counts.position_id_per_seconds)
    times = np.concatenate([video_times, np.arange(audio_tokens, dtype=np.float64)])
    is_video = np.argsort(times, kind="stable") < len(video_times)
    woven = "".join(tokens.video_token if video else tokens.audio_token for video in is_video)
    return tokens.audio_bos_token + woven + tokens.audio_eos_token


def videos_with_sound(
    known: Sequence[bool | None], sounds: int, audio_placeholders: int, audio_from_video_indices: Sequence[int | None] | None
) -> list[bool]:
    """Which videos have their sound track among the sounds.

    Args:
        known: for each video, whether its file has sound; None if it came as bare frames.
        sounds: number of sounds given, sound tracks included.
        audio_placeholders: number of sounds that have a place of their own in the text.
        audio_from_video_indices: the caller's own word: for each sound the video it belongs to, or None.

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
