"""Media and prompts for which the reference's results are recorded, made alike on both sides."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
AUDIO = "<|audio_start|><|audio_pad|><|audio_end|>"
VIDEO = "<|vision_start|><|video_pad|><|vision_end|>"


def chat(*parts: str) -> str:
    """One user turn and the head of the answer."""
    return f"<|im_start|>user\n{''.join(parts)}<|im_end|>\n<|im_start|>assistant\n"


def picture(height: int, width: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """A smooth coloured pattern with some noise, in the given mode."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [127 + 90 * np.sin(rows / (7 + 3 * k) + columns / (11 - 2 * k) + seed) for k in range(3)]
    noisy = np.stack(waves, -1) + rng.integers(-20, 21, (height, width, 3))
    image = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
    if mode == "RGBA":
        image.putalpha(Image.fromarray(((rows * 5 + columns * 3) % 256).astype(np.uint8)))
    return image if mode in ("RGB", "RGBA") else image.convert(mode)


def sound(samples: int, seed: int = 0) -> np.ndarray:
    """A gliding tone with noise: float32 mono."""
    rng = np.random.default_rng(100 + seed)
    time_s = np.arange(samples) / 16000
    tone = 0.4 * np.sin(2 * np.pi * (200 + 150 * seed + 60 * time_s) * time_s)
    return (tone + 0.02 * rng.standard_normal(samples)).astype(np.float32)


def frames(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """uint8 `[T, C, H, W]`."""
    return np.stack([np.asarray(picture(height, width, seed=seed + index)).transpose(2, 0, 1) for index in range(count)])


def cases() -> dict[str, dict[str, Any]]:
    """Arguments of the processor by case name; `fps` is a number, since the reference takes one for all videos.

    `sound_of_video` are the reference's audio_from_video_indices.
    """
    return {
        "text": {"text": [chat("What is in this picture? caf\u00e9 \u65e5\u672c 42")]},
        "two_images": {
            "text": [chat(IMAGE, "and", IMAGE, "describe")],
            "images": [picture(100, 150), picture(333, 207, seed=1)],
        },
        "image_modes": {
            "text": [chat(IMAGE * 4)],
            "images": [picture(64, 90, "L"), picture(70, 64, "P"), picture(80, 96, "CMYK"), picture(91, 77, "RGBA")],
        },
        "odd_sizes": {
            "text": [chat(IMAGE * 5)],
            "images": [picture(1, 1), picture(10, 1000), picture(20, 31), picture(3, 600), picture(48, 80)],
        },
        "pixel_limits": {"text": [chat(IMAGE)], "images": [picture(480, 640)], "min_pixels": 4096, "max_pixels": 50000},
        "audio": {"text": [chat(AUDIO, "what does it say")], "audio": [sound(33333)]},
        "two_audios": {"text": [chat(AUDIO, AUDIO)], "audio": [sound(16000), sound(48123, 1)]},
        "short_audio": {"text": [chat(AUDIO)], "audio": [sound(201)]},
        "audio_11s": {"text": [chat(AUDIO)], "audio": [sound(11 * 16000 + 77)]},
        "audio_35s": {"text": [chat(AUDIO)], "audio": [sound(35 * 16000)]},
        "video": {"text": [chat(VIDEO, "describe")], "videos": [frames(6, 120, 200)], "fps": 2.0},
        "two_videos_odd": {
            "text": [chat(VIDEO, "and", VIDEO)],
            "videos": [frames(5, 64, 64), frames(4, 100, 60, 3)],
            "fps": 1.0,
        },
        "everything": {
            "text": [chat(IMAGE, AUDIO, VIDEO, "answer")],
            "images": [picture(64, 96)],
            "audio": [sound(20000)],
            "videos": [frames(4, 96, 128)],
            "fps": 2.0,
        },
        "audio_in_video": {
            "text": [chat(VIDEO, "what")],
            "videos": [frames(6, 96, 128)],
            "audio": [sound(48000)],
            "sound_of_video": [0],
            "fps": 2.0,
        },
        "audio_in_video_fractional": {
            "text": [chat(VIDEO, AUDIO)],
            "videos": [frames(8, 96, 128)],
            "audio": [sound(40000), sound(9000, 1)],
            "sound_of_video": [0, None],
            "fps": 14 / 3,
        },
        "silent_and_sounding": {
            "text": [chat(VIDEO, AUDIO, VIDEO)],
            "videos": [frames(4, 96, 128), frames(6, 64, 64, 2)],
            "audio": [sound(9000), sound(31000, 1)],
            "sound_of_video": [None, 1],
            "fps": 1.7,
        },
        "batch": {
            "text": [chat(IMAGE, "what is this"), chat("hello"), chat(AUDIO, VIDEO, "hear and see")],
            "images": [picture(64, 64)],
            "audio": [sound(17000)],
            "videos": [frames(4, 64, 64)],
            "fps": 2.0,
        },
    }
