"""The media of conversations, loaded in the order in which the prompt's placeholders appear."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from ms_omni.errors import InputError
from ms_omni.input.audio import load_audio, load_sound_track
from ms_omni.input.image import load_image
from ms_omni.input.messages import Item, Message, media_items
from ms_omni.input.options import (
    SamplingOptions,
    SizeOptions,
    number,
    sampling_options,
    size_options,
    time_range,
    warn_unknown_options,
)
from ms_omni.input.sources import is_source, open_source
from ms_omni.input.video import SizeRule, VideoClip, has_sound, load_video


@dataclass
class MediaItems:
    """Loaded media of one or several conversations; sound tracks stand among the audios, in the order of the prompt."""

    images: list[tuple[Image.Image, SizeOptions]] = field(default_factory=list)
    videos: list[VideoClip] = field(default_factory=list)
    audios: list[np.ndarray] = field(default_factory=list)


def collect_media(
    batch: Sequence[Sequence[Message]],
    use_audio_in_video: bool | Sequence[bool] = False,
    *,
    sampling: SamplingOptions = SamplingOptions(),
    size_rule: SizeRule | None = None,
) -> MediaItems:
    """Load everything that a batch of conversations refers to.

    Args:
        batch: as `read_batch` returns it.
        use_audio_in_video: also load the sound tracks of the videos that have one; the others stay silent videos. One
            word for all conversations, or one for each.
        sampling: for videos that do not say themselves.
        size_rule: see `load_video`.

    Raises:
        InputError, MediaError: an item that cannot be understood or read.
    """
    media = MediaItems()
    for item, hear in items_with_sound(batch, use_audio_in_video):
        if item.kind == "image":
            media.images.append((load_image(item.value, item.where), size_options(item.options, item.where)))
        elif item.kind == "audio":
            media.audios.append(load_sound(item))
        else:
            _add_video(media, item, hear, sampling, size_rule)
    return media


def items_with_sound(
    batch: Sequence[Sequence[Message]], use_audio_in_video: bool | Sequence[bool]
) -> Iterable[tuple[Item, bool]]:
    """Each media item of a batch, and whether the sound of its conversation's videos is heard.

    Raises:
        InputError: an item without a medium, or another number of words than conversations.
    """
    one = isinstance(use_audio_in_video, (bool, np.bool_, int))
    flags = [bool(use_audio_in_video)] * len(batch) if one else [bool(flag) for flag in use_audio_in_video]
    if len(flags) != len(batch):
        raise InputError(
            f"use_audio_in_video has {len(flags)} values for {len(batch)} conversation(s); give one word, or one for each."
        )
    for messages, hear in zip(batch, flags):
        for item in media_items(messages):
            if item.value is None:
                raise InputError(
                    f"{item.where} names no {item.kind}; add one of the keys {item.kind}, {item.kind}_url, path or url."
                )
            warn_unknown_options(item.options, item.kind, item.where)
            yield item, hear


def load_sound(item: Item) -> np.ndarray:
    """The samples of an audio item: float32 `[samples]` at 16 kHz."""
    return load_audio(item.value, *time_range(item.options, "audio", item.where), item.where)


def load_sound_of_video(item: Item) -> np.ndarray | None:
    """The samples of a video item's sound track; None when there is none."""
    if not is_source(item.value):
        return None
    source, own = open_source(item.value, "video"), sampling_options(item.options, item.where)
    return load_sound_track(source, own.video_start_s, own.video_end_s) if has_sound(source) else None


def load_clip(
    item: Item,
    value: Any = None,
    defaults: SamplingOptions = SamplingOptions(),
    size_rule: SizeRule | None = None,
) -> VideoClip:
    """The chosen frames of a video item; `value` is its source when somebody has opened it already."""
    value = item.value if value is None else value
    own = sampling_options(item.options, item.where)
    chosen = own
    if own.fps is None and own.nframes is None:
        chosen = SamplingOptions(
            defaults.fps,
            defaults.nframes,
            own.min_frames or defaults.min_frames,
            own.max_frames or defaults.max_frames,
            own.video_start_s,
            own.video_end_s,
            defaults.every_frame,
        )
    # Frames given one by one are all taken; some scripts call their rate fps.
    rate = number(item.options, "sample_fps", item.where) or (None if is_source(value) else own.fps)
    sizes = size_options(item.options, item.where)
    return load_video(value, chosen, sizes, sample_fps=rate, size_rule=size_rule, name=item.where)


def _add_video(media: MediaItems, item: Item, hear: bool, defaults: SamplingOptions, size_rule: SizeRule | None) -> None:
    value = item.value
    if is_source(value):
        value = open_source(value, "video")  # once: an address is not downloaded again for its sound
    clip = load_clip(item, value, defaults, size_rule)
    media.videos.append(clip)
    if hear and clip.has_audio:
        own = sampling_options(item.options, item.where)
        media.audios.append(load_sound_track(value, own.video_start_s, own.video_end_s))
