"""One picture of the whole demo: what went in at the left, question and answer, and the spoken answer at the right, sounds as waveforms
above spectrograms.
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..input.load import load_audio, load_image, load_video
from ..outputs import SPEECH_RATE_HZ
from .samples import Answer, Sample

WIDTH, ROW, HEAD, MARGIN, GAP = 1640, 176, 96, 28, 12
LEFT, MIDDLE = 520, 440  # widths of the columns; the rest is for speech
WAVE = 44  # height of a waveform
LEAST_FRAMES = 3  # shown of a video
TRANSCRIPT_LETTERS = 28  # shown of a transcript
INK, PALE, RULE, PAPER = "#1b1f24", "#6b7480", "#e1e5ea", "#f3f5f8"
GOOD, BAD, GIVEN, SPOKEN = "#1a7f4b", "#b3402e", "#2f6fde", "#b0487a"

RATE_HZ = 16_000
WINDOW, HOP, TRANSFORM = 400, 80, 1024  # samples: 25 ms and 5 ms; of a Fourier transform
TOP_HZ = 7_000
RANGE_DB = 65  # below the loudest moment everything is dark
DARK = (14, 12, 30)
COLOURS = np.array(
    [DARK, (56, 16, 98), (130, 34, 120), (205, 62, 92), (250, 130, 70), (254, 205, 120), (252, 250, 215)], np.float64
)

Size = tuple[int, int]


def draw(title: str, samples: Sequence[Sample], answers: Sequence[Answer], file: Any) -> None:
    """Writes the picture to `file` (.png)."""
    sheet = Image.new("RGB", (WIDTH, HEAD + ROW * len(samples) + MARGIN), "white")
    canvas = ImageDraw.Draw(sheet)
    _write(canvas, (MARGIN, 18), title, 26)
    for x, words in ((MARGIN, "goes in"), (MARGIN + LEFT, "asked and answered"), (MARGIN + LEFT + MIDDLE, "comes out")):
        _write(canvas, (x, 66), words, 14, PALE)
    space = WIDTH - LEFT - MIDDLE - 2 * MARGIN
    longest_s = max([len(answer.speech) / SPEECH_RATE_HZ for answer in answers] + [1.0])
    for index, (sample, answer) in enumerate(zip(samples, answers)):
        top = HEAD + index * ROW
        canvas.line((MARGIN, top - GAP / 2, WIDTH - MARGIN, top - GAP / 2), fill=RULE)
        sheet.paste(_input(sample, (LEFT - 2 * GAP, ROW - GAP)), (MARGIN, top))
        _words(canvas, (MARGIN + LEFT, top), sample, answer)
        if len(answer.speech):
            samples_16k = load_audio((answer.speech, SPEECH_RATE_HZ))
            width = max(40, round(space * len(answer.speech) / SPEECH_RATE_HZ / longest_s))
            sheet.paste(_sound(samples_16k, (width, ROW - GAP), SPOKEN), (MARGIN + LEFT + MIDDLE, top))
    sheet.save(file, format="PNG", optimize=True)


def _words(canvas: ImageDraw.ImageDraw, corner: Size, sample: Sample, answer: Answer) -> None:
    x, y = corner
    for part in textwrap.wrap(sample.shown, 52):
        _write(canvas, (x, y), part, 14, PALE)
        y += 18
    for part in textwrap.wrap(sample.question, 44):
        _write(canvas, (x, y + 6), part, 17)
        y += 22
    right = answer.text == sample.answer
    for part in textwrap.wrap(answer.text, 30):
        _write(canvas, (x, y + 14), part, 23, GOOD if right else BAD)
        y += 28
    if not right:
        _write(canvas, (x, y + 14), f"expected: {sample.answer}", 14, BAD)
        y += 18
    notes = [answer.speaker, f"{len(answer.speech) / SPEECH_RATE_HZ:.2f} s of speech"] if len(answer.speech) else []
    if answer.transcript is not None:
        notes.append(f"its own ears hear {textwrap.shorten(answer.transcript, TRANSCRIPT_LETTERS, placeholder=' ...')}")
    _write(canvas, (x, y + 20), ", ".join(notes), 13, PALE)


def _input(sample: Sample, size: Size) -> Image.Image:
    """What goes in, side by side."""
    sheet = Image.new("RGB", size, "white")
    if not sample.media:
        ImageDraw.Draw(sheet).rounded_rectangle((0, 0, size[0] - 1, size[1] - 1), 8, fill=PAPER)
        lines = textwrap.wrap(f"\u201c{sample.question}\u201d", 30)
        for index, part in enumerate(lines):
            middle = (size[0] / 2, size[1] / 2 + 30 * (index - (len(lines) - 1) / 2))
            _write(ImageDraw.Draw(sheet), middle, part, 22, PALE, "mm")
        return sheet
    width = (size[0] - GAP * (len(sample.media) - 1)) // len(sample.media)
    for index, (kind, file) in enumerate(sample.media):
        sheet.paste(_medium(kind, file, sample.use_audio_in_video, (width, size[1])), (index * (width + GAP), 0))
    return sheet


def _medium(kind: str, file: Path, with_sound: bool, size: Size) -> Image.Image:
    if kind == "audio":
        return _sound(load_audio(str(file)), size, GIVEN)
    if kind == "image":
        return _fit(load_image(str(file)), size)
    strip_height = size[1] if not with_sound else round(size[1] * 0.5)
    sheet = Image.new("RGB", size, "white")
    sheet.paste(_strip(load_video(str(file)).data, (size[0], strip_height)), (0, 0))
    if with_sound:
        sheet.paste(_sound(load_audio(str(file)), (size[0], size[1] - strip_height - 4), GIVEN), (0, strip_height + 4))
    return sheet


def _fit(image: Image.Image, size: Size) -> Image.Image:
    """The image in its proportions, at the left of its room."""
    scale = min(size[0] / image.width, size[1] / image.height)
    small = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    sheet = Image.new("RGB", size, "white")
    sheet.paste(small, (0, 0))
    return sheet


def _strip(frames: np.ndarray, size: Size) -> Image.Image:
    """Frames `[T, C, H, W]` of a video side by side, evenly spread over it, as many as fit."""
    pictures = [Image.fromarray(np.ascontiguousarray(frame.transpose(1, 2, 0))) for frame in frames]
    high, wide = frames.shape[2:]
    count = int(np.clip(round(size[0] * high / (size[1] * wide)), min(LEAST_FRAMES, len(pictures)), len(pictures)))
    sheet, width = Image.new("RGB", size, "white"), (size[0] - 4 * (count - 1)) // count
    for column, index in enumerate(np.linspace(0, len(pictures) - 1, count).round().astype(int)):
        sheet.paste(_fit(pictures[index], (width, size[1])), (column * (width + 4), 0))
    return sheet


def _sound(samples: np.ndarray, size: Size, colour: str) -> Image.Image:
    """Waveform above spectrogram; samples float32 at 16 kHz."""
    wave = min(WAVE, size[1] // 3)
    sheet = Image.new("RGB", size, DARK)
    sheet.paste(_waveform(samples, (size[0], wave), colour, PAPER), (0, 0))
    sheet.paste(_spectrogram(samples, (size[0], size[1] - wave)), (0, wave))
    _write(ImageDraw.Draw(sheet), (size[0] - 6, wave + 16), f"{len(samples) / RATE_HZ:.1f} s", 12, PAPER, "rs")
    return sheet


def _spectrogram(samples: np.ndarray, size: Size) -> Image.Image:
    """How loud each frequency is at each moment: time to the right, 0 to 7 kHz upwards, from dark violet to pale yellow."""
    padded = np.pad(np.asarray(samples, np.float64), (WINDOW // 2, WINDOW))
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP] * np.hanning(WINDOW)
    decibels = 20 * np.log10(np.abs(np.fft.rfft(frames, TRANSFORM)).T + 1e-4)[: TOP_HZ * TRANSFORM // RATE_HZ]
    shares = np.clip(1 + (decibels - decibels.max()) / RANGE_DB, 0, 1)[::-1]
    steps = np.linspace(0, 1, len(COLOURS))
    colours = np.stack([np.interp(shares, steps, COLOURS[:, part]) for part in range(3)], -1)
    return Image.fromarray(colours.round().astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)


def _waveform(samples: np.ndarray, size: Size, colour: str, ground: str) -> Image.Image:
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


def _write(canvas, at, text, size, colour=INK, anchor="la"):
    canvas.text(at, text, fill=colour, font=ImageFont.load_default(size), anchor=anchor)
