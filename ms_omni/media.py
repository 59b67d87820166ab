"""Files, URLs and arrays to RGB pictures, 16 kHz mono sound and sampled video frames; and counterparts of `qwen_omni_utils` (0.0.9),
with the same names, arguments and results. No MindSpore, no PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from ms_omni.errors import InputError
from ms_omni.input.access import AccessPolicy, policy_scope
from ms_omni.input.audio import SAMPLING_RATE_HZ
from ms_omni.input.image import VIDEO_MAX_PIXELS, VIDEO_MIN_PIXELS, image_size, resized, video_size
from ms_omni.input.image import smart_resize as fit_size
from ms_omni.input.load import load_audio, load_image, load_item, load_items, load_video
from ms_omni.input.media import Media, MediaLimits, SizeOptions, VideoFrames, limits
from ms_omni.input.messages import Item, Message, read_batch, read_item

__all__ = [
    "SAMPLING_RATE_HZ",
    "AccessPolicy",
    "Item",
    "Media",
    "MediaLimits",
    "Message",
    "VideoFrames",
    "extract_vision_info",
    "fetch_image",
    "fetch_video",
    "limits",
    "load_audio",
    "load_image",
    "load_video",
    "process_audio_info",
    "process_mm_info",
    "process_vision_info",
    "read_batch",
    "smart_resize",
]


MERGE_SIZE = 2
LOADER_PATCH_SIZE = 16
_UTILS_PATCH_SIZE = 14  # the default of `fetch_image` and `fetch_video` there
_IMAGE_TOKEN_LIMITS = (4, 16384)


def process_mm_info(
    conversations: Any,
    use_audio_in_video: bool | Sequence[bool] = False,
    return_video_kwargs: bool = False,
    return_video_metadata: bool = False,
    image_patch_size: int | None = None,
    *,
    policy: AccessPolicy | None = None,
) -> tuple[Any, ...]:
    """Drop-in for `qwen_omni_utils.process_mm_info`: audios, images, videos (and video kwargs) of the conversations.

    It differs where the original harms: pictures and frames keep their own size, unless an item carries size options or
    `image_patch_size` is given, because the processor resizes them anyway; a video without sound is allowed under
    `use_audio_in_video`; frames are uint8 arrays, and remember their rate (`VideoFrames`).

    Args:
        conversations: one conversation (a list of messages) or a list of them.
        use_audio_in_video: put the sound tracks of videos among the audios; one value, or one for each conversation.
        return_video_kwargs: return a fourth value for the processor, `{"do_sample_frames": False, "fps": [...]}`.
        return_video_metadata: return `(frames, metadata)` for each video, and no `fps` in the fourth value.
        image_patch_size: resize here already, to multiples of twice this, as the original does (its default is 14).
        policy: which hosts and files may be asked for media.

    Returns:
        `(audios, images, videos)` or `(audios, images, videos, video_kwargs)`. Audios are float32 arrays at 16 kHz,
        images RGB PIL images, videos uint8 `[T, C, H, W]`; each of the three is None when there are none.

    Raises:
        InputError, MediaError: an item that cannot be understood or read; the message says which.
    """
    batch, _ = read_batch(conversations)
    with policy_scope(policy):
        media = load_items(batch, use_audio_in_video)
    vision = _vision(media, return_video_kwargs, return_video_metadata, image_patch_size)
    return (_sounds(media), *vision)


def process_vision_info(
    conversations: Any,
    return_video_kwargs: bool = False,
    return_video_metadata: bool = False,
    image_patch_size: int | None = None,
    *,
    policy: AccessPolicy | None = None,
) -> tuple[Any, ...]:
    """`process_mm_info` without the sounds: `(images, videos)` or `(images, videos, video_kwargs)`."""
    batch, _ = read_batch(conversations)
    with policy_scope(policy):
        media = load_items(batch, kinds=("image", "video"))
    return _vision(media, return_video_kwargs, return_video_metadata, image_patch_size)


def process_audio_info(
    conversations: Any, use_audio_in_video: bool | Sequence[bool], *, policy: AccessPolicy | None = None
) -> list[np.ndarray] | None:
    """The sounds alone, sound tracks of videos among them: float32 `[samples]` at 16 kHz each; None without any."""
    batch, _ = read_batch(conversations)
    with policy_scope(policy):
        return _sounds(load_items(batch, use_audio_in_video, kinds=("audio",)))


def extract_vision_info(conversations: Any) -> list[Any]:
    """The picture and video items of the conversations, as they were given."""
    batch, _ = read_batch(conversations)
    items = (item for messages in batch for message in messages for item in message.media)
    return [item.raw for item in items if item.kind != "audio"]


def smart_resize(
    height: int,
    width: int,
    factor: int = _UTILS_PATCH_SIZE * MERGE_SIZE,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
) -> tuple[int, int]:
    """Height and width as multiples of `factor`, with an area within the limits and about the same aspect ratio.

    Args:
        min_pixels, max_pixels: by default 4 and 16384 times `factor`²; `qwen_omni_utils` takes those of pictures too.

    Raises:
        InputError: limits that cross; MediaError: one side is more than 200 times the other.
    """
    low, high = (tokens * factor * factor for tokens in _IMAGE_TOKEN_LIMITS)
    low, high = low if min_pixels is None else min_pixels, high if max_pixels is None else max_pixels
    if high < low:
        raise InputError(f"smart_resize: min_pixels is {low} and max_pixels {high}; expected min_pixels <= max_pixels.")
    return fit_size(height, width, factor, low, high, least=factor)


def fetch_image(ele: Any, image_patch_size: int = _UTILS_PATCH_SIZE) -> Image.Image:
    """The picture of an item (`{"image": ..., "max_pixels": ...}`), RGB, resized to multiples of twice the patch size.

    Raises:
        InputError, MediaError: an item that is no picture, or that cannot be read.
    """
    item = read_item(ele if isinstance(ele, Mapping) else {"image": ele}, "The picture")
    return _sized_image(load_item(item)[0], image_patch_size * MERGE_SIZE, True)


def fetch_video(
    ele: Any,
    image_patch_size: int = _UTILS_PATCH_SIZE,
    return_video_sample_fps: bool = False,
    return_video_metadata: bool = False,
) -> Any:
    """The sampled frames of an item (`{"video": ..., "fps": ...}`), resized to multiples of twice the patch size.

    Returns:
        frames uint8 `[T, C, H, W]`; `(frames, metadata)` with `return_video_metadata`; and a pair of that and the frames
        per second with `return_video_sample_fps`.

    Raises:
        InputError, MediaError: an item that is no video, or that cannot be read.
    """
    clip = load_item(read_item(ele if isinstance(ele, Mapping) else {"video": ele}, "The video"))[0]
    clip = _sized_clip(clip, image_patch_size * MERGE_SIZE, True)
    result = (VideoFrames(clip), clip.metadata) if return_video_metadata else VideoFrames(clip)
    return (result, clip.sample_fps) if return_video_sample_fps else result


def _sounds(media: Sequence[Media]) -> list[np.ndarray] | None:
    return [medium.data for medium in media if medium.kind == "audio"] or None


def _vision(media: Sequence[Media], return_kwargs: bool, return_metadata: bool, patch_size: int | None) -> tuple[Any, ...]:
    factor, always = (patch_size or LOADER_PATCH_SIZE) * MERGE_SIZE, patch_size is not None
    images = [_sized_image(medium, factor, always) for medium in media if medium.kind == "image"]
    clips = [_sized_clip(medium, factor, always) for medium in media if medium.kind == "video"]
    videos = [(VideoFrames(clip), clip.metadata) if return_metadata else VideoFrames(clip) for clip in clips]
    result = (images or None, videos or None)
    if not return_kwargs:
        return result
    video_kwargs: dict[str, Any] = {"do_sample_frames": False}
    if not return_metadata:
        video_kwargs["fps"] = [clip.sample_fps for clip in clips]
    return (*result, video_kwargs)


def _sized_image(picture: Media, factor: int, always: bool) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(picture.data[0].transpose(1, 2, 0)))
    if not (always or picture.sizes):
        return image
    low, high = (tokens * factor * factor for tokens in _IMAGE_TOKEN_LIMITS)
    height, width = image_size(image.height, image.width, factor, low, high, picture.sizes, picture.name)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _sized_clip(clip: Media, factor: int, always: bool) -> Media:
    if not (always or clip.sizes):
        return clip
    scale = factor * factor / (LOADER_PATCH_SIZE * MERGE_SIZE) ** 2
    low, high = int(VIDEO_MIN_PIXELS * scale), int(VIDEO_MAX_PIXELS * scale)

    def rule(frames: int, height: int, width: int, options: SizeOptions, name: str) -> tuple[int, int]:
        return video_size(frames, height, width, factor, low, high, options, name)

    # Multiples of another factor are resized once more by the processor, as in the reference recipe.
    return replace(resized(clip, rule), sized=always is False)
