"""`processor.image_processor` and `processor.video_processor`: settings that can be changed, and called."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ms_omni.errors import InputError
from ms_omni.hub import resolve
from ms_omni.input.arguments import FRAME_KEYS, VISION_KEYS, group_options
from ms_omni.input.given import given_images, given_videos
from ms_omni.input.inputs import ModelInputs
from ms_omni.input.media import SizeOptions
from ms_omni.input.settings import VisionSettings, read_settings, vision_settings
from ms_omni.input.sizes import image_size
from ms_omni.input.vision import encode
from ms_omni.load_arguments import sort_out


class ImageProcessor(VisionSettings):
    """Pictures to patches, as transformers' `Qwen2VLImageProcessor`."""

    model_input_names = ("pixel_values", "image_grid_thw")

    @classmethod
    def of(cls, source: Any, where: str) -> Any:
        """From settings, a dict of them, or another image processor with a `to_dict`; one of this class is returned as it is.

        Raises:
            CheckpointError, InputError: settings that are missing, or not supported.
        """
        if type(source) is cls:
            return source
        if isinstance(source, VisionSettings):
            return cls(**asdict(source))
        config = source.to_dict() if hasattr(source, "to_dict") else source
        if not isinstance(config, Mapping):
            raise InputError(f"{where} is a {type(source).__name__}; expected settings, a dict of them or a processor.")
        return cls(**asdict(vision_settings(config, where)))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Any:
        """The settings of a checkpoint's folder, or of a model by its name; kwargs: values instead of the files' own.

        Raises:
            CheckpointError: no such folder or model, or damaged files; InputError: unknown arguments, or meaningless values.
        """
        frames = issubclass(cls, VideoProcessor)
        where, options = sort_out(kwargs, cls.__name__, (), (*VISION_KEYS, *(FRAME_KEYS if frames else ())))
        settings = read_settings(resolve(pretrained_model_name_or_path, weights=False, **where))
        return cls.of(settings.video if frames else settings.image, cls.__name__).changed(options, "from_pretrained")

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
        patches, grids = encode(given_images(images, rescaled=not settings.do_rescale), settings)
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

    model_input_names = ("pixel_values_videos", "video_grid_thw")

    def __call__(self, videos: Any, return_tensors: str | None = None, **kwargs: Any) -> ModelInputs:
        """Patches of one or several videos.

        Args:
            videos: frames (arrays, tensors, lists of pictures) or files, one or a list of them.
            return_tensors: see `ModelInputs.convert_to_tensors`.
            **kwargs: as the processor's videos_kwargs: settings for this call, and fps, num_frames, do_sample_frames,
                video_metadata, return_metadata; see `input.given.given_videos`.

        Returns:
            pixel_values_videos float32 `[N, C*t*p*p]` and video_grid_thw int64 `[n, 3]`; with return_metadata also
            video_metadata, a dict for each video.

        Raises:
            InputError: settings that do not fit together; MediaError: a video that cannot be used.
        """
        options = group_options("videos_kwargs", kwargs, "video_processor")
        own = {key: options[key] for key in VISION_KEYS if key in options}
        clips, _ = given_videos(videos, self.sampling(options))
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
