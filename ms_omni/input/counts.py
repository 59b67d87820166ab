"""How many tokens media become, without the media."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ms_omni.input.arguments import CallOptions
from ms_omni.input.mel import audio_token_count


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
