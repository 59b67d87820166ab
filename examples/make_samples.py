"""Make the sample files that lie beside this script: a picture, a spoken sentence, and a short video with sound.

Nothing needs to be run to use them. To make them again: `apt-get install espeak-ng`, then `python
examples/make_samples.py`.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from pathlib import Path

import av
import numpy as np
import soundfile
import soxr
from PIL import Image, ImageDraw

SENTENCE = "The red ball bounces three times, and then it rests."
COUNTING = "One. Two. Three."
RATE_HZ = 16_000
VIDEO_FPS = 12
VIDEO_SECONDS = 4
BOUNCES_S = (1.0, 2.0, 3.0)


def speak(text: str, words_per_minute: int) -> np.ndarray:
    """The text spoken by espeak-ng: float32 mono at 16 kHz."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        subprocess.run(["espeak-ng", "-v", "en-gb", "-s", str(words_per_minute), "-w", str(path), text], check=True)
        samples, rate_hz = soundfile.read(path, dtype="float32")
    return soxr.resample(samples, rate_hz, RATE_HZ, quality="HQ")


def draw_picture(width: int = 480, height: int = 320) -> Image.Image:
    """A house, a tree and the sun over a green meadow."""
    image = Image.new("RGB", (width, height), (135, 206, 235))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 210, width, height), fill=(86, 152, 64))
    draw.ellipse((380, 30, 440, 90), fill=(255, 215, 0))
    draw.rectangle((90, 140, 230, 250), fill=(178, 58, 46))
    draw.polygon(((75, 140), (245, 140), (160, 70)), fill=(92, 51, 23))
    draw.rectangle((145, 190, 175, 250), fill=(60, 36, 18))
    for left in (102, 192):
        draw.rectangle((left, 160, left + 26, 186), fill=(250, 240, 190))
    draw.rectangle((338, 170, 356, 255), fill=(101, 67, 33))
    draw.ellipse((300, 90, 394, 190), fill=(34, 110, 34))
    return image


def draw_frame(time_s: float, width: int = 256, height: int = 192) -> Image.Image:
    """A red ball that touches the ground at 1, 2 and 3 seconds, and rests from then on."""
    image = Image.new("RGB", (width, height), (240, 240, 235))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 160, width, height), fill=(70, 110, 160))
    phase = time_s % 1.0
    lift = 0.0 if time_s >= BOUNCES_S[-1] else 4.0 * phase * (1.0 - phase)
    centre = (int(40 + 45 * min(time_s, BOUNCES_S[-1])), int(140 - 100 * lift))
    draw.ellipse((centre[0] - 20, centre[1] - 20, centre[0] + 20, centre[1] + 20), fill=(205, 30, 30))
    return image


def sound_track() -> np.ndarray:
    """A knock at each bounce and a voice that counts: float32 mono at 16 kHz."""
    track = np.zeros(VIDEO_SECONDS * RATE_HZ, np.float32)
    time_s = np.arange(RATE_HZ // 8) / RATE_HZ
    knock = (0.5 * np.sin(2 * np.pi * 180 * time_s) * np.exp(-40 * time_s)).astype(np.float32)
    for word, start_s in zip(COUNTING.split(), BOUNCES_S):
        for sound, delay_s in ((knock, 0.0), (0.8 * speak(word, 170), 0.1)):
            first = int((start_s + delay_s) * RATE_HZ)
            part = sound[: len(track) - first]
            track[first : first + len(part)] += part
    return np.clip(track, -1.0, 1.0)


def write_video(path: Path) -> None:
    """H.264 pictures and AAC sound in an MP4."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=VIDEO_FPS, options={"crf": "28", "threads": "1"})
        video.width, video.height, video.pix_fmt = 256, 192, "yuv420p"
        audio = container.add_stream("aac", rate=RATE_HZ, layout="mono")
        for index in range(VIDEO_FPS * VIDEO_SECONDS):
            container.mux(video.encode(av.VideoFrame.from_image(draw_frame(index / VIDEO_FPS))))
        container.mux(video.encode(None))
        samples = (sound_track() * 32767).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate = RATE_HZ
        resampler = av.AudioResampler(format=audio.format.name, layout="mono", rate=RATE_HZ, frame_size=1024)
        for piece in (*resampler.resample(frame), *resampler.resample(None)):
            container.mux(audio.encode(piece))
        container.mux(audio.encode(None))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(__file__).resolve().parent, help="where to write the files")
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    draw_picture().save(folder / "picture.jpg", quality=90)
    soundfile.write(folder / "speech.wav", speak(SENTENCE, 150), RATE_HZ, subtype="PCM_16")
    write_video(folder / "video.mp4")


if __name__ == "__main__":
    main()
