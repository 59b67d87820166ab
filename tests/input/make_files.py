"""Small media files, whole and odd, written with Pillow, soundfile and PyAV."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

_LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}


def tone(seconds: float, rate_hz: int, channels: int = 1) -> np.ndarray:
    """int16 `[samples, channels]`."""
    time_s = np.arange(int(seconds * rate_hz)) / rate_hz
    return np.stack([8000 * np.sin(2 * np.pi * 330 * (k + 1) * time_s) for k in range(channels)], -1).astype(np.int16)


def frame_picture(index: int, width: int, height: int) -> np.ndarray:
    """Red grows with the frame number; a white mark in the top left corner shows how the picture is turned."""
    picture = np.zeros((height, width, 3), np.uint8)
    picture[..., 0] = index * 8 % 256
    picture[: height // 4, : width // 4] = 255
    return picture


def write_video(
    path: Path,
    *,
    frames: int = 30,
    fps: int = 10,
    size: tuple[int, int] = (96, 64),
    sound: bool = True,
    codec: str = "libx264",
    times_ms: list[int] | None = None,
    options: dict | None = None,
    late_s: float = 0.0,
    samples: list[np.ndarray] | None = None,
    aspect: tuple[int, int] = (1, 1),
    noise: bool = False,
) -> Path:
    """A video of `frames` pictures (width, height in `size`), with as long a stereo sound track if asked for.

    `times_ms` gives each frame its own time: variable frame rate. The sound begins `late_s` after the pictures. With `samples`
    there is a track of each, int16 at 44.1 kHz, the last one being the default. Pixels are as wide to high as `aspect`.
    AVI counts times in frames, and those that are left out as dropped ones.
    """
    with av.open(str(path), "w", options=options or {}) as container:
        video = container.add_stream(codec, rate=fps, options={"threads": "1"})
        video.width, video.height = size
        video.pix_fmt = "rgb8" if codec == "gif" else "yuvj420p" if codec == "mjpeg" else "yuv420p"
        video.codec_context.sample_aspect_ratio = Fraction(*aspect)
        if times_ms is not None and path.suffix != ".avi":
            video.codec_context.time_base = Fraction(1, 1000)
        samples = samples or [tone(frames / fps, 44100, 2)] if sound else []
        audios = [container.add_stream("aac", rate=44100, layout=_LAYOUTS[track.shape[1]]) for track in samples]
        for audio in audios:
            audio.disposition = av.stream.Disposition.default if audio is audios[-1] else av.stream.Disposition(0)
        for index in range(frames):
            picture = np.random.default_rng(index).integers(0, 256, (size[1], size[0], 3), np.uint8) if noise else None
            frame = av.VideoFrame.from_ndarray(frame_picture(index, *size) if picture is None else picture, format="rgb24")
            if times_ms is not None:
                frame.pts, frame.time_base = times_ms[index], Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        for audio, track in zip(audios, samples):
            write_track(container, audio, track, 44100, late_s)
    return path


def write_track(container, stream, samples: np.ndarray, rate_hz: int, late_s: float = 0.0) -> None:
    """Encode int16 `[samples, channels]` into an open container, from `late_s` on."""
    layout = _LAYOUTS[samples.shape[1]]
    if not len(samples):
        return
    frame = av.AudioFrame.from_ndarray(samples.reshape(1, -1), format="s16", layout=layout)
    frame.sample_rate, frame.pts, frame.time_base = rate_hz, round(late_s * rate_hz), Fraction(1, rate_hz)
    resampler = av.AudioResampler(stream.format.name, layout, rate_hz, frame_size=stream.frame_size or 1024)
    for piece in (*resampler.resample(frame), *resampler.resample(None)):
        container.mux(stream.encode(piece))
    container.mux(stream.encode(None))


def write_sound(path: Path, samples: np.ndarray, rate_hz: int, codec: str, cover: np.ndarray | None = None) -> Path:
    """A sound file through FFmpeg's libraries, with a cover picture `[H, W, 3]` if there is one."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate_hz, layout=_LAYOUTS[samples.shape[1]])
        if codec == "wmav2":  # knows no default
            stream.bit_rate = 64000
        if cover is not None:
            picture = container.add_stream("png", width=cover.shape[1], height=cover.shape[0], pix_fmt="rgb24")
            picture.disposition = av.stream.Disposition.attached_pic
            container.mux(picture.encode(av.VideoFrame.from_ndarray(cover, format="rgb24")))
            container.mux(picture.encode(None))
        write_track(container, stream, samples, rate_hz)
    return path


def display_in_place(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Write a display matrix (a, b, c, d) into the video track header of an MP4."""
    a, b, c, d = (value << 16 for value in matrix)
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4 + 40  # version and flags, times, ids, duration, layer, volume
    content[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)


def cut(path: Path, share: float) -> Path:
    """A copy with only the first `share` of the bytes."""
    content = path.read_bytes()
    target = path.with_name(f"cut_{int(share * 100)}_{path.name}")
    target.write_bytes(content[: int(len(content) * share)])
    return target
