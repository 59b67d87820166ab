"""Preprocessor settings as the checkpoint's files state them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import asdict, dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar

from ms_omni.errors import CheckpointError, InputError
from ms_omni.files import read_text
from ms_omni.input.arguments import did_you_mean
from ms_omni.input.audio import SAMPLING_RATE_HZ
from ms_omni.input.sizes import VIDEO_MAX_PIXELS, VIDEO_MIN_PIXELS

BICUBIC = 3  # Pillow's number
_NEEDED_VISION_KEYS = ("patch_size", "temporal_patch_size", "merge_size", "image_mean", "image_std")
_NEEDED_AUDIO_KEYS = ("feature_size", "hop_length", "n_fft", "sampling_rate")
AUDIO_KEYS = (*_NEEDED_AUDIO_KEYS, "padding_value", "padding_side", "dither", "return_attention_mask", "chunk_length")


class PixelLimits(MutableMapping):
    """The `size` of transformers' image processors: a view of its owner's `min_pixels` and `max_pixels`."""

    NAMES: ClassVar[dict[str, str]] = {"shortest_edge": "min_pixels", "longest_edge": "max_pixels"}

    __slots__ = ("_owner",)

    def __init__(self, owner: VisionSettings) -> None:
        object.__setattr__(self, "_owner", owner)

    def __getattr__(self, name: str) -> int:  # as transformers 5.x reads them
        if name in self.NAMES:
            return self[name]
        raise AttributeError(f"size has no {name!r}; it has {', '.join(self.NAMES)}.")

    def __setattr__(self, name: str, value: int) -> None:
        self[name] = value

    def __getitem__(self, key: str) -> int:
        return getattr(self._owner, self.NAMES[key])

    def __setitem__(self, key: str, value: int) -> None:
        setattr(self._owner, _limit_name(key, "size", InputError), value)

    def __delitem__(self, key: str) -> None:
        raise InputError(f"size needs both {' and '.join(self.NAMES)}; set another value instead of deleting {key!r}.")

    def __iter__(self) -> Iterator[str]:
        return iter(self.NAMES)

    def __len__(self) -> int:
        return len(self.NAMES)

    def __repr__(self) -> str:
        return repr(dict(self))


@dataclass
class VisionSettings:
    """How frames become patches. Sizes in pixels, `temporal_patch_size` in frames, mean and std of 0..1.

    May be set at any time, as `size` too (`{"shortest_edge": ..., "longest_edge": ...}`, areas in pixels); checked when used.
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

    def __setattr__(self, name: str, value: Any) -> None:
        if not hasattr(type(self), name) and name not in self.__dataclass_fields__:
            hint = did_you_mean(name, self.__dataclass_fields__)
            warnings.warn(f"{type(self).__name__} has no setting {name!r}; it changes nothing.{hint}", stacklevel=2)
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
        for name, limit in _pixel_limits(value, "size", InputError).items():
            setattr(self, name, limit)

    def changed(self, options: Mapping[str, Any], where: str) -> VisionSettings:
        """A copy with the options of one call; `size` may stand for min_pixels and max_pixels.

        A max_pixels that is given alone brings a larger min_pixels down to it.

        Raises:
            InputError: a size that is not one of these, no whole number, or limits that cross.
        """
        options = {key: value for key, value in options.items() if value is not None}
        size = options.pop("size", None)
        if size is not None:
            options = {**_pixel_limits(size, where, InputError), **options}
        if "max_pixels" in options and "min_pixels" not in options:
            options["min_pixels"] = min(self.min_pixels, options["max_pixels"])
        settings = replace(self, **options)
        for key in ("image_mean", "image_std"):
            setattr(settings, key, _per_channel(getattr(settings, key), f"{where}.{key}", InputError))
        _check_whole(vars(settings), where, InputError)
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


@dataclass(frozen=True)
class ProcessorSettings:
    """Settings for pictures, for video frames, and the mel extractor's arguments."""

    image: VisionSettings
    video: VisionSettings
    audio: Mapping[str, Any]


def read_settings(folder: Path) -> ProcessorSettings:
    """Read the settings in either layout.

    The published layout is one flat `preprocessor_config.json`, optionally with a `video_preprocessor_config.json`;
    transformers 5.x writes `processor_config.json` with `image_processor`, `video_processor` and `feature_extractor`
    inside, which wins where both are there. For video, the per-frame limits are the model's own (128 and 768 tokens of
    32 x 32 pixels), whatever the file says: its limits are those of pictures.

    Raises:
        CheckpointError: no such file, not JSON, or a needed key is missing or unsupported.
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
    frame_limits = {"size": {"shortest_edge": VIDEO_MIN_PIXELS, "longest_edge": VIDEO_MAX_PIXELS}}
    video = {**_without_limits(video), **frame_limits}
    return ProcessorSettings(
        vision_settings(image, f"{folder}: the image settings"),
        vision_settings(video, f"{folder}: the video settings"),
        audio_settings(audio, f"{folder}: the audio settings"),
    )


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a JSON file, or None when there is no file.

    Raises:
        CheckpointError: not readable as a JSON object.
    """
    if not path.exists():
        return None
    try:
        content = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; expected a JSON object.")
    return content


def _without_limits(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in ("size", "min_pixels", "max_pixels")}


def vision_settings(config: Mapping[str, Any], where: str) -> VisionSettings:
    """Settings of frames from the content of a preprocessor file.

    Raises:
        CheckpointError: a needed key is missing or its value is not supported.
    """
    missing = [key for key in _NEEDED_VISION_KEYS if config.get(key) is None]
    if missing:
        raise CheckpointError(f"{where} lack {', '.join(missing)}.")
    if config.get("resample", BICUBIC) != BICUBIC:
        raise CheckpointError(f"{where} ask for resample {config['resample']!r}; only {BICUBIC} (bicubic) is supported.")
    limits = _pixel_limits(config.get("size") or {}, where, CheckpointError)
    limits.update({key: config[key] for key in ("min_pixels", "max_pixels") if config.get(key) is not None})
    if len(limits) != 2:
        raise CheckpointError(f"{where} lack min_pixels and max_pixels (or size with shortest_edge and longest_edge).")
    numbers = {key: config[key] for key in ("patch_size", "temporal_patch_size", "merge_size")} | limits
    _check_whole(numbers, where, CheckpointError)
    given = {
        key: config[key]
        for key in ("do_resize", "do_rescale", "do_normalize", "rescale_factor")
        if config.get(key) is not None
    }
    return VisionSettings(
        **numbers,
        **given,
        image_mean=_per_channel(config["image_mean"], where, CheckpointError),
        image_std=_per_channel(config["image_std"], where, CheckpointError),
    )


def _check_whole(values: Mapping[str, Any], where: str, error: type[Exception]) -> None:
    keys = ("patch_size", "temporal_patch_size", "merge_size", "min_pixels", "max_pixels")
    wrong = [
        key for key in keys if isinstance(values[key], bool) or not isinstance(values[key], Integral) or values[key] < 1
    ]
    if wrong:
        found = ", ".join(f"{key} is {values[key]!r}" for key in wrong)
        raise error(f"{where}: {found}; expected whole numbers of at least 1.")


def _pixel_limits(size: Any, where: str, error: type[Exception]) -> dict[str, int]:
    """min_pixels and max_pixels from a `size` in one of its two spellings."""
    size = vars(size) if hasattr(size, "shortest_edge") else size  # transformers' SizeDict
    if not isinstance(size, Mapping):
        raise error(f"{where}: size is {size!r}; expected shortest_edge and longest_edge (areas in pixels).")
    return {_limit_name(key, where, error): value for key, value in size.items() if value is not None}


def _limit_name(key: str, where: str, error: type[Exception]) -> str:
    name = PixelLimits.NAMES.get(key, key)
    if name not in PixelLimits.NAMES.values():
        raise error(f"{where}: size is {key!r}; expected shortest_edge and longest_edge (areas in pixels).")
    return name


def _per_channel(values: Any, where: str, error: type[Exception]) -> tuple[float, ...]:
    if isinstance(values, (int, float)):
        values = [values] * 3
    if not isinstance(values, (list, tuple)) or len(values) != 3:
        raise error(f"{where}: mean and std must hold three numbers; got {values!r}.")
    return tuple(float(value) for value in values)


def audio_settings(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The mel extractor's arguments from the content of a preprocessor file.

    Raises:
        CheckpointError: a needed key is missing or its value is not supported.
    """
    missing = [key for key in _NEEDED_AUDIO_KEYS if config.get(key) is None]
    if missing:
        raise CheckpointError(f"{where} lack {', '.join(missing)}.")
    if config["sampling_rate"] != SAMPLING_RATE_HZ:
        raise CheckpointError(f"{where} ask for {config['sampling_rate']} Hz; only {SAMPLING_RATE_HZ} Hz is supported.")
    if config.get("dither"):
        raise CheckpointError(f"{where} ask for dither {config['dither']}; random noise in the features is not supported.")
    return {key: config[key] for key in AUDIO_KEYS if config.get(key) is not None}
