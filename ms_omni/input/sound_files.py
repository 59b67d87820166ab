"""Sound files and sound tracks as mono pieces, decoded as players do it."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from ms_omni.errors import MediaError
from ms_omni.input.container import Clock, Decoding, open_container, picture_track, sound_track
from ms_omni.input.integrity import check_whole, is_mp3_frame_cut, mp3_declares_length
from ms_omni.input.sources import Source
from ms_omni.notices import caller_level

_INTEGER_SCALE = {np.dtype(np.int8): 2.0**7, np.dtype(np.int16): 2.0**15, np.dtype(np.int32): 2.0**31}
_SHORT_S = 0.01  # less than this below the declared length is rounding
_EARLY_S = 0.1  # what encoders need to begin is less
_BLOCK = 1 << 16  # samples of a piece from libsndfile
_OGG_FIRST_PAGE = 2
_FOR_FFMPEG = (b"RIFF", b"RF64", b"fLaC")
_BELIEVED = ("WAV", "WAVEX", "RF64", "FLAC", "MP3", "MPEG")  # libsndfile believes the headers of these


def to_float(array: np.ndarray, name: str) -> np.ndarray:
    """float32 in -1..1 of the same shape.

    Raises:
        MediaError: a type that holds no samples.
    """
    if array.dtype == np.int64 and array.size and max(array.max(), -array.min()) <= 2**15:
        array = array.astype(np.int32) << 16  # 16-bit samples, as a list of numbers makes them
    if array.dtype == np.uint8:  # unsigned by the convention of WAV, with silence at 128
        return ((array.astype(np.float32) - 128) / 128).astype(np.float32)
    if array.dtype in _INTEGER_SCALE:
        return (array / _INTEGER_SCALE[array.dtype]).astype(np.float32)
    if array.dtype.kind != "f":
        raise MediaError(f"{name} has samples of type {array.dtype}; expected float, int16, int32 or 8 bits.")
    return array.astype(np.float32, copy=False)


def pieces_of_file(source: Source) -> Iterator[tuple[np.ndarray, int]]:
    """Mono pieces float32 `[samples]` of a sound file, each with its rate in Hz.

    Ogg and the rarer formats that libsndfile knows are read with it, as the reference does, all else with FFmpeg's libraries:
    libsndfile believes headers (of WAV, FLAC and MP3) where players look at what is there.

    Raises:
        MediaError: not a sound, cut short or damaged.
    """
    check_whole(source)
    with source.open() as file:
        head = file.read(4)
        mp3 = head[:3] == b"ID3" or (head[:1] == b"\xff" and head[1:2] >= b"\xe0")
        sounds = [] if mp3 or head in _FOR_FFMPEG else _soundfiles(file, source.size_bytes())
        for sound in sounds:
            yield from _with_soundfile(sound, source)
    if not sounds:
        yield from _with_ffmpeg(source)


def pieces_beside_pictures(source: Source) -> Iterator[tuple[np.ndarray, int, float]] | None:
    """Mono pieces of a video's sound track, each with its rate and with its time in seconds since the first picture.

    None when there is no such track.

    Raises:
        MediaError: not a media file, or a track that cannot be decoded.
    """
    with open_container(source, "video") as container:
        if not container.streams.audio:
            return None
        pictures = picture_track(container, source)
        first = next(iter(Decoding(container, pictures)), None)
        start_s = 0.0 if first is None or first.pts is None else float(first.pts * first.time_base)
    return _beside(source, start_s)


def _beside(source: Source, start_s: float) -> Iterator[tuple[np.ndarray, int, float]]:
    with open_container(source, "video") as container:
        stream = sound_track(container, source)
        decoding, clock, early = Decoding(container, stream), Clock(container), True
        for frame in decoding:
            stated_s = None if frame.pts is None else float(frame.pts * frame.time_base) - start_s
            if early and stated_s is not None and stated_s < -_EARLY_S:
                warnings.warn(
                    f"{source.name}: its sound begins {-stated_s:.2f} s before its first picture; that part is left out.",
                    stacklevel=caller_level(),
                )
            early = False
            yield _mono(frame), frame.sample_rate, clock.time_s(stated_s, frame.samples / frame.sample_rate)
        decoding.check(source, "sound")


def _with_ffmpeg(source: Source) -> Iterator[tuple[np.ndarray, int]]:
    with open_container(source, "sound") as container:
        stream = sound_track(container, source)
        stream.codec_context.options = {"err_detect": "crccheck"}
        decoding, seconds = Decoding(container, stream), 0.0
        for frame in decoding:
            yield _mono(frame), frame.sample_rate
            seconds += frame.samples / frame.sample_rate
        declared_s = float(stream.duration * stream.time_base) if stream.duration else 0.0
        if _is_cut(decoding, seconds < declared_s - _SHORT_S, container.format.name, source):
            raise MediaError(
                f"{source.name} is cut short: it ends after {seconds:.2f} of {declared_s:.2f} s, within a frame. Copy or download "
                "it again."
            )
        decoding.check(source, "sound")


def _is_cut(decoding: Decoding, is_short: bool, format_name: str, source: Source) -> bool:
    """Whether the end is missing; where the last frame is whole, a header that declares more is wrong, and what is there is all."""
    stream = decoding.stream
    if format_name == "mp3":  # half a frame is decoded without a word
        return decoding.last is not None and is_mp3_frame_cut(bytes(decoding.last)) and mp3_declares_length(source)
    by_size = stream.codec_context.name.startswith("pcm_") and format_name != "wav"  # of WAV the sizes have been looked at
    return is_short and (decoding.last_broken or by_size or decoding.packets < stream.frames)


class _Part:
    """Bytes of a file for libsndfile, which on damaged files seeks to before the start: an error there could not be caught."""

    def __init__(self, file: BinaryIO, start: int, stop: int) -> None:
        self.file, self.start, self.size, self.position = file, start, stop - start, 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        self.position = max(0, base + offset)
        return self.position

    def tell(self) -> int:
        return self.position

    def read(self, count: int = -1) -> bytes:
        left = max(0, self.size - self.position)
        self.file.seek(self.start + self.position)
        content = self.file.read(left if count < 0 else min(count, left))
        self.position += len(content)
        return content

    def write(self, content: bytes) -> int:  # soundfile asks for it
        raise io.UnsupportedOperation("write")


def _soundfiles(file: BinaryIO, size: int) -> list[Any]:
    """libsndfile's readers, one for each stream of an Ogg file; none of what FFmpeg is to read."""
    import soundfile

    file.seek(0)
    try:
        parts: list[Any] = [_Part(file, *link) for link in _ogg_links(file) or [(0, size)]]
        sounds = [soundfile.SoundFile(part) for part in parts]
    except (soundfile.LibsndfileError, RuntimeError, TypeError):
        return []
    return [] if any(sound.format in _BELIEVED for sound in sounds) else sounds


def _with_soundfile(sound: Any, source: Source) -> Iterator[tuple[np.ndarray, int]]:
    import soundfile

    with sound:
        while True:
            try:
                samples = sound.read(_BLOCK, dtype="float32", always_2d=True)
            except (soundfile.LibsndfileError, RuntimeError, ValueError, MemoryError) as error:
                raise MediaError(f"{source.name} is damaged: {error}") from error
            if not len(samples):
                break
            yield samples.mean(axis=1, dtype=np.float32), sound.samplerate
        if sound.tell() < sound.frames and sound.format != "OGG":  # of Ogg libsndfile may only estimate the length
            raise MediaError(
                f"{source.name} is cut short or damaged: {sound.tell()} of {sound.frames} samples can be read. Copy or download "
                "it again."
            )


def _ogg_links(file: BinaryIO) -> list[tuple[int, int]]:
    """Where the streams of an Ogg file begin and end, which may stand one after the other; empty for what is no Ogg file."""
    starts, opening, position = [], False, 0
    head = file.read(27)
    while len(head) == 27 and head[:4] == b"OggS":
        begins = bool(head[5] & _OGG_FIRST_PAGE)
        if begins and not opening:
            starts.append(position)
        opening = begins
        position += 27 + head[26] + sum(file.read(head[26]))
        file.seek(position)
        head = file.read(27)
    return list(zip(starts, (*starts[1:], position)))


def _mono(frame: Any) -> np.ndarray:
    """float32 `[samples]`: the average of the channels."""
    values = frame.to_ndarray()
    if not frame.format.is_planar:
        values = values.reshape(-1, frame.layout.nb_channels).T
    return to_float(values, "sound").mean(axis=0, dtype=np.float32)
