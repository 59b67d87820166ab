"""A sound as a picture: its waveform, and how loud each frequency is at each moment."""

import numpy as np
from PIL import Image, ImageDraw

RATE_HZ = 16_000
WINDOW, HOP = 400, 80  # samples: 25 ms and 5 ms
TRANSFORM = 1024
TOP_HZ = 7_000
RANGE_DB = 65  # below the loudest moment everything is dark
DARK = (14, 12, 30)
COLOURS = np.array(
    [DARK, (56, 16, 98), (130, 34, 120), (205, 62, 92), (250, 130, 70), (254, 205, 120), (252, 250, 215)], np.float64
)


def spectrogram(samples, size):
    """Picture of `size` (width, height) of float32 samples at 16 kHz: time to the right, 0 to 7 kHz upwards."""
    levels = loudness(samples)[: TOP_HZ * TRANSFORM // RATE_HZ]
    shares = np.clip(1 + (levels - levels.max()) / RANGE_DB, 0, 1)
    image = Image.fromarray(colours(shares[::-1]))
    return image.resize(size, Image.Resampling.BICUBIC)


def loudness(samples):
    """Decibels `[TRANSFORM / 2 + 1, T]`."""
    padded = np.pad(np.asarray(samples, np.float64), (WINDOW // 2, WINDOW))
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP] * np.hanning(WINDOW)
    return 20 * np.log10(np.abs(np.fft.rfft(frames, TRANSFORM)).T + 1e-4)


def colours(shares):
    """0 to 1 `[H, W]` as uint8 `[H, W, 3]`, from dark violet to pale yellow."""
    places = np.linspace(0, 1, len(COLOURS))
    return np.stack([np.interp(shares, places, COLOURS[:, part]) for part in range(3)], -1).round().astype(np.uint8)


def waveform(samples, size, colour, ground):
    """Picture of `size` of the samples' extent in each column."""
    width, height = size
    image = Image.new("RGB", size, ground)
    draw, middle = ImageDraw.Draw(image), (height - 1) / 2
    scale = middle / max(1e-3, float(np.abs(samples).max(initial=0.0)))
    for column, part in enumerate(np.array_split(np.asarray(samples), width)):
        if len(part):
            draw.line((column, middle - part.max() * scale, column, middle - part.min() * scale), fill=colour)
    draw.line((0, middle, width, middle), fill=colour)
    return image
