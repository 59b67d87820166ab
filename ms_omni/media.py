"""Files, URLs and arrays to RGB pictures, 16 kHz mono sound and sampled video frames. No MindSpore, no PyTorch."""

from ms_omni.input.access import AccessPolicy
from ms_omni.input.audio import SAMPLING_RATE_HZ
from ms_omni.input.limits import MediaLimits, limits
from ms_omni.input.load import load_audio, load_image, load_video
from ms_omni.input.media import Media, VideoFrames
from ms_omni.input.messages import Item, Message, read_batch
from ms_omni.input.mm_info import (
    extract_vision_info,
    fetch_image,
    fetch_video,
    process_audio_info,
    process_mm_info,
    process_vision_info,
    smart_resize,
)

__all__ = [
    "SAMPLING_RATE_HZ",
    "AccessPolicy",
    "Item",
    "Media",
    "MediaLimits",
    "Message",
    "VideoFrames",
    "extract_vision_info",
    "fetch_image",
    "fetch_video",
    "limits",
    "load_audio",
    "load_image",
    "load_video",
    "process_audio_info",
    "process_mm_info",
    "process_vision_info",
    "read_batch",
    "smart_resize",
]
