"""How much a sound, picture or video may decode to. Files are small where what is in them is not."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class MediaLimits:
    """Set these on `ms_omni.media.limits` to take larger media. At the defaults, reading a file stays under 2 GB of memory, but for
    the patches of the longest videos: 768 frames within the published budget of pixels are 2.8 GB of float32.

    Attributes:
        sound_s: longest sound, in seconds, of the part that is taken.
        picture_pixels: largest picture.
        resized_pixels: largest size that a picture or frame is given; the published settings ask for 12.8 million at most.
        frame_pixels: largest frame of a video.
        frames: most frames of a video that are taken; without options of its own a video stays far below.
    """

    sound_s: float = 4200.0
    picture_pixels: int = 1 << 27  # 134 million; telephones make 108
    resized_pixels: int = 1 << 25
    frame_pixels: int = 36_000_000  # 8K film
    frames: int = 2048


limits = MediaLimits()
