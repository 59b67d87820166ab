"""The sample files that `ms-omni demo` shows: every kind of medium, in usual formats, by voices that the training never had.

python -m examples.miniature.training.samples     # needs espeak-ng; the same files every time
"""

import argparse
import json
import math
import random
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from ..held_out import VIDEO_FPS, write_video
from . import pictures
from .voices import RATE_HZ, Voice, speak, trim
from .world import DIGITS, DIRECTIONS, UNKNOWN, phrase

FOLDER = Path(__file__).resolve().parents[1] / "samples"
SIZE, VIDEO_SIZE = (400, 300), (384, 256)  # pixels, width first
VIDEO_S = 3.0
LOUDNESS = 0.6  # of the loudest sample
PALE, DARK, GREY = (244, 241, 232), (28, 30, 40), (205, 208, 214)


def spoken(digits: str, voice: Voice, seconds: float | None = None) -> np.ndarray:
    """A spoken digit string in the middle of a little silence and a faint noise: float32 at 16 kHz."""
    samples = trim(speak(" ".join(DIGITS[int(digit)] for digit in digits), voice))
    free = max(int(0.4 * RATE_HZ), 0 if seconds is None else int(seconds * RATE_HZ) - len(samples))
    track = np.pad(samples / np.abs(samples).max() * LOUDNESS, (free // 2, free - free // 2))
    return (track + 1e-3 * np.random.default_rng(len(digits)).standard_normal(len(track))).astype(np.float32)


def still(colour: str, shape: str, ground: tuple, place: tuple[float, float], radius: float) -> Image.Image:
    """A picture with one shape; place and radius are shares of the picture's sides and of its shorter one."""
    centre = (place[0] * SIZE[0], place[1] * SIZE[1])
    shade = pictures.shade(random.Random(f"{colour} {shape}"), colour, 0.5)
    return pictures.draw_shape(SIZE, ground, shade, shape, centre, radius * min(SIZE))


def moving(colour: str, shape: str, ground: tuple, direction: str) -> np.ndarray:
    """Frames uint8 `[T, H, W, 3]` of a shape that goes straight from one side to the other."""
    count, radius = round(VIDEO_S * VIDEO_FPS), 0.18 * min(VIDEO_SIZE)
    shade = pictures.shade(random.Random(f"{colour} {shape}"), colour, 0.5)
    frames = []
    for index in range(count):
        way = 2 * index / (count - 1) - 1
        centre = [side / 2 + way * step * (side / 2 - 1.2 * radius) for side, step in zip(VIDEO_SIZE, DIRECTIONS[direction])]
        turn = 0.1 * math.sin(index / 4)
        frames.append(np.asarray(pictures.draw_shape(VIDEO_SIZE, ground, shade, shape, centre, radius, turn)))
    return np.stack(frames)


def write_media(folder: Path) -> None:
    """Sounds as WAV and FLAC, pictures as JPEG and PNG, videos as MP4, one of them with sound."""
    soundfile.write(folder / "digits.wav", spoken("374", Voice("en-us+f5", 150, 50)), RATE_HZ, subtype="PCM_16")
    soundfile.write(folder / "digits.flac", spoken("9061", Voice("en-gb+m4", 165, 45, 1)), RATE_HZ, subtype="PCM_16")
    still("orange", "star", DARK, (0.6, 0.45), 0.36).save(folder / "star.jpg", quality=92)
    still("blue", "circle", PALE, (0.35, 0.5), 0.3).save(folder / "circle.png", optimize=True)
    still("green", "triangle", GREY, (0.62, 0.52), 0.33).save(folder / "triangle.jpg", quality=92)
    write_video(folder / "moving.mp4", moving("red", "square", PALE, "left"), VIDEO_FPS)
    voice = Voice("en-gb-scotland+Andrea", 160, 50)
    write_video(
        folder / "moving_and_speech.mp4", moving("purple", "circle", GREY, "up"), VIDEO_FPS, spoken("52", voice, VIDEO_S)
    )


def entry(name: str, question: str, answer: str, shown: str, use_audio_in_video: bool = False, **media) -> dict:
    """One question of the demo. media: kind of medium -> file name, or several names."""
    items = [
        {"type": kind, "file": file}
        for kind, files in media.items()
        for file in ((files,) if isinstance(files, str) else files)
    ]
    return {
        "name": name,
        "question": question,
        "answer": answer,
        "shown": shown,
        "media": items,
        "use_audio_in_video": use_audio_in_video,
    }


def entries() -> list[dict]:
    """What is asked about the files, and what is right."""
    both = phrase("blue", "circle"), phrase("green", "triangle")
    return [
        entry("speech_wav", "What number do you hear?", "374", "spoken: three seven four", audio="digits.wav"),
        entry("speech_flac", "Which digits do you hear?", "9061", "spoken: nine zero six one", audio="digits.flac"),
        entry("picture", "What do you see?", phrase("orange", "star"), "picture: an orange star", image="star.jpg"),
        entry(
            "two_pictures",
            "What is in the two pictures?",
            " and ".join(both),
            f"pictures: {both[0]}, {both[1]}",
            image=("circle.png", "triangle.jpg"),
        ),
        entry("video", "Which way does it move?", "left", "video: a red square goes left", video="moving.mp4"),
        entry(
            "video_with_sound",
            "Where does it go, and what number do you hear?",
            "up and 52",
            "video: a purple circle goes up; spoken: five two",
            True,
            video="moving_and_speech.mp4",
        ),
        entry(
            "video_without_its_sound",
            "What number do you hear?",
            UNKNOWN,
            "the same video, its sound not listened to",
            video="moving_and_speech.mp4",
        ),
        entry("sum", "What is 4 + 5?", "9", "text"),
        entry("repeat", "Say a yellow square and 806.", f"{phrase('yellow', 'square')} and 806", "text"),
        entry("outside", "What is the capital of France?", UNKNOWN, "text about something outside its world"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where to write the files")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    write_media(folder)
    (folder / "samples.json").write_text(json.dumps(entries(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
