"""Whatever people pass, the items of conversations and the processor's arguments, as decoded media in the order of the prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from ms_omni.errors import InputError
from ms_omni.input.arguments import fps_per_video, per_video, sampling_options
from ms_omni.input.audio import MOST_CHANNELS, load_audio, load_sound_of_video
from ms_omni.input.image import load_image
from ms_omni.input.media import Media, SamplingOptions, VideoFrames
from ms_omni.input.messages import KINDS, Item, Message
from ms_omni.input.sampling import frame_count
from ms_omni.input.sizes import SizeRule
from ms_omni.input.sources import Source, is_source, open_source, to_array
from ms_omni.input.spellings import is_number_list, sound_pair, unwrapped
from ms_omni.input.video import frames_from_array, load_video


def load_items(
    batch: Sequence[Sequence[Message]],
    use_audio_in_video: bool | Sequence[bool] = False,
    *,
    kinds: Sequence[str] = KINDS,
    sampling: SamplingOptions = SamplingOptions(),
    size_rule: SizeRule | None = None,
    video_metadata: Any = None,
) -> list[Media]:
    """Everything that a batch of conversations refers to, each video's sound track behind it.

    Args:
        batch: as `read_batch` returns it.
        use_audio_in_video: also load the sound tracks of the videos that have one; the others stay silent videos. One
            word for all conversations, or one for each.
        kinds: which kinds to load.
        sampling: for videos that do not say themselves.
        size_rule: see `load_video`.
        video_metadata: fps and total_num_frames of videos that come as frames; one for all, or one for each video.

    Raises:
        InputError: an item without a medium, or another number of words than conversations; MediaError: one that cannot
            be read.
    """
    several = isinstance(use_audio_in_video, (list, tuple, np.ndarray))
    flags: list[Any] = list(use_audio_in_video) if several else [use_audio_in_video] * len(batch)
    if not all(isinstance(flag, (bool, np.bool_)) or flag in (0, 1) for flag in flags):
        raise InputError(
            f"use_audio_in_video is {use_audio_in_video!r}; expected True or False, or one for each conversation."
        )
    if len(flags) != len(batch):
        raise InputError(
            f"use_audio_in_video has {len(flags)} values for {len(batch)} conversation(s); give one word, or one for each."
        )
    media: list[Media] = []
    for messages, hear in zip(batch, flags):
        for item in (item for message in messages for item in message.media):
            if item.value is None:
                raise InputError(
                    f"{item.where} names no {item.kind}; add one of the keys {item.kind}, {item.kind}_url, path or url."
                )
            if item.kind == "video":
                media += _load_video(item, bool(hear), kinds, sampling, size_rule)
            elif item.kind in kinds:
                media.append(load_item(item))
    metadata = iter(per_video(video_metadata, sum(one.kind == "video" for one in media), "video_metadata"))
    known = [next(metadata) if one.kind == "video" else None for one in media]
    return [  # a file knows its own rate
        one if told is None or one.has_audio is not None else described(one, {"video_metadata": told})
        for one, told in zip(media, known)
    ]


def load_item(item: Item) -> Media:
    """The picture or sound of an item, or its video with the item's own options and no sound."""
    if item.kind == "image":
        return _picture(load_image(item.value, item.where), item.where, item)
    if item.kind == "audio":
        return Media("audio", item.where, load_audio(item.value, item.options.start_s, item.options.end_s, item.where))
    return _load_video(item, False, KINDS, SamplingOptions(), None)[0]


def _picture(picture: Image.Image, name: str, item: Item) -> Media:
    return Media("image", name, np.asarray(picture).transpose(2, 0, 1)[None], item.options.sizes)


def _load_video(
    item: Item, hear: bool, kinds: Sequence[str], defaults: SamplingOptions, size_rule: SizeRule | None
) -> list[Media]:
    """A video's frames and, if it is to be heard and has any, its sound."""
    # Opened once: an address is not downloaded again for its sound.
    value = open_source(item.value, "video") if is_source(item.value) else item.value
    media, own = [], item.options
    if "video" in kinds:
        media.append(
            load_video(
                value, own.sampling.over(defaults), own.sizes, sample_fps=own.list_fps, size_rule=size_rule, name=item.where
            )
        )
    if hear and "audio" in kinds and isinstance(value, Source) and all(clip.has_audio for clip in media):
        sound = load_sound_of_video(value, own.start_s, own.end_s)
        media = [replace(clip, has_audio=sound is not None, heard=sound is not None) for clip in media]
        media += [] if sound is None else [Media("audio", item.where, sound)]
    return media


def given_images(images: Any, *, rescaled: bool = False) -> list[Media]:
    """Pictures of the processor's `images`: one, a list of them, an array of them, or a list of such lists.

    Args:
        rescaled: arrays of floats are no steps of 0..255 any more.

    Raises:
        MediaError: one that cannot be used; the message says which.
    """
    return [_given_image(image, f"picture {index}", rescaled) for index, image in enumerate(_flat_images(images))]


def _given_image(image: Any, name: str, rescaled: bool) -> Media:
    array = to_array(image)
    if array is not None and array.dtype.kind == "f" and array.ndim == 3 and (3 in (array.shape[0], array.shape[2])):
        return Media("image", name, frames_from_array(array[None], name, rescaled=rescaled))
    return Media("image", name, np.asarray(load_image(image, name)).transpose(2, 0, 1)[None])


def _flat_images(images: Any) -> list[Any]:
    array = to_array(images)
    if array is not None and array.ndim == 4:
        return list(array)
    if not isinstance(images, (list, tuple)):
        return [images]
    return [flat for image in images for flat in _flat_images(image)]


def given_sounds(audio: Any) -> list[Media]:
    """Sounds of the processor's `audio`: one clip, or a list of clips or of lists of clips.

    A clip is whatever `load_audio` knows: an array or tensor, a list of numbers, (array, sampling rate), a file. An array
    `[n, samples]` that stands alone is a batch of n clips.

    Raises:
        MediaError: a clip that cannot be used; the message says which.
    """
    array = to_array(audio)
    if array is not None:
        batch = array.ndim == 2 and 1 not in array.shape and array.shape[1] > MOST_CHANNELS
        flat = list(array) if batch else [array]
    elif _is_clip(audio):
        flat = [audio]
    else:
        flat = [clip for item in audio for clip in ([item] if _is_clip(item) else item)]
    names = [f"sound {index}" for index in range(len(flat))]
    return [Media("audio", name, load_audio(clip, name=name)) for name, clip in zip(names, flat)]


def _is_clip(value: Any) -> bool:
    return not isinstance(value, (list, tuple)) or is_number_list(value) or sound_pair(value) is not None


def with_sound_tracks(
    sounds: list[Media], videos: Sequence[Any], clips: Sequence[Media], owners: Sequence[int | None] | None
) -> tuple[list[Media], list[Media]]:
    """The sounds of a call with the sound tracks of its video files among them, where the caller has not put them there.

    Args:
        videos: files as `Source`; ready-made frames have no sound.
        clips: what was made of them; one with nothing to hear comes back without sound.
        owners: for each sound the number of the video it belongs to, or None; by default there are only sound tracks.
    """
    if owners is None:
        owners = range(len(videos)) if not sounds else [None] * len(sounds)
    if len(sounds) != sum(owner is None for owner in owners):
        return sounds, list(clips)
    alone, heard, clips = iter(sounds), [], list(clips)
    for owner in owners:
        if owner is None:
            heard.append(next(alone))
        elif 0 <= owner < len(videos) and clips[owner].has_audio and isinstance(videos[owner], Source):
            sound = load_sound_of_video(videos[owner])
            clips[owner] = replace(clips[owner], has_audio=sound is not None)
            heard += [] if sound is None else [Media("audio", f"video {owner}", sound)]
    return heard, clips


def opened_videos(videos: Any) -> list[Any]:
    """The videos of the processor's `videos`, files as `Source`, so that an address is not downloaded again for its sound.

    Args:
        videos: one video, a list of them, or a list (per conversation) of lists of them. A list of pictures is one video
            made of frames; a list of arrays with four axes, of clips or of files is several.
    """
    plain = [unwrapped(video, f"video {index}") for index, video in enumerate(_flat_videos(videos))]
    return [open_source(video, "video") if is_source(video) else video for video in plain]


def _flat_videos(videos: Any) -> list[Any]:
    if not isinstance(videos, (list, tuple)):
        return [videos]
    if not videos:
        return []
    if _is_described(videos):
        return [videos]
    if all(_is_frame(item) for item in videos):
        return [list(videos)]
    flat: list[Any] = []
    for item in videos:
        whole = isinstance(item, list) and item and all(_is_frame(frame) for frame in item)
        nested = isinstance(item, (list, tuple)) and not whole and not _is_described(item)
        flat += _flat_videos(item) if nested else [item]
    return flat


def _is_frame(value: Any) -> bool:
    array = to_array(value)
    return isinstance(value, Image.Image) or (array is not None and array.ndim in (2, 3))


def _is_described(video: Any) -> bool:
    """Whether this is a pair of a video and its metadata."""
    return (
        isinstance(video, tuple)
        and len(video) == 2
        and (isinstance(video[1], dict) or hasattr(video[1], "total_num_frames"))
    )


def given_videos(videos: Sequence[Any], options: Mapping[str, Any]) -> list[Media]:
    """Clips from what a caller may pass as videos, with the frames per second that hold.

    Args:
        videos: `Media`, `VideoFrames`, arrays or tensors `[T, C, H, W]` or `[T, H, W, C]`, lists of frames, files, or
            pairs of one of these and its metadata (fps, total_num_frames).
        options: of a file, fps or num_frames says which frames are taken; do_sample_frames=False takes all, understood at
            fps if that is given. Of ready-made frames all are taken and fps is their rate, unless do_sample_frames or
            num_frames is given: then some of them are taken. video_metadata tells the rate that they had in their file.
            fps and video_metadata may be lists, one entry for each video.

    Raises:
        InputError: options that do not fit together, or fewer frames than asked for; MediaError: unreadable videos.
    """
    rates = fps_per_video(options.get("fps"), len(videos))
    stated = options.get("video_metadata")
    if isinstance(stated, (list, tuple)):
        stated = [one for entry in stated for one in (entry if isinstance(entry, (list, tuple)) else [entry])]
    metadata = per_video(stated, len(videos), "video_metadata")
    return [
        _given_video(video, {**options, "fps": rate, "video_metadata": known}, f"video {index}")
        for index, (video, rate, known) in enumerate(zip(videos, rates, metadata))
    ]


def _given_video(video: Any, options: Mapping[str, Any], name: str) -> Media:
    if _is_described(video):
        video, known = video
        options = {**options, "video_metadata": options["video_metadata"] or known}
    if isinstance(video, VideoFrames) and video.origin is not None:
        video = video.origin
    video = unwrapped(video, name)
    if is_source(video):
        return load_video(video, sampling_options(options, name), name=name)
    if not isinstance(video, Media):
        array = to_array(video)
        if array is not None:
            frames = frames_from_array(array, name, rescaled=options.get("do_rescale") is False)
            video = Media("video", name, frames, budgeted=False)
        else:
            video = replace(load_video(video, name=name), sample_fps=None, budgeted=False)
    return described(video, options)


def described(clip: Media, options: Mapping[str, Any]) -> Media:
    """Ready-made frames with their rate, or some of them: see `given_videos`. The caller's fps wins over the clip's own."""
    total, known, fps = len(clip.data), options.get("video_metadata"), options.get("fps")
    wanted = options.get("nframes") or options.get("num_frames")
    rate = clip.sample_fps if known is None else _metadata_fps(total, known)
    sampled = options.get("do_sample_frames")
    if not (sampled or (sampled is None and wanted)):
        return replace(clip, sample_fps=fps or rate, metadata=clip.metadata or _metadata(fps or rate, total, range(total)))
    if not wanted and not rate:
        raise InputError(
            f"{clip.name}: do_sample_frames is set, but the rate of the frames is not known; pass video_metadata= with fps and "
            "total_num_frames, or num_frames=."
        )
    count = frame_count(total, rate or 1.0, sampling_options(options, clip.name), clip.name)
    indices = (np.arange(count) * (total / count)).astype(np.int64)  # as transformers' sample_frames
    metadata = _metadata(rate, total, indices.tolist())
    return replace(clip, data=clip.data[indices], sample_fps=rate and count / total * rate, metadata=metadata)


def _metadata(fps: float | None, total: int, indices: Sequence[int]) -> dict[str, Any]:
    return {"fps": fps, "total_num_frames": total, "frames_indices": list(indices), "video_backend": "frames"}


def _metadata_fps(count: int, metadata: Any) -> float | None:
    """Frames per second of the `count` frames taken, from those of the file: a dict's, or transformers' `VideoMetadata`."""
    known = metadata if isinstance(metadata, Mapping) else vars(metadata)
    total, fps = known.get("total_num_frames"), known.get("fps")
    return float(count / total * fps) if total and fps else None
