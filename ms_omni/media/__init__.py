"""Files, URLs and arrays to RGB pictures, 16 kHz mono sound and sampled video frames. No MindSpore, no PyTorch."""

from ms_omni.media.audio import SAMPLING_RATE_HZ, load_audio
from ms_omni.media.conversation import MediaItems, collect_media, media_parts, process_mm_info
from ms_omni.media.image import load_image
from ms_omni.media.video import VideoClip, VideoFrames, load_video

__all__ = [
    "SAMPLING_RATE_HZ",
    "MediaItems",
    "VideoClip",
    "VideoFrames",
    "collect_media",
    "load_audio",
    "load_image",
    "load_video",
    "media_parts",
    "process_mm_info",
]
