"""The media of a conversation, in the order in which the prompt's placeholders appear."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image

from ms_omni.errors import InputError
from ms_omni.media.audio import load_audio, load_sound_track
from ms_omni.media.image import load_image
from ms_omni.media.options import (
    SamplingOptions,
    SizeOptions,
    number,
    sampling_options,
    size_options,
    time_range,
    warn_unknown_options,
)
from ms_omni.media.sizes import VIDEO_MAX_PIXELS, VIDEO_MIN_PIXELS, image_size, video_size
from ms_omni.media.sources import is_source, open_source
from ms_omni.media.video import SizeRule, VideoClip, VideoFrames, load_video, resize_clip

KINDS = ("image", "audio", "video")
MERGE_SIZE = 2
LOADER_PATCH_SIZE = 16
_IMAGE_TOKEN_LIMITS = (4, 16384)  # of qwen_omni_utils


@dataclass(frozen=True)
class MediaPart:
    """One picture, sound or video item: kind, source (None: a bare placeholder), options, and where it stands."""

    kind: str
    value: Any
    item: Mapping[str, Any]
    where: str


@dataclass
class MediaItems:
    """Loaded media of one or several conversations; sound tracks stand among the audios, in the order of the prompt."""

    images: list[tuple[Image.Image, SizeOptions]] = field(default_factory=list)
    videos: list[VideoClip] = field(default_factory=list)
    audios: list[np.ndarray] = field(default_factory=list)


def as_batch(conversations: Any) -> tuple[list[Sequence[Mapping[str, Any]]], bool]:
    """A list of conversations, and whether several were given (rather than one).

    Raises:
        InputError: not a list of messages, nor a list of those.
    """
    if isinstance(conversations, Mapping):
        raise InputError("A conversation is a list of messages; got a single message. Put it in a list.")
    if not isinstance(conversations, (list, tuple)) or not conversations:
        raise InputError(f"A conversation is a non-empty list of messages; got {_kind_of(conversations)}.")
    several = not isinstance(conversations[0], Mapping)
    batch = list(conversations) if several else [conversations]
    for number_in_batch, conversation in enumerate(batch):
        if not isinstance(conversation, (list, tuple)) or not conversation:
            raise InputError(
                f"Conversation {number_in_batch} must be a non-empty list of messages; got {_kind_of(conversation)}."
            )
        for index, message in enumerate(conversation):
            if not isinstance(message, Mapping) or "role" not in message:
                raise InputError(
                    f"Message {index} of conversation {number_in_batch} must be a dict with a role and "
                    f"content; got {_kind_of(message)}."
                )
    return batch, several


def media_parts(conversation: Sequence[Mapping[str, Any]], where: str = "") -> Iterator[MediaPart]:
    """Picture, sound and video items of one conversation, in order.

    Raises:
        InputError: an item of unknown type, or with several sources.
    """
    for message_index, message in enumerate(conversation):
        content = message.get("content")
        if isinstance(content, Mapping):
            raise InputError(f"{where}Message {message_index}: content is a dict; put it in a list.")
        if not isinstance(content, (list, tuple)):
            continue
        for part_index, item in enumerate(content):
            place = f"{where}message {message_index}, item {part_index}"
            if isinstance(item, str):
                continue
            if not isinstance(item, Mapping):
                raise InputError(
                    f"{place} is a {type(item).__name__}; expected a dict with a type, such as "
                    "{'type': 'text', 'text': ...}."
                )
            kind = media_kind(item, place)
            if kind is not None:
                yield MediaPart(kind, _source_of(item, kind, place), item, f"{place} ({kind})")


def media_kind(item: Mapping[str, Any], place: str) -> str | None:
    """ "image", "audio" or "video", by the type or else by the keys; None for text.

    Raises:
        InputError: a type that is none of these.
    """
    stated = item.get("type")
    if stated is None:
        found = [kind for kind in KINDS if item.get(kind) is not None or item.get(f"{kind}_url") is not None]
        if len(found) == 1:
            return found[0]
        if not found and "text" in item:
            return None
        raise InputError(
            f"{place} has no type, and its keys ({', '.join(map(str, item))}) do not tell; add 'type': "
            f"one of text, {', '.join(KINDS)}."
        )
    kind = stated.removesuffix("_url") if isinstance(stated, str) else None
    if kind in KINDS:
        return kind
    if stated == "text":
        return None
    raise InputError(f"{place} has the type {stated!r}; accepted are text, {', '.join(KINDS)}.")


def _source_of(item: Mapping[str, Any], kind: str, place: str) -> Any:
    """The one source among the item's keys, with OpenAI's {"url": ...} unwrapped; None when there is none."""
    keys = [key for key in (kind, f"{kind}_url", "path", "url") if item.get(key) is not None]
    if len(keys) > 1:
        raise InputError(f"{place} names its {kind} {len(keys)} times ({', '.join(keys)}); keep one.")
    if not keys:
        return None
    value = item[keys[0]]
    if isinstance(value, Mapping):
        if not isinstance(value.get("url"), str):
            raise InputError(f"{place}: {keys[0]} is a dict without a 'url' string.")
        return value["url"]
    return value


def collect_media(
    batch: Sequence[Sequence[Mapping[str, Any]]],
    use_audio_in_video: bool = False,
    *,
    sampling: SamplingOptions = SamplingOptions(),
    size_rule: SizeRule | None = None,
) -> MediaItems:
    """Load everything that a batch of conversations refers to.

    Args:
        batch: as `as_batch` returns it.
        use_audio_in_video: also load the sound tracks of the videos that have one; the others stay silent videos.
        sampling: for videos that do not say themselves.
        size_rule: see `load_video`.

    Raises:
        InputError, MediaError: an item that cannot be understood or read.
    """
    media = MediaItems()
    for index, conversation in enumerate(batch):
        for part in media_parts(conversation, f"Conversation {index}, " if len(batch) > 1 else ""):
            if part.value is None:
                raise InputError(
                    f"{part.where} names no {part.kind}; add one of the keys {part.kind}, {part.kind}_url, path or url."
                )
            warn_unknown_options(part.item, part.kind, part.where)
            if part.kind == "image":
                media.images.append((load_image(part.value, part.where), size_options(part.item, part.where)))
            elif part.kind == "audio":
                media.audios.append(load_audio(part.value, *time_range(part.item, "audio", part.where), part.where))
            else:
                _add_video(media, part, use_audio_in_video, sampling, size_rule)
    return media


def _add_video(
    media: MediaItems, part: MediaPart, use_audio_in_video: bool, defaults: SamplingOptions, size_rule: SizeRule | None
) -> None:
    value, own = part.value, sampling_options(part.item, part.where)
    if is_source(value):
        value = open_source(value, "video")  # once: an address is not downloaded again for its sound
    chosen = own
    if own.fps is None and own.nframes is None:
        chosen = SamplingOptions(
            defaults.fps,
            defaults.nframes,
            own.min_frames or defaults.min_frames,
            own.max_frames or defaults.max_frames,
            own.video_start_s,
            own.video_end_s,
        )
    # Frames given one by one are all taken; some scripts call their rate fps.
    rate = number(part.item, "sample_fps", part.where) or (None if is_source(part.value) else own.fps)
    clip = load_video(
        value, chosen, size_options(part.item, part.where), sample_fps=rate, size_rule=size_rule, name=part.where
    )
    media.videos.append(clip)
    if use_audio_in_video and clip.has_audio:
        media.audios.append(load_sound_track(value, chosen.video_start_s, chosen.video_end_s))


def process_mm_info(
    conversations: Any,
    use_audio_in_video: bool,
    return_video_kwargs: bool = False,
    return_video_metadata: bool = False,
    image_patch_size: int | None = None,
) -> tuple[Any, ...]:
    """Drop-in for `qwen_omni_utils.process_mm_info`: audios, images, videos (and video kwargs) of the conversations.

    It differs where the original harms: pictures and frames keep their own size, unless an item carries size options or
    `image_patch_size` is given, because the processor resizes them anyway; a video without sound is allowed under
    `use_audio_in_video`; frames are uint8 numpy, and remember their rate (`VideoFrames`).

    Args:
        conversations: one conversation (a list of messages) or a list of them.
        use_audio_in_video: put the sound tracks of videos among the audios.
        return_video_kwargs: return a fourth value for the processor, `{"do_sample_frames": False, "fps": [...]}`.
        return_video_metadata: return `(frames, metadata)` for each video, and no `fps` in the fourth value.
        image_patch_size: resize here already, to multiples of twice this, as the original does (its default is 14).

    Returns:
        `(audios, images, videos)` or `(audios, images, videos, video_kwargs)`. Audios are float32 arrays at 16 kHz,
        images RGB PIL images, videos uint8 `[T, C, H, W]`; each of the three is None when there are none.

    Raises:
        InputError, MediaError: an item that cannot be understood or read; the message says which.
    """
    batch, _ = as_batch(conversations)
    media = collect_media(batch, use_audio_in_video)
    factor = (image_patch_size or LOADER_PATCH_SIZE) * MERGE_SIZE
    images = [_sized_image(image, options, factor, image_patch_size is not None) for image, options in media.images]
    clips = [_sized_clip(clip, factor, image_patch_size is not None) for clip in media.videos]
    videos = [(VideoFrames(clip), clip.metadata) if return_video_metadata else VideoFrames(clip) for clip in clips]
    result = (media.audios or None, images or None, videos or None)
    if not return_video_kwargs:
        return result
    video_kwargs: dict[str, Any] = {"do_sample_frames": False}
    if not return_video_metadata:
        video_kwargs["fps"] = [clip.sample_fps for clip in clips]
    return (*result, video_kwargs)


def _sized_image(image: Image.Image, options: SizeOptions, factor: int, always: bool) -> Image.Image:
    if not (always or options):
        return image
    low, high = (tokens * factor * factor for tokens in _IMAGE_TOKEN_LIMITS)
    height, width = image_size(image.height, image.width, factor, low, high, options, "The picture")
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _sized_clip(clip: VideoClip, factor: int, always: bool) -> VideoClip:
    if not (always or clip.sizes):
        return clip
    scale = factor * factor / (LOADER_PATCH_SIZE * MERGE_SIZE) ** 2
    low, high = int(VIDEO_MIN_PIXELS * scale), int(VIDEO_MAX_PIXELS * scale)

    def rule(frames: int, height: int, width: int, options: SizeOptions, name: str) -> tuple[int, int]:
        return video_size(frames, height, width, factor, low, high, options, name)

    # Multiples of another factor are resized once more by the processor, as in the reference recipe.
    return replace(resize_clip(clip, rule), sized=always is False)


def _kind_of(value: Any) -> str:
    empty = isinstance(value, (list, tuple, str)) and not value
    return f"an empty {type(value).__name__}" if empty else type(value).__name__
