"""Pictures and frames to the patches that the vision encoder reads; `processor.image_processor` and `processor.video_processor`, whose
settings can be changed, and which can be called.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from typing_extensions import Self

from ms_omni.errors import CheckpointError, InputError, caller_level
from ms_omni.files import read_text
from ms_omni.hub import resolve
from ms_omni.input.arguments import (
    FRAME_KEYS,
    VISION_KEYS,
    did_you_mean,
    group_options,
    is_argument,
    load_images,
    load_videos,
)
from ms_omni.input.image import (
    VIDEO_MAX_PIXELS,
    VIDEO_MIN_PIXELS,
    PixelLimits,
    SizeRule,
    image_size,
    pixel_limits,
    resized,
    video_size,
)
from ms_omni.input.interface import ModelInputs
from ms_omni.input.media import Media, SizeOptions, is_count, is_real
from ms_omni.load_arguments import sort_out

BICUBIC = 3  # Pillow's number
_LARGEST = 1 << 40  # of any whole number here; what a picture would become is held to `limits.resized_pixels`
_NEEDED_VISION_KEYS = ("patch_size", "temporal_patch_size", "merge_size", "image_mean", "image_std")


@dataclass
class ImageProcessor:
    """Pictures to patches, as transformers' `Qwen2VLImageProcessor`: settings that can be changed, and called.

    Sizes in pixels, `temporal_patch_size` in frames, mean and std of 0..1.

    May be set at any time, as `size` too (`{"shortest_edge": ..., "longest_edge": ...}`, areas in pixels).

    Raises:
        InputError: a value that means nothing, or a name that is no setting.
    """

    patch_size: int
    temporal_patch_size: int
    merge_size: int
    min_pixels: int
    max_pixels: int
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    do_resize: bool = True
    do_rescale: bool = True
    do_normalize: bool = True
    rescale_factor: float = 1 / 255

    model_input_names: ClassVar[tuple[str, ...]] = ("pixel_values", "image_grid_thw")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dataclass_fields__:
            value = _checked(name, value)
        elif not hasattr(type(self), name):
            if not is_argument(name):
                hint = did_you_mean(name, self.__dataclass_fields__)
                raise InputError(f"{type(self).__name__} has no setting {name!r}.{hint}")
            warnings.warn(f"{type(self).__name__}: {name} changes nothing here.", stacklevel=caller_level())
        super().__setattr__(name, value)

    @property
    def factor(self) -> int:
        """Sides of a resized picture are multiples of this many pixels."""
        return self.patch_size * self.merge_size

    @property
    def size(self) -> PixelLimits:
        """`min_pixels` and `max_pixels` under the names shortest_edge and longest_edge."""
        return PixelLimits(self)

    @size.setter
    def size(self, value: Mapping[str, int]) -> None:
        for name, limit in pixel_limits(value, "size", InputError).items():
            setattr(self, name, limit)

    def changed(self, options: Mapping[str, Any], where: str) -> ImageProcessor:
        """A copy with the options of one call; `size` may stand for min_pixels and max_pixels.

        A max_pixels that is given alone brings a larger min_pixels down to it.

        Raises:
            InputError: a value that means nothing, a size that is not one of these, or limits that cross.
        """
        options = {key: value for key, value in options.items() if value is not None}
        size = options.pop("size", None)
        if size is not None:
            options = {**pixel_limits(size, where, InputError), **options}
        try:
            if "max_pixels" in options and "min_pixels" not in options:
                options["min_pixels"] = min(self.min_pixels, _checked("max_pixels", options["max_pixels"]))
            settings = replace(self, **options)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        if not settings.min_pixels <= settings.max_pixels:
            raise InputError(
                f"{where}: min_pixels is {settings.min_pixels} and max_pixels {settings.max_pixels}; "
                "expected 0 < min_pixels <= max_pixels."
            )
        return settings

    def to_dict(self) -> dict[str, Any]:
        """The settings under their names in `preprocessor_config.json`."""
        lists = {"image_mean": list(self.image_mean), "image_std": list(self.image_std)}
        given = {key: value for key, value in asdict(self).items() if value is not None}
        return {**given, **lists, "size": dict(self.size), "resample": BICUBIC}

    def to_json_string(self) -> str:
        """`to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_settings(cls, source: Any, where: str) -> Any:
        """From settings, a dict of them, or another image processor with a `to_dict`; one of this class is returned as it is.

        Raises:
            CheckpointError, InputError: settings that are missing, or not supported.
        """
        if type(source) is cls:
            return source
        if isinstance(source, ImageProcessor):
            return cls(**{field.name: getattr(source, field.name) for field in fields(ImageProcessor)})
        config = source.to_dict() if hasattr(source, "to_dict") else source
        if not isinstance(config, Mapping):
            raise InputError(f"{where} is a {type(source).__name__}; expected settings, a dict of them or a processor.")
        return cls.from_config(config, where)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], where: str) -> Self:
        """From the content of a preprocessor file.

        Raises:
            CheckpointError: a needed key is missing or its value is not supported.
        """
        missing = [key for key in _NEEDED_VISION_KEYS if config.get(key) is None]
        if missing:
            raise CheckpointError(f"{where} lack {', '.join(missing)}.")
        if config.get("resample", BICUBIC) != BICUBIC:
            raise CheckpointError(f"{where} ask for resample {config['resample']!r}; only {BICUBIC} (bicubic) is supported.")
        limits = pixel_limits(config.get("size") or {}, where, CheckpointError)
        limits.update({key: config[key] for key in ("min_pixels", "max_pixels") if config.get(key) is not None})
        if len(limits) != 2:
            raise CheckpointError(f"{where} lack min_pixels and max_pixels (or size with shortest_edge and longest_edge).")
        keys = ("do_resize", "do_rescale", "do_normalize", "rescale_factor")
        given = {key: config[key] for key in keys if config.get(key) is not None}
        try:
            settings = cls(**{key: config[key] for key in _NEEDED_VISION_KEYS}, **limits, **given)
        except InputError as error:
            raise CheckpointError(f"{where}: {error}") from None
        if settings.min_pixels > settings.max_pixels:
            raise CheckpointError(f"{where}: min_pixels is {settings.min_pixels}, over max_pixels {settings.max_pixels}.")
        return settings

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Any:
        """The settings of a checkpoint's folder, or of a model by its name; kwargs: values instead of the files' own.

        Raises:
            CheckpointError: no such folder or model, or damaged files; InputError: unknown arguments, or meaningless values.
        """
        frames = issubclass(cls, VideoProcessor)
        where, options = sort_out(kwargs, cls.__name__, (), (*VISION_KEYS, *(FRAME_KEYS if frames else ())))
        folder = resolve(pretrained_model_name_or_path, weights=False, **where)
        image, video, _ = read_configs(folder)
        kind, config = ("video", video) if frames else ("image", image)
        return cls.from_config(config, f"{folder}: the {kind} settings").changed(options, "from_pretrained")

    def __call__(self, images: Any, return_tensors: str | None = None, **kwargs: Any) -> ModelInputs:
        """Patches of one or several pictures.

        Args:
            images: a picture in any spelling of `load_image`, a list of them, or a list of such lists.
            return_tensors: see `ModelInputs.convert_to_tensors`.
            **kwargs: settings for this call only: min_pixels, max_pixels, size, do_resize, ...

        Returns:
            pixel_values float32 `[N, C*t*p*p]` and image_grid_thw int64 `[n, 3]`.

        Raises:
            InputError: settings that do not fit together; MediaError: a picture that cannot be used.
        """
        settings = self.changed(group_options("images_kwargs", kwargs, "image_processor"), "image_processor")
        patches, grids = encode(load_images(images, rescaled=not settings.do_rescale), settings)
        return ModelInputs({"pixel_values": patches, "image_grid_thw": grids}).convert_to_tensors(return_tensors)

    preprocess = __call__

    def get_number_of_image_patches(self, height: int, width: int, images_kwargs: Mapping[str, Any] | None = None) -> int:
        """Patches of a picture of this size; `merge_size`² of them make a token."""
        return self._patches(height, width, images_kwargs, "images_kwargs")

    def _patches(self, height: int, width: int, kwargs: Mapping[str, Any] | None, where: str) -> int:
        kwargs = {key: value for key, value in (kwargs or {}).items() if key in VISION_KEYS}
        settings = self.changed(kwargs, where)
        size = image_size(height, width, settings.factor, settings.min_pixels, settings.max_pixels, SizeOptions(), where)
        return (size[0] // settings.patch_size) * (size[1] // settings.patch_size)


@dataclass
class VideoProcessor(ImageProcessor):
    """Frames of videos to patches, as transformers' `Qwen2VLVideoProcessor`.

    fps, num_frames, min_frames, max_frames and do_sample_frames hold where a call does not say; None leaves them open.
    """

    fps: float | None = None
    num_frames: int | None = None
    min_frames: int | None = None
    max_frames: int | None = None
    do_sample_frames: bool | None = None

    model_input_names: ClassVar[tuple[str, ...]] = ("pixel_values_videos", "video_grid_thw")

    def __call__(self, videos: Any, return_tensors: str | None = None, **kwargs: Any) -> ModelInputs:
        """Patches of one or several videos.

        Args:
            videos: frames (arrays, tensors, lists of pictures) or files, one or a list of them.
            return_tensors: see `ModelInputs.convert_to_tensors`.
            **kwargs: as the processor's videos_kwargs: settings for this call, and fps, num_frames, do_sample_frames,
                video_metadata, return_metadata; see `input.arguments.load_videos`.

        Returns:
            pixel_values_videos float32 `[N, C*t*p*p]` and video_grid_thw int64 `[n, 3]`; with return_metadata also
            video_metadata, a dict for each video.

        Raises:
            InputError: settings that do not fit together; MediaError: a video that cannot be used.
        """
        options = group_options("videos_kwargs", kwargs, "video_processor")
        own = {key: options[key] for key in VISION_KEYS if key in options}
        clips, _ = load_videos(videos, self.sampling(options))
        patches, grids = encode(clips, self.changed(own, "video_processor"))
        media: dict[str, Any] = {"pixel_values_videos": patches, "video_grid_thw": grids}
        if options.get("return_metadata"):
            media["video_metadata"] = [clip.metadata for clip in clips]
        return ModelInputs(media).convert_to_tensors(return_tensors)

    preprocess = __call__

    def sampling(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options of one call, and this processor's own where it does not say how frames are chosen."""
        own = {key: getattr(self, key) for key in ("min_frames", "max_frames", "do_rescale")}
        if not any(key in options for key in ("fps", "nframes", "num_frames", "do_sample_frames")):
            own |= {key: getattr(self, key) for key in ("fps", "num_frames", "do_sample_frames")}
        return {**{key: value for key, value in own.items() if value is not None}, **options}

    def get_num_of_video_patches(
        self, num_frames: int, height: int, width: int, videos_kwargs: Mapping[str, Any] | None = None
    ) -> int:
        """Patches of a video of this many frames; `merge_size`² of them make a token."""
        return -(-num_frames // self.temporal_patch_size) * self._patches(height, width, videos_kwargs, "videos_kwargs")


def _checked(name: str, value: Any) -> Any:
    """The value of a setting of pictures or frames.

    Raises:
        InputError: it means nothing.
    """
    if name in ("image_mean", "image_std"):
        values = [value] * 3 if isinstance(value, Real) else value
        values = values.tolist() if isinstance(values, np.ndarray) else values
        least = -np.inf if name == "image_mean" else 0.0
        if (
            not isinstance(values, (list, tuple))
            or len(values) != 3
            or not all(is_real(channel, least) for channel in values)
        ):
            raise InputError(f"{name} is {value!r}; expected three numbers{' greater than 0' if least == 0 else ''}.")
        return tuple(float(channel) for channel in values)
    if name in ("do_resize", "do_rescale", "do_normalize", "do_sample_frames"):
        if not isinstance(value, (bool, np.bool_)) and not (value is None and name == "do_sample_frames"):
            raise InputError(f"{name} is {value!r}; expected True or False.")
        return value
    if name == "rescale_factor" or (name == "fps" and value is not None):
        if not is_real(value, 0.0):
            raise InputError(f"{name} is {value!r}; expected a number greater than 0.")
        return float(value)
    if value is None and name in ("num_frames", "min_frames", "max_frames", "fps"):
        return value
    if not is_count(value, _LARGEST):
        raise InputError(f"{name} is {value!r}; expected a whole number of at least 1.")
    return int(value)  # pyright: ignore[reportArgumentType]


def encode(media: Sequence[Media], settings: ImageProcessor) -> tuple[np.ndarray, np.ndarray]:
    """Patches of pictures or of videos, one after the other.

    Returns:
        float32 `[N, C*t*p*p]` in blocks of merge x merge patches, the last frame repeated to fill its time patch, and their
        grids (time, height, width in patches) int64 `[n, 3]`.

    Raises:
        InputError: sides that are no multiples of `settings.factor` while `do_resize` is off.
    """
    if settings.do_resize:
        media = [resized(item, size_rule(settings, item.kind == "image" or not item.budgeted)) for item in media]
    grids = [_grid(item.data, settings, item.name) for item in media]
    ends = np.cumsum([math.prod(grid) for grid in grids])
    values = media[0].data.shape[1] * settings.temporal_patch_size * settings.patch_size**2
    patches = np.empty((int(ends[-1]), values), np.float32)
    for item, grid, end in zip(media, grids, ends):
        _write_patches(item.data, settings, patches[end - math.prod(grid) : end].reshape(_blocks(grid, settings)))
    return patches, np.array(grids, np.int64)


def size_rule(settings: ImageProcessor, own_limits: bool = False) -> SizeRule:
    """The target size of the frames of a video file under `settings`; own_limits: of pictures, and of arrays given ready-made, for which
    only the per-frame limits hold, as in the reference.
    """

    def rule(frames: int, height: int, width: int, options: SizeOptions, name: str) -> tuple[int, int]:
        limits = (settings.factor, settings.min_pixels, settings.max_pixels, options, name)
        return image_size(height, width, *limits) if own_limits else video_size(frames, height, width, *limits)

    return rule


def _grid(frames: np.ndarray, settings: ImageProcessor, name: str) -> tuple[int, int, int]:
    count, _, height, width = frames.shape
    if height % settings.factor or width % settings.factor:
        raise InputError(
            f"{name} is {width} x {height} pixels and do_resize is off; both sides must be multiples of {settings.factor}."
        )
    return -(-count // settings.temporal_patch_size), height // settings.patch_size, width // settings.patch_size


def _blocks(grid: tuple[int, int, int], settings: ImageProcessor) -> tuple[int, ...]:
    """The axes of patches: `[gt, gh/m, gw/m, m, m, C, t, p, p]`."""
    (gt, gh, gw), p, m = grid, settings.patch_size, settings.merge_size
    return gt, gh // m, gw // m, m, m, -1, settings.temporal_patch_size, p, p


def _write_patches(frames: np.ndarray, settings: ImageProcessor, blocks: np.ndarray) -> None:
    """Fill `blocks`, frame by frame: a long video is not held in float32 twice."""
    _, rows, columns, m, _, channels, t, p, _ = blocks.shape
    pixels, done = np.empty(0, np.float32), -1
    for index in range(len(blocks) * t):
        step, offset = divmod(index, t)
        if min(index, len(frames) - 1) != done:
            done = min(index, len(frames) - 1)
            pixels = normalise(frames[done], settings).reshape(channels, rows, m, p, columns, m, p)
        blocks[step, ..., offset, :, :] = pixels.transpose(1, 4, 2, 5, 0, 3, 6)


def normalise(frame: np.ndarray, settings: ImageProcessor) -> np.ndarray:
    """Rescale, subtract the mean and divide by the std in one step, in float32: `[C, H, W]`."""
    pixels = frame.astype(np.float32)
    if settings.do_normalize:
        scale = 1.0 / settings.rescale_factor if settings.do_rescale else 1.0
        mean = np.array(settings.image_mean, np.float32) * np.float32(scale)
        std = np.array(settings.image_std, np.float32) * np.float32(scale)
        pixels -= mean[:, None, None]
        pixels /= std[:, None, None]
    elif settings.do_rescale:
        pixels *= np.float32(settings.rescale_factor)
    return pixels


def read_configs(folder: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The settings of pictures, of video frames and of audio, as a folder's files state them, in either layout.

    The published layout is one flat `preprocessor_config.json`, optionally with a `video_preprocessor_config.json`;
    transformers 5.x writes `processor_config.json` with `image_processor`, `video_processor` and `feature_extractor`
    inside, which wins where both are there. For video, the per-frame limits are the model's own (128 and 768 tokens of
    32 x 32 pixels), whatever the file says: its limits are those of pictures.

    Raises:
        CheckpointError: no such file, not JSON, or without settings of pictures or audio.
    """
    flat = read_json(folder / "preprocessor_config.json")
    nested = read_json(folder / "processor_config.json") or {}
    image = nested.get("image_processor") or flat
    if image is None:
        raise CheckpointError(
            f"{folder} has neither preprocessor_config.json nor a processor_config.json with an "
            "image_processor; the preprocessor settings of the checkpoint are needed."
        )
    video = nested.get("video_processor") or read_json(folder / "video_preprocessor_config.json") or image
    audio = nested.get("feature_extractor") or flat
    if audio is None:
        raise CheckpointError(
            f"{folder}/processor_config.json has no feature_extractor, and there is no preprocessor_config.json."
        )
    limits = {"size": {"shortest_edge": VIDEO_MIN_PIXELS, "longest_edge": VIDEO_MAX_PIXELS}}
    video = {key: value for key, value in video.items() if key not in ("size", "min_pixels", "max_pixels")}
    return image, {**video, **limits}, audio


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, or None when there is no file.

    Raises:
        CheckpointError: not readable as a JSON object.
    """
    if not os.path.lexists(path):
        return None
    try:
        content = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:  # the last for what is nested thousands deep
        raise CheckpointError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; expected a JSON object.")
    return content
