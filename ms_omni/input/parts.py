"""What a processor is made of, read and set as transformers' processors are, and how many tokens media become in it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ms_omni.input.arguments import CallOptions
from ms_omni.input.mel import audio_token_count
from ms_omni.input.settings import ProcessorSettings
from ms_omni.input.vision_processors import ImageProcessor, VideoProcessor


class Parts:
    """The parts of a processor, their settings as a whole, and the areas that pictures and frames share."""

    attributes = ("image_processor", "video_processor", "feature_extractor", "tokenizer")
    image_processor: ImageProcessor
    video_processor: VideoProcessor
    feature_extractor: Any
    tokenizer: Any

    @property
    def model_input_names(self) -> list[str]:
        """Names that the result may hold."""
        return [
            "input_ids",
            "attention_mask",
            "pixel_values",
            "image_grid_thw",
            "pixel_values_videos",
            "video_grid_thw",
            "video_second_per_grid",
            "input_features",
            "feature_attention_mask",
        ]

    @property
    def settings(self) -> ProcessorSettings:
        """The preprocessor settings as they are now."""
        from ms_omni.input.mel_extractor import settings_of  # imports transformers

        return ProcessorSettings(self.image_processor, self.video_processor, settings_of(self.feature_extractor))

    def to_dict(self) -> dict[str, Any]:
        """The settings of all parts but the tokenizer, as transformers' processors give them."""
        parts = {name: getattr(self, name).to_dict() for name in self.attributes if name != "tokenizer"}
        return {"processor_class": type(self).__name__, **parts}

    def to_json_string(self) -> str:
        """`to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True, default=list) + "\n"

    def __repr__(self) -> str:
        return f"{type(self).__name__}:\n- tokenizer: {self.tokenizer!r}\n{self.to_json_string()}"

    @property
    def max_pixels(self) -> int:
        """Largest area of a resized picture; setting it sets that of video frames too, and brings larger min_pixels down."""
        return self.image_processor.max_pixels

    @max_pixels.setter
    def max_pixels(self, value: int) -> None:
        for part in (self.image_processor, self.video_processor):
            part.max_pixels, part.min_pixels = value, min(part.min_pixels, value)

    @property
    def min_pixels(self) -> int:
        """Smallest area of a resized picture; setting it sets that of video frames as well."""
        return self.image_processor.min_pixels

    @min_pixels.setter
    def min_pixels(self, value: int) -> None:
        self.image_processor.min_pixels = self.video_processor.min_pixels = value


@dataclass
class MultiModalData:
    """Token counts of media; None where not asked for. Read as attributes, `x["..."]` and `"..." in x`."""

    num_image_tokens: list[int] | None = None
    num_video_tokens: list[int] | None = None
    num_audio_tokens: list[int] | None = None
    num_image_patches: list[int] | None = None

    def __contains__(self, key: str) -> bool:
        return getattr(self, key, None) is not None

    def __getitem__(self, key: str) -> list[int]:
        if key in self:
            return getattr(self, key)
        raise KeyError(key)


def count_tokens(
    processor: Any,
    options: CallOptions,
    image_sizes: Sequence[Sequence[int]] | None,
    video_sizes: Sequence[Sequence[int]] | None,
    audio_lengths: Sequence[int] | None,
) -> MultiModalData:
    """Tokens of pictures (height, width), videos (frames, height, width) and sounds (samples), in that processor."""
    data, image, video = MultiModalData(), processor.image_processor, processor.video_processor
    if image_sizes is not None:
        own = options.vision("image")
        data.num_image_patches = [image.get_number_of_image_patches(*size, own) for size in image_sizes]
        data.num_image_tokens = [n // own.get("merge_size", image.merge_size) ** 2 for n in data.num_image_patches]
    if video_sizes is not None:
        own = options.vision("video")
        patches = [video.get_num_of_video_patches(*size, own) for size in video_sizes]
        data.num_video_tokens = [n // own.get("merge_size", video.merge_size) ** 2 for n in patches]
    if audio_lengths is not None:
        hop = processor.feature_extractor.hop_length
        data.num_audio_tokens = [int(audio_token_count(length // hop)) for length in audio_lengths]
    return data
