"""What the processor is called with: keyword arguments, sorted once into typed options; and `images`, `videos` and `audio`, decoded in
the order of the prompt.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from ms_omni.arrays import to_array
from ms_omni.errors import InputError, caller_level, warn_once
from ms_omni.input.audio import MOST_CHANNELS, is_number_list, sound_pair
from ms_omni.input.load import is_source, load_audio, load_image, load_video, load_video_and_sound
from ms_omni.input.media import ItemOptions, Media, VideoFrames, number
from ms_omni.input.messages import unwrapped
from ms_omni.input.sampling import file_sampling, per_video, with_frame_options
from ms_omni.input.video import frames_from_array

VISION_KEYS = (
    *("min_pixels", "max_pixels", "size", "do_resize", "do_rescale", "rescale_factor", "do_normalize"),
    *("image_mean", "image_std", "patch_size", "temporal_patch_size", "merge_size"),
)
FRAME_KEYS = ("fps", "num_frames", "min_frames", "max_frames", "do_sample_frames")
_CROSSWISE = ("use_audio_in_video", "load_audio_from_video", "position_id_per_seconds")
GROUPS = {
    "text_kwargs": (
        *("padding", "padding_side", "truncation", "max_length", "pad_to_multiple_of"),
        *("add_special_tokens", "return_attention_mask", "return_token_type_ids"),
        *("return_special_tokens_mask", "return_offsets_mapping", "return_length"),
        "return_mm_token_type_ids",
    ),
    "images_kwargs": VISION_KEYS,
    "videos_kwargs": (
        *VISION_KEYS,
        *("fps", "nframes", "num_frames", "min_frames", "max_frames", "do_sample_frames", "video_metadata"),
        "return_metadata",
        *_CROSSWISE,
    ),
    "audio_kwargs": ("sampling_rate", "padding", "max_length", "truncation", "pad_to_multiple_of"),
    "common_kwargs": ("return_tensors", "audio_from_video_indices", *_CROSSWISE),
}
# Outside of a group these belong to the text: a length of audio in samples is given in audio_kwargs only.
_TEXT_ONLY = ("padding", "max_length", "truncation", "pad_to_multiple_of", "return_attention_mask")
OLD_OPTIONS = {"video_fps": "fps"}
OLD_NAMES = {
    "audios": "audio",
    "sounds": "audio",
    "raw_speech": "audio",
    "image": "images",
    "video": "videos",
    "texts": "text",
}
# Known to transformers; with these values nothing changes here, others are refused.
_ONLY = {
    "resample": (3, "bicubic"),
    "interpolation": (3, "bicubic"),
    "do_center_crop": (False,),
    "do_pad": (False,),
    "crop_size": (),
    "pad_size": (),
    "is_split_into_words": (False,),
    "return_overflowing_tokens": (False,),
    "stride": (0,),
    "text_pair": (),
    "text_target": (),
    "text_pair_target": (),
    "n_window": (50,),
    "return_assistant_tokens_mask": (False,),
    "sanitize_control_tokens": (False,),
}
_ONLY_FOR_AUDIO = {"return_attention_mask": (True,), "return_token_timestamps": (False,), "do_normalize": (False,)}
# Known to transformers, and without a meaning here: devices, layouts, readers of videos.
_WITHOUT_EFFECT = frozenset(
    [
        *("seconds_per_chunk", "device", "verbose", "do_convert_rgb", "default_to_square", "data_format"),
        *("input_data_format", "disable_grouping", "video_load_backend", "cap_pixels_per_frame"),
        *("max_video_tokens", "use_token_compression", "legacy", "return_row_col"),
    ]
)
_FLAGS = frozenset(
    [
        *("add_special_tokens", "return_attention_mask", "return_token_type_ids", "return_special_tokens_mask"),
        *("return_offsets_mapping", "return_length", "return_mm_token_type_ids", "do_sample_frames", "return_metadata"),
        *("do_resize", "do_rescale", "do_normalize", "use_audio_in_video", "load_audio_from_video"),
    ]
)
_COUNTS = frozenset(("max_length", "pad_to_multiple_of"))
_LONGEST = 1 << 27  # samples: 2 hours of sound
POSITION_ID_PER_SECONDS = 13.0


@dataclass(frozen=True)
class CallOptions:
    """One call's options: of each group those that were given and are not None."""

    text: Mapping[str, Any]
    image: Mapping[str, Any]
    video: Mapping[str, Any]
    audio: Mapping[str, Any]
    use_audio_in_video: bool = False
    position_id_per_seconds: float = POSITION_ID_PER_SECONDS
    audio_from_video_indices: list[int | None] | None = None
    return_tensors: str | None = None

    def vision(self, kind: str) -> dict[str, Any]:
        """What the call changes of the settings of pictures ("image") or of video frames ("video")."""
        group = self.image if kind == "image" else self.video
        return {key: group[key] for key in VISION_KEYS if key in group}


def call_options(kwargs: Mapping[str, Any]) -> CallOptions:
    """Sort the keyword arguments of `Qwen3OmniMoeProcessor.__call__`.

    An argument may be given by itself (it then goes to every group that knows it) or within text_kwargs, images_kwargs,
    videos_kwargs, audio_kwargs or common_kwargs. `load_audio_from_video` is the newer name of `use_audio_in_video`. What
    transformers knows and has no effect here is listed in one warning; unknown arguments warn, as in transformers.

    Raises:
        InputError: a value that would change the answer and cannot be honoured.
    """
    kwargs = {OLD_OPTIONS.get(key, key): value for key, value in kwargs.items()}
    groups = {name: _group(name, kwargs.pop(name, None)) for name in GROUPS}
    loose = known_only(kwargs, loose_names(), "The processor")
    for key, value in loose.items():
        for name, keys in GROUPS.items():
            if key in keys and not (name == "audio_kwargs" and key in _TEXT_ONLY):
                groups[name].setdefault(key, value)
    videos, common = groups["videos_kwargs"], groups["common_kwargs"]
    for name in ("text_kwargs", "images_kwargs", "videos_kwargs", "audio_kwargs"):
        common.setdefault("return_tensors", groups[name].pop("return_tensors", None))
    crosswise = {key: common.get(key, videos.get(key)) for key in _CROSSWISE}
    rate = number(crosswise, "position_id_per_seconds", "The processor") or POSITION_ID_PER_SECONDS
    return CallOptions(
        text=groups["text_kwargs"],
        image=groups["images_kwargs"],
        video=videos,
        audio=groups["audio_kwargs"],
        use_audio_in_video=bool(crosswise["use_audio_in_video"] or crosswise["load_audio_from_video"]),
        position_id_per_seconds=rate,
        audio_from_video_indices=common.get("audio_from_video_indices"),
        return_tensors=common.get("return_tensors"),
    )


def loose_names() -> set[str]:
    """Every keyword argument that may be given outside of a group."""
    return {key for keys in GROUPS.values() for key in keys}


def is_argument(key: str) -> bool:
    """Whether the processor takes this keyword argument, be it without effect."""
    return key in loose_names() or key in GROUPS or key in _ONLY or key in _WITHOUT_EFFECT or key in OLD_OPTIONS


def group_options(name: str, kwargs: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The options of one group, `return_tensors` among them, as `image_processor(...)` and `video_processor(...)` take them."""
    return known_only(kwargs, {*GROUPS[name], "return_tensors"}, where, for_audio=name == "audio_kwargs")


def known_only(kwargs: Mapping[str, Any], known: Iterable[str], where: str, *, for_audio: bool = False) -> dict[str, Any]:
    """Those of `kwargs` that are among `known` and not None.

    Raises:
        InputError: a value that transformers would honour and we cannot.
    """
    accepted, ignored, only = {}, [], {**_ONLY, **(_ONLY_FOR_AUDIO if for_audio else {})}
    for key, value in kwargs.items():
        if value is None or (key in only and value in only[key]):
            continue
        if key in only:
            values = " or ".join(map(repr, only[key])) or "None"
            raise InputError(f"{where}: {key} is {value!r}; only {values} can be honoured here.")
        if key in known:
            _check_kind(key, value, where)
            accepted[key] = value
        elif key in _WITHOUT_EFFECT:
            ignored.append(key)
        else:
            warnings.warn(
                f"{where} has no argument {key!r}; it is ignored.{did_you_mean(key, known)}", stacklevel=caller_level()
            )
    if ignored:
        warn_once(f"{where}: without effect here: {', '.join(sorted(ignored))}.", stacklevel=caller_level())
    return accepted


def _check_kind(key: str, value: Any, where: str) -> None:
    if key in _FLAGS:
        check_flags(where, **{key: value})
    if key in _COUNTS and number({key: value}, key, where, whole=True) > _LONGEST:
        raise InputError(f"{where}: {key} is {value}; expected at most {_LONGEST}.")


def check_flags(where: str, **flags: Any) -> None:
    """Check that each of these is True or False: a text such as "no" would count as true.

    Raises:
        InputError: one is something else.
    """
    for key, value in flags.items():
        if not isinstance(value, (bool, np.bool_)):
            raise InputError(f"{where}: {key} is {value!r}; expected True or False.")


def did_you_mean(key: str, known: Iterable[str]) -> str:
    """A hint at the known name that `key` looks like, or nothing."""
    near = difflib.get_close_matches(key, list(known), n=1, cutoff=0.75)
    return f" Did you mean {near[0]!r}?" if near else ""


def media_arguments(media: dict[str, Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """`media`, and what `kwargs` hold under older names (`audios=`), from which it is removed.

    Raises:
        InputError: the same given under both names.
    """
    for old, name in OLD_NAMES.items():
        if old in kwargs:
            value = kwargs.pop(old)
            if value is not None and media[name] is not None:
                raise InputError(f"{old} is an older name of {name}, and both were given; keep {name}.")
            media[name] = value if media[name] is None else media[name]
    return media


def _group(name: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InputError(f"{name} is a {type(value).__name__}; expected a dict.")
    return group_options(name, value, name)


def load_images(images: Any, *, rescaled: bool = False) -> list[Media]:
    """Pictures of the processor's `images`: one, a list of them, an array of them, or a list of such lists.

    Args:
        rescaled: arrays of floats are rescaled already, not in steps of 0..255.

    Raises:
        MediaError: one that cannot be used; the message says which.
    """
    return [_load_given_image(image, f"picture {index}", rescaled) for index, image in enumerate(_flat_images(images))]


def _load_given_image(image: Any, name: str, rescaled: bool) -> Media:
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


def load_audios(audio: Any) -> list[Media]:
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


def load_videos(
    videos: Any, options: Mapping[str, Any], with_audio: Collection[int | None] = ()
) -> tuple[list[Media], dict[int, Media]]:
    """Clips of what a caller passes as videos, with their frames per second, and the sound tracks of some.

    Args:
        videos: one video, a list of them, or a list (per conversation) of lists of them: `Media`, `VideoFrames`, arrays or
            tensors `[T, C, H, W]` or `[T, H, W, C]`, lists of frames, files, or pairs of one of these and its metadata (fps,
            total_num_frames). A list of pictures is one video made of frames; a list of arrays with four axes, of clips or
            of files is several.
        options: of a file, fps or num_frames says which frames are taken; do_sample_frames=False takes all, understood at
            fps if that is given. Of ready-made frames all are taken and fps is their rate, unless do_sample_frames or
            num_frames is given: then some of them are taken. video_metadata gives the rate that they had in their file.
            fps and video_metadata may be lists, one entry for each video.
        with_audio: indices of the videos whose sound track is taken, where they are files that have one.

    Raises:
        InputError: options that do not fit together, or fewer frames than asked for; MediaError: unreadable videos.
    """
    flat = _flat_videos(videos)
    rates = [
        number({"fps": fps}, "fps", f"video {index}")
        for index, fps in enumerate(per_video(options.get("fps"), len(flat), "fps"))
    ]
    stated = options.get("video_metadata")
    if isinstance(stated, (list, tuple)):
        stated = [known for entry in stated for known in (entry if isinstance(entry, (list, tuple)) else [entry])]
    metadata = per_video(stated, len(flat), "video_metadata")
    clips, tracks = [], {}
    for index, (video, rate, known) in enumerate(zip(flat, rates, metadata)):
        own = {**options, "fps": rate, "video_metadata": known}
        clip, *track = _load_given_video(video, own, f"video {index}", index in with_audio)
        clips.append(clip)
        if track:
            tracks[index] = replace(track[0], name=f"video {index}")
    return clips, tracks


def _load_given_video(video: Any, options: Mapping[str, Any], name: str, with_audio: bool) -> list[Media]:
    """The clip and, with `with_audio`, its sound track if it has one."""
    if _has_metadata(video):
        video, known = video
        options = {**options, "video_metadata": options["video_metadata"] or known}
    if isinstance(video, VideoFrames) and video.origin is not None:
        video = video.origin
    video = unwrapped(video, name)
    if is_source(video):
        return load_video_and_sound(
            video, ItemOptions(sampling=file_sampling(options, name)), with_audio=with_audio, name=name
        )
    if not isinstance(video, Media):
        array = to_array(video)
        if array is not None:
            frames = frames_from_array(array, name, rescaled=options.get("do_rescale") is False)
            video = Media("video", name, frames, budgeted=False)
        else:
            video = replace(load_video(video, name=name), sample_fps=None, budgeted=False)
    return [with_frame_options(video, options)]


def sound_track_owners(videos: Any, sounds: int, owners: Sequence[int | None] | None) -> Sequence[int | None]:
    """For each sound of a call the index of the video whose track it is, or None; empty when the caller gave all sounds.

    Args:
        sounds: how many were given.
        owners: as the caller says; by default there are only sound tracks.
    """
    if owners is None:
        owners = [None] * sounds if sounds else range(len(_flat_videos(videos)))
    return owners if sounds == sum(owner is None for owner in owners) else ()


def _flat_videos(videos: Any) -> list[Any]:
    if not isinstance(videos, (list, tuple)):
        return [videos]
    if not videos:
        return []
    if _has_metadata(videos):
        return [videos]
    if all(_is_frame(item) for item in videos):
        return [list(videos)]
    flat: list[Any] = []
    for item in videos:
        whole = isinstance(item, list) and item and all(_is_frame(frame) for frame in item)
        nested = isinstance(item, (list, tuple)) and not whole and not _has_metadata(item)
        flat += _flat_videos(item) if nested else [item]
    return flat


def _is_frame(value: Any) -> bool:
    array = to_array(value)
    return isinstance(value, Image.Image) or (array is not None and array.ndim in (2, 3))


def _has_metadata(video: Any) -> bool:
    """Whether this is a pair of a video and its metadata."""
    return (
        isinstance(video, tuple)
        and len(video) == 2
        and (isinstance(video[1], dict) or hasattr(video[1], "total_num_frames"))
    )
