"""What callers ask a server: the same mix as on an engine, as messages of OpenAI's API."""

import base64
import io
import wave
from typing import Any

import numpy as np
from PIL import Image

from .callers import Caller

COMMON = """
the of and to in is that it was for on are as with his they at be this from have or by one had not but what all were when we there can an
your which their said if do will each about how up out them then she many some so these would other into has more
"""
WORDS = COMMON.split()
"""Each of them one token for most tokenizers."""
PICTURE_PIXELS, SOUND_S, SOUND_RATE_HZ = 224, 2.0, 16_000


def question(caller: Caller, model: str, voice: str) -> dict[str, Any]:
    """The body of his call: as many words as his prompt has tokens, or a picture and a sound of his own; streamed."""
    rng = np.random.default_rng(caller.seed)
    body = {
        "model": model,
        "messages": [{"role": "user", "content": _content(caller, rng)}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_completion_tokens": caller.tokens,
        "temperature": 0,
        "seed": caller.seed[-1],
    }
    if caller.frames:
        return {**body, "modalities": ["text", "audio"], "audio": {"voice": voice, "format": "pcm16"}}
    return {**body, "modalities": ["text"]}


def _content(caller, rng):
    if not caller.shows:
        return " ".join(rng.choice(WORDS, max(caller.prompt, 1)))
    return [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{_picture(rng)}"}},
        {"type": "input_audio", "input_audio": {"data": _sound(rng), "format": "wav"}},
        {"type": "text", "text": "What do you see and hear?"},
    ]


def _picture(rng):
    pixels = rng.integers(0, 256, (PICTURE_PIXELS // 16, PICTURE_PIXELS // 16, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((PICTURE_PIXELS, PICTURE_PIXELS)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def _sound(rng):
    moments = np.arange(int(SOUND_S * SOUND_RATE_HZ)) / SOUND_RATE_HZ
    samples = np.sin(2 * np.pi * rng.uniform(200, 800) * moments) * 8000 + rng.normal(0, 300, len(moments))
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setparams((1, 2, SOUND_RATE_HZ, 0, "NONE", "not compressed"))
        sound.writeframes(samples.astype("<i2").tobytes())
    return base64.b64encode(file.getvalue()).decode()
