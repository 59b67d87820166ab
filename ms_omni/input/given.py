"""What people pass to the processor as `images`, `videos` and `audio`, as decoded media in the order of the prompt."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from ms_omni.arrays import to_array
from ms_omni.input.arguments import fps_per_video, per_video, sampling_options
from ms_omni.input.audio import MOST_CHANNELS, is_number_list, sound_pair
from ms_omni.input.load import is_source, load_audio, load_image, load_video, load_video_and_sound
from ms_omni.input.media import ItemOptions, Media, VideoFrames
from ms_omni.input.messages import unwrapped
from ms_omni.input.sampling import described
from ms_omni.input.video import frames_from_array


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


def given_videos(
    videos: Any, options: Mapping[str, Any], heard: Collection[int | None] = ()
) -> tuple[list[Media], dict[int, Media]]:
    """Clips from what a caller may pass as videos, with the frames per second that hold, and the sound tracks of some.

    Args:
        videos: one video, a list of them, or a list (per conversation) of lists of them: `Media`, `VideoFrames`, arrays or
            tensors `[T, C, H, W]` or `[T, H, W, C]`, lists of frames, files, or pairs of one of these and its metadata (fps,
            total_num_frames). A list of pictures is one video made of frames; a list of arrays with four axes, of clips or
            of files is several.
        options: of a file, fps or num_frames says which frames are taken; do_sample_frames=False takes all, understood at
            fps if that is given. Of ready-made frames all are taken and fps is their rate, unless do_sample_frames or
            num_frames is given: then some of them are taken. video_metadata tells the rate that they had in their file.
            fps and video_metadata may be lists, one entry for each video.
        heard: numbers of the videos whose sound track is taken, where they are files that have one.

    Raises:
        InputError: options that do not fit together, or fewer frames than asked for; MediaError: unreadable videos.
    """
    flat = _flat_videos(videos)
    rates = fps_per_video(options.get("fps"), len(flat))
    stated = options.get("video_metadata")
    if isinstance(stated, (list, tuple)):
        stated = [one for entry in stated for one in (entry if isinstance(entry, (list, tuple)) else [entry])]
    metadata = per_video(stated, len(flat), "video_metadata")
    clips, tracks = [], {}
    for index, (video, rate, known) in enumerate(zip(flat, rates, metadata)):
        own = {**options, "fps": rate, "video_metadata": known}
        clip, *track = _given_video(video, own, f"video {index}", index in heard)
        clips.append(clip)
        if track:
            tracks[index] = replace(track[0], name=f"video {index}")
    return clips, tracks


def _given_video(video: Any, options: Mapping[str, Any], name: str, hear: bool) -> list[Media]:
    """The clip, and its sound track if it is to be heard and has one."""
    if _is_described(video):
        video, known = video
        options = {**options, "video_metadata": options["video_metadata"] or known}
    if isinstance(video, VideoFrames) and video.origin is not None:
        video = video.origin
    video = unwrapped(video, name)
    if is_source(video):
        return load_video_and_sound(video, ItemOptions(sampling=sampling_options(options, name)), hear=hear, name=name)
    if not isinstance(video, Media):
        array = to_array(video)
        if array is not None:
            frames = frames_from_array(array, name, rescaled=options.get("do_rescale") is False)
            video = Media("video", name, frames, budgeted=False)
        else:
            video = replace(load_video(video, name=name), sample_fps=None, budgeted=False)
    return [described(video, options)]


def sound_tracks_wanted(videos: Any, sounds: int, owners: Sequence[int | None] | None) -> Sequence[int | None]:
    """For each sound of a call the number of the video whose track it is, or None; empty when the caller gave all sounds.

    Args:
        sounds: how many were given.
        owners: the caller's word; by default there are only sound tracks.
    """
    if owners is None:
        owners = [None] * sounds if sounds else range(len(_flat_videos(videos)))
    return owners if sounds == sum(owner is None for owner in owners) else ()


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
