"""What a processor is made of, read and set as transformers' processors are."""

from __future__ import annotations

import json
from typing import Any

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
