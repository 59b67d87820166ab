"""Sound files, sound tracks and arrays to mono float32 at 16 kHz, decoded as players do it."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Iterator
from numbers import Real
from typing import Any, BinaryIO, cast

import numpy as np

from ms_omni.arrays import to_array
from ms_omni.errors import MediaError, caller_level
from ms_omni.input.container import Track, open_track
from ms_omni.input.integrity import check_whole, declared_frames, is_mp3_frame_cut, mp3_declares_length, size_bytes
from ms_omni.input.media import LARGEST, limits
from ms_omni.input.sources import ACCEPTED, DICT_ACCEPTED

SAMPLING_RATE_HZ = 16_000
MIN_SAMPLES = 201  # half a mel window at either end is mirrored: shorter clips have nothing to mirror
MOST_CHANNELS = 8
AUDIO_ACCEPTED = f"{ACCEPTED}, an array at {SAMPLING_RATE_HZ} Hz, (array, sampling_rate_hz) in either order, or a dict with {DICT_ACCEPTED}"
_INTEGER_SCALE = {np.dtype(np.int8): 2.0**7, np.dtype(np.int16): 2.0**15, np.dtype(np.int32): 2.0**31}
_SHORT_S = 0.01  # less than this below the declared length is rounding
_EARLY_S = 0.1  # the padding of encoders is shorter
_BLOCK = 1 << 16  # samples of a piece from libsndfile
_OGG_FIRST_PAGE = 2
_FOR_FFMPEG = (b"RIFF", b"RF64", b"fLaC")
_FFMPEG_FORMATS = (
    "WAV",
    "WAVEX",
    "RF64",
    "FLAC",
    "MP3",
    "MPEG",
    "XI",
)  # whose headers libsndfile trusts; XI is of instruments
_CHECKED = ("wav", "avi", "voc")  # whose sizes `check_whole` has compared; the durations that FFmpeg states are estimates
_COUNTED_S = {  # whose headers count the samples: as many seconds less are rounding
    **dict.fromkeys(("ape", "nistsphere", "qoa", "tak", "tta", "wv"), _SHORT_S),
    **dict.fromkeys(("mpc", "mpc8"), _EARLY_S),
}
_GROWTH = 60 * SAMPLING_RATE_HZ
_GAP_S = 0.1  # timestamps are rounded; only an audible gap counts


def decode_audio(value: Any, name: str, start_s: float | None = None, end_s: float | None = None) -> np.ndarray:
    """An open file, an array, a list of numbers or a pair of one and its rate as mono samples; see `load.load_audio`."""
    clip = _Clip(name, start_s, end_s)
    pieces = (
        _pieces_of_file(cast("BinaryIO", value), name) if isinstance(value, io.IOBase) else [_samples_and_rate(value, name)]
    )
    for samples, rate_hz in pieces:
        if not clip.add(samples, checked_rate(rate_hz, name)):
            break
    return check_clip(clip.finish(), name)


def _samples_and_rate(value: Any, name: str) -> tuple[np.ndarray, Any]:
    """The samples and their rate."""
    samples, rate_hz = sound_pair(value) or (value, SAMPLING_RATE_HZ)
    array = np.asarray(samples) if is_number_list(samples) else to_array(samples)
    if array is None:
        raise MediaError(f"{name} is a {type(value).__name__}; give {AUDIO_ACCEPTED}.")
    return _from_array(array, name), rate_hz


def decode_sound_track(
    file: BinaryIO, name: str, start_s: float | None = None, end_s: float | None = None
) -> np.ndarray | None:
    """The sound track of a video from `start_s` to `end_s`; None when there is none that can be used.

    Sample 0 belongs to the picture at `start_s`: where the track begins later than the pictures, or stops for a while, there is
    silence, and what comes before the first picture is left out. A track that is there but cannot be used (empty, damaged, over
    before `start_s`, of an unknown codec, ...) gives a warning.

    Returns:
        float32 `[samples]` at 16 kHz, at least `MIN_SAMPLES` of them.

    Raises:
        MediaError: not a media file, or longer than `limits.sound_s`.
    """
    track = f"the sound track of {name}"
    clip = _Clip(track, start_s, end_s)
    try:
        pieces = _pieces_beside_pictures(file, name)
        if pieces is None:
            return None
        for samples, rate_hz, time_s in pieces:
            if not clip.add(samples, checked_rate(rate_hz, track), time_s):
                break
        return check_clip(clip.finish(), track)
    except _TooLongError:
        raise
    except MediaError as error:
        warnings.warn(f"{name} is seen without sound: {error}", stacklevel=caller_level())
        return None


def check_clip(samples: np.ndarray, name: str) -> np.ndarray:
    """Return `samples` when mel features can be made of them.

    Raises:
        MediaError: fewer than `MIN_SAMPLES`, or not finite.
    """
    if len(samples) < MIN_SAMPLES:
        raise MediaError(
            f"{name} has {len(samples)} samples at {SAMPLING_RATE_HZ} Hz; at least {MIN_SAMPLES} "
            f"({MIN_SAMPLES / SAMPLING_RATE_HZ * 1000:.1f} ms) are needed."
        )
    if not np.isfinite(samples).all():
        raise MediaError(f"{name} holds samples that are not finite (NaN or infinity).")
    return samples


def checked_rate(rate: Any, name: str) -> int:
    """The sampling rate in Hz as a whole number.

    Raises:
        MediaError: not a whole number from 100 to 1,000,000.
    """
    if isinstance(rate, bool) or not isinstance(rate, (int, float, np.number)) or not 100 <= rate <= 1_000_000:
        raise MediaError(f"{name}: the sampling rate is {rate!r}; expected 100 to 1000000 (Hz).")
    if rate != int(rate):
        raise MediaError(f"{name}: the sampling rate is {rate!r} Hz; expected a whole number.")
    return int(rate)


class _TooLongError(MediaError):
    """More than `limits.sound_s`."""


class _Clip:
    """Mono pieces, of one rate after the other, joined at 16 kHz as they come: memory holds the result and one piece."""

    def __init__(self, name: str, start_s: float | None, end_s: float | None) -> None:
        for second in (start_s, end_s):
            if second is not None and not abs(second) <= LARGEST:
                raise MediaError(f"{name}: a second where it starts or ends is not a number up to {LARGEST:.0e}.")
        self.name, self.start_s, self.end_s = name, start_s or 0.0, end_s
        self._samples, self._count = np.empty(_GROWTH, np.float32), 0
        self._earlier_s, self._earlier_count = 0.0, 0  # seconds read and samples made at earlier rates
        self._rate_hz, self._seen, self._taken, self._resampler = 0, 0, 0, None

    def add(self, samples: np.ndarray, rate_hz: int, time_s: float | None = None) -> bool:
        """Append a piece float32 `[samples]` that begins at `time_s`, or where the last one ends; False when the clip is complete.

        Raises:
            MediaError: the clip grows over `limits.sound_s`.
        """
        if rate_hz != self._rate_hz:
            self._end_rate()
            self._begin_rate(rate_hz)
        if time_s is not None:
            samples = self._aligned(samples, time_s)
        first = int((self.start_s - self._earlier_s) * rate_hz)
        last = None if self.end_s is None else int((self.end_s - self._earlier_s) * rate_hz)
        part = samples[max(0, first - self._seen) : None if last is None else max(0, last - self._seen)]
        self._seen, self._taken = self._seen + len(samples), self._taken + len(part)
        if len(part):
            self._append(part if self._resampler is None else self._resampler.resample_chunk(part))
        return last is None or self._seen < last

    def finish(self) -> np.ndarray:
        """The clip, float32 `[samples]` at 16 kHz.

        Raises:
            MediaError: nothing lies between start and end.
        """
        self._end_rate()
        if self._earlier_s and not self._count:
            end = "its end" if self.end_s is None else f"{self.end_s:g} s"
            raise MediaError(
                f"{self.name} lasts {self._earlier_s:.2f} s; nothing lies between {self.start_s:g} s and {end}."
            )
        if not self._count:
            raise MediaError(f"{self.name} holds no samples.")
        self._samples.resize(self._count, refcheck=False)
        return self._samples

    def _begin_rate(self, rate_hz: int) -> None:
        self._rate_hz = rate_hz
        if rate_hz != SAMPLING_RATE_HZ:
            import soxr

            self._resampler = soxr.ResampleStream(rate_hz, SAMPLING_RATE_HZ, 1, dtype="float32", quality="HQ")

    def _end_rate(self) -> None:
        """Close the run of pieces of one rate; its length is rounded up, as librosa does."""
        if self._resampler is not None:
            if self._taken:
                self._append(self._resampler.resample_chunk(np.zeros(0, np.float32), last=True))
            count = self._earlier_count + math.ceil(self._taken * SAMPLING_RATE_HZ / self._rate_hz)
            self._append(np.zeros(max(0, count - self._count), np.float32))
            self._count = count
        if self._rate_hz:
            self._earlier_s += self._seen / self._rate_hz
        self._earlier_count, self._rate_hz, self._seen, self._taken, self._resampler = self._count, 0, 0, 0, None

    def _aligned(self, samples: np.ndarray, time_s: float) -> np.ndarray:
        """The piece without what comes too early, once silence fills what is missing before it."""
        gap_s = time_s - self._earlier_s - self._seen / self._rate_hz
        started = self._earlier_s + self._seen > 0
        gap = round(gap_s * self._rate_hz) if not started or abs(gap_s) > _GAP_S else 0
        while gap > 0:
            silence = np.zeros(min(gap, _GROWTH), np.float32)
            gap = gap - len(silence) if self.add(silence, self._rate_hz) else 0
        return samples[-gap:] if gap < 0 else samples

    def _append(self, samples: np.ndarray) -> None:
        end = self._count + len(samples)
        if end > limits.sound_s * SAMPLING_RATE_HZ:
            raise _TooLongError(
                f"{self.name} lasts over {limits.sound_s:g} s, the limit for sounds; take a part with audio_start and audio_end "
                "(video_start and video_end of a video), or raise ms_omni.media.limits.sound_s."
            )
        if end > len(self._samples):
            self._samples.resize(end + _GROWTH, refcheck=False)
        self._samples[self._count : end] = samples
        self._count = end


def _from_array(array: np.ndarray, name: str) -> np.ndarray:
    """Mono float32 in -1..1 from an array: axes of length one are dropped, channels averaged."""
    if array.ndim > 1:
        array = array.reshape([length for length in array.shape if length != 1] or [1])
    samples = _to_float(array, name)
    if samples.ndim == 1:
        return samples
    channels = int(np.argmin(samples.shape)) if samples.ndim == 2 else 0
    if samples.ndim != 2 or samples.shape[channels] > MOST_CHANNELS or samples.shape[1 - channels] <= MOST_CHANNELS:
        raise MediaError(
            f"{name} is an array of shape {list(array.shape)}; expected one axis of samples, or two of samples and at most "
            f"{MOST_CHANNELS} channels."
        )
    return samples.mean(axis=channels, dtype=np.float32)


def _to_float(array: np.ndarray, name: str) -> np.ndarray:
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


def _pieces_of_file(file: BinaryIO, name: str) -> Iterator[tuple[np.ndarray, int]]:
    """Mono pieces float32 `[samples]` of a sound file, each with its rate in Hz.

    Ogg and the rarer formats that libsndfile knows are read with it, as the reference does, all else with FFmpeg's libraries:
    libsndfile relies on headers (of WAV, FLAC and MP3) where players read what is there.

    Raises:
        MediaError: not a sound, cut short or damaged.
    """
    head = check_whole(file, name)
    mp3 = head[:3] == b"ID3" or (head[:1] == b"\xff" and head[1:2] >= b"\xe0")
    readers = [] if mp3 or head[:4] in _FOR_FFMPEG else _libsndfile_readers(file)
    for reader in readers:
        yield from _with_soundfile(reader, file, name)
    if not readers:
        yield from _with_ffmpeg(file, name)


def _pieces_beside_pictures(file: BinaryIO, name: str) -> Iterator[tuple[np.ndarray, int, float]] | None:
    """Mono pieces of a video's sound track, each with its rate and with its time in seconds since the first picture.

    None when there is no such track.

    Raises:
        MediaError: not a media file, or a track that cannot be decoded.
    """
    with open_track(file, name, "video") as pictures:
        if not pictures.has_sound:
            return None
        first = next(iter(pictures), None)
        start_s = 0.0 if first is None or first.pts is None else float(first.pts * first.time_base)
    return _beside(file, name, start_s)


def _beside(file: BinaryIO, name: str, start_s: float) -> Iterator[tuple[np.ndarray, int, float]]:
    with open_track(file, name, "sound", given_as="video") as track:
        early = True
        for frame in track:
            stated_s = None if frame.pts is None else float(frame.pts * frame.time_base) - start_s
            if early and stated_s is not None and stated_s < -_EARLY_S:
                warnings.warn(
                    f"{name}: its sound begins {-stated_s:.2f} s before its first picture; that part is left out.",
                    stacklevel=caller_level(),
                )
            early = False
            yield _mono(frame), frame.sample_rate, track.time_s(stated_s, frame.samples / frame.sample_rate)
        track.check()


def _with_ffmpeg(file: BinaryIO, name: str) -> Iterator[tuple[np.ndarray, int]]:
    with open_track(file, name, "sound") as track:
        stream, seconds = track.stream, 0.0
        stream.codec_context.options = {"err_detect": "crccheck"}
        for frame in track:
            yield _mono(frame), frame.sample_rate
            seconds += frame.samples / frame.sample_rate
        declared_s = float(stream.duration * stream.time_base) if stream.duration else 0.0
        if _is_cut(track, declared_s - seconds):
            raise MediaError(
                f"{name} is cut short: it ends after {seconds:.2f} of {declared_s:.2f} s. Copy or download it again."
            )
        track.check()


def _is_cut(track: Track, missing_s: float) -> bool:
    """Whether the end is missing; where the last frame is whole, most headers that declare more are wrong, and what is there is all."""
    if track.format == "mp3":  # half a frame is decoded without an error
        return track.last is not None and is_mp3_frame_cut(bytes(track.last)) and mp3_declares_length(track.file)
    if missing_s > _COUNTED_S.get(track.format, math.inf):
        return True
    by_count = track.stream.codec_context.name.startswith("pcm_") or track.packets < track.stream.frames
    return missing_s > _SHORT_S and (track.last_broken or (by_count and track.format not in _CHECKED))


class _Part:
    """Bytes of a file for libsndfile, which on damaged files seeks to before the start: an error there could not be caught."""

    def __init__(self, file: BinaryIO, start: int, stop: int) -> None:
        self.file, self.start, self.size, self.position = file, start, stop - start, 0
        self.head = b""  # in place of the first bytes
        head = self.read(12)
        if head[:4] in (b".snd", b"dns.") and head[8:] == bytes(
            4
        ):  # an AU sound written into a pipe: libsndfile would find it empty
            self.head = head[:8] + b"\xff" * 4
        self.position = 0

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
        head = self.head[self.position : self.position + len(content)]
        content = head + content[len(head) :]
        self.position += len(content)
        return content

    def write(self, content: bytes) -> int:  # soundfile asks for it
        raise io.UnsupportedOperation("write")


def _libsndfile_readers(file: BinaryIO) -> list[Any]:
    """libsndfile's readers, one for each stream of an Ogg file; none of what FFmpeg is to read."""
    import soundfile

    size = size_bytes(file)
    file.seek(0)
    try:
        parts: list[Any] = [_Part(file, *link) for link in _ogg_links(file) or [(0, size)]]
        sounds = [soundfile.SoundFile(part) for part in parts]
    except (soundfile.LibsndfileError, RuntimeError, TypeError):
        return []
    return [] if any(sound.format in _FFMPEG_FORMATS for sound in sounds) else sounds


def _with_soundfile(sound: Any, file: BinaryIO, name: str) -> Iterator[tuple[np.ndarray, int]]:
    import soundfile

    read, declared = 0, declared_frames(file, sound.format, sound.channels)
    if sound.format != "OGG":  # of Ogg libsndfile may only estimate the length
        declared = max(declared, sound.frames)
    with sound:
        while True:
            try:
                samples = sound.read(_BLOCK, dtype="float32", always_2d=True)
            except (soundfile.LibsndfileError, RuntimeError, ValueError, MemoryError) as error:
                raise MediaError(f"{name} is damaged: {error}") from error
            if not len(samples):
                break
            read += len(samples)
            yield samples.mean(axis=1, dtype=np.float32), sound.samplerate
    if read < declared:
        raise MediaError(
            f"{name} is cut short or damaged: {read} of {declared} samples can be read. Copy or download it again."
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
    return _to_float(values, "sound").mean(axis=0, dtype=np.float32)


def sound_pair(value: Any) -> tuple[Any, Any] | None:
    """`(samples, rate)` of a pair in either order (librosa's, or Gradio's with the rate in front), else None."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        return None
    for samples, rate in (value, value[::-1]):
        if _is_number(rate) and is_number_list(samples):
            return np.asarray(samples), rate
        if to_array(samples) is not None and (_is_number(rate) or isinstance(rate, str)):
            return samples, rate
    return None


def is_number_list(value: Any) -> bool:
    """Whether this is a list of samples."""
    return isinstance(value, (list, tuple)) and len(value) > 0 and _is_number(value[0])


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
