"""Sound files, sound tracks and arrays to mono float32 at 16 kHz."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np

from ms_omni.errors import MediaError
from ms_omni.input.integrity import check_whole, describe
from ms_omni.input.sources import ACCEPTED, Source, is_source, open_source, to_array
from ms_omni.input.spellings import DICT_ACCEPTED, is_number_list, sound_pair, unwrapped

SAMPLING_RATE_HZ = 16_000
MIN_SAMPLES = 201  # half a mel window at either end is mirrored: shorter clips have nothing to mirror
MOST_CHANNELS = 8
AUDIO_ACCEPTED = f"{ACCEPTED}, an array at {SAMPLING_RATE_HZ} Hz, (array, sampling_rate_hz) in either order, or a dict with {DICT_ACCEPTED}"
_INTEGER_SCALE = {np.dtype(np.int8): 2.0**7, np.dtype(np.int16): 2.0**15, np.dtype(np.int32): 2.0**31}
_MISSING_TOLERANCE_S = 0.2  # encoders pad and trim; more than this below the declared length is a cut file


def load_audio(value: Any, start_s: float | None = None, end_s: float | None = None, name: str = "sound") -> np.ndarray:
    """Any accepted sound as mono samples.

    WAV, FLAC, Ogg and MP3 are read with libsndfile, everything else (also the sound track of a video) with FFmpeg's
    libraries. Channels are averaged, then resampled with soxr (HQ). An `end_s` past the end means the end.

    Args:
        value: see `AUDIO_ACCEPTED`. Arrays are `[samples]`, or `[samples, channels]` in either order; integers are scaled
            to -1..1.
        start_s, end_s: the part to take, in seconds.
        name: what error messages call it when it has no file name.

    Returns:
        float32 `[samples]` at 16 kHz, at least `MIN_SAMPLES` of them.

    Raises:
        MediaError: not a sound, cut short, damaged, no samples in the part asked for, not finite, or too short.
    """
    value, rate_hz = unwrapped(value, name), SAMPLING_RATE_HZ
    pair = sound_pair(value)
    if pair is not None:
        value, rate_hz = pair[0], _checked_rate(pair[1], name)
    array = np.asarray(value) if is_number_list(value) else to_array(value)
    if array is not None:
        samples = _from_array(array, name)
        samples = _cut(samples, rate_hz, start_s, end_s, name)
    elif is_source(value):
        source = open_source(value, "sound")
        name = source.name
        samples, rate_hz = _decode(source, start_s, end_s)
        _checked_rate(rate_hz, name)
    else:
        raise MediaError(f"{name} is a {type(value).__name__}; give {AUDIO_ACCEPTED}.")
    return check_clip(resample(samples, rate_hz), name)


def load_sound_track(source: Source, start_s: float | None, end_s: float | None) -> np.ndarray:
    """The sound of a video that is known to have some: as `load_audio`, always through FFmpeg's libraries."""
    samples, rate_hz = _decode_with_ffmpeg(source)
    return check_clip(
        resample(_cut(samples, rate_hz, start_s, end_s, source.name), rate_hz), f"The sound track of {source.name}"
    )


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


def resample(samples: np.ndarray, rate_hz: int) -> np.ndarray:
    """Mono float32 at `rate_hz` to 16 kHz; the length is rounded up, as librosa does."""
    if rate_hz == SAMPLING_RATE_HZ:
        return np.ascontiguousarray(samples, dtype=np.float32)
    import soxr

    length = math.ceil(len(samples) * SAMPLING_RATE_HZ / rate_hz)
    out = soxr.resample(np.ascontiguousarray(samples, dtype=np.float32), rate_hz, SAMPLING_RATE_HZ, quality="HQ")
    return np.pad(out, (0, length - len(out))) if len(out) < length else out[:length]


def _checked_rate(rate: Any, name: str) -> int:
    if isinstance(rate, bool) or not isinstance(rate, (int, float, np.number)) or not 100 <= rate <= 1_000_000:
        raise MediaError(f"{name}: the sampling rate is {rate!r}; expected 100 to 1000000 (Hz).")
    if rate != int(rate):
        raise MediaError(f"{name}: the sampling rate is {rate!r} Hz; expected a whole number.")
    return int(rate)


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
    if array.dtype == np.int64 and array.size and max(array.max(), -array.min()) <= 2**15:
        array = array.astype(np.int32) << 16  # 16-bit samples, as a list of numbers makes them
    if array.dtype == np.uint8:  # unsigned by the convention of WAV, with silence at 128
        return ((array.astype(np.float32) - 128) / 128).astype(np.float32)
    if array.dtype in _INTEGER_SCALE:
        return (array / _INTEGER_SCALE[array.dtype]).astype(np.float32)
    if array.dtype.kind != "f":
        raise MediaError(f"{name} has samples of type {array.dtype}; expected float, int16, int32 or 8 bits.")
    return array.astype(np.float32, copy=False)


def _cut(samples: np.ndarray, rate_hz: int, start_s: float | None, end_s: float | None, name: str) -> np.ndarray:
    """The part from `start_s` to `end_s`."""
    first = int((start_s or 0.0) * rate_hz)
    last = None if end_s is None else int(end_s * rate_hz)
    part = samples[first:last]
    if len(samples) and not len(part):
        raise MediaError(
            f"{name} lasts {len(samples) / rate_hz:.2f} s; nothing lies between {start_s or 0.0:g} s and "
            f"{'its end' if end_s is None else f'{end_s:g} s'}."
        )
    return part


def _decode(source: Source, start_s: float | None, end_s: float | None) -> tuple[np.ndarray, int]:
    """Mono samples of the part asked for, at the file's own rate."""
    check_whole(source)
    decoded = _decode_with_soundfile(source)
    samples, rate_hz = decoded if decoded is not None else _decode_with_ffmpeg(source)
    if not len(samples):
        raise MediaError(f"{source.name} holds no samples.")
    return _cut(samples, rate_hz, start_s, end_s, source.name), rate_hz


class _SeekableBytes(io.BytesIO):
    """Bytes for libsndfile, which on damaged files seeks to before the start: an error there could not be caught."""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.tell(), io.SEEK_END: self.getbuffer().nbytes}[whence]
        return super().seek(max(0, base + offset))


def _decode_with_soundfile(source: Source) -> tuple[np.ndarray, int] | None:
    """Mono samples and rate, or None when libsndfile does not know the format."""
    import soundfile

    try:
        sound = soundfile.SoundFile(_SeekableBytes(source.data or b"") if source.path is None else str(source.path))
    except (soundfile.LibsndfileError, RuntimeError, TypeError):
        return None
    with sound:
        try:
            samples = sound.read(dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, RuntimeError, ValueError, MemoryError) as error:
            raise MediaError(f"{source.name} is damaged: {error}") from error
        declared, rate_hz, kind = sound.frames, sound.samplerate, sound.format
    # Of MP3 and Ogg libsndfile may only estimate the length; `check_whole` has looked at what those declare.
    if len(samples) < declared and kind not in ("MP3", "MPEG", "OGG"):
        raise MediaError(
            f"{source.name} is cut short or damaged: {len(samples)} of {declared} samples can be read. "
            "Copy or download it again."
        )
    return samples.mean(axis=1, dtype=np.float32), rate_hz


def _decode_with_ffmpeg(source: Source) -> tuple[np.ndarray, int]:
    """Mono samples and rate of the first sound track, decoded as 16-bit."""
    import av

    with source.open() as file:
        try:
            with av.open(file, options={"protocol_whitelist": "file"}) as container:
                if not container.streams.audio:
                    raise MediaError(f"{source.name} has no sound track.")
                stream = container.streams.audio[0]
                samples, rate_hz = _read_track(container, stream, source.name)
                declared_s = float(stream.duration * stream.time_base) if stream.duration else 0.0
        except (av.FFmpegError, OSError, ValueError) as error:
            if isinstance(error, MediaError):
                raise
            raise MediaError(f"{source.name} cannot be read as sound: {_reason(error)}; {describe(source)}.") from error
    if not len(samples):
        raise MediaError(f"{source.name} holds no samples.")
    # A track may be trimmed by its edit list, so only a large difference counts.
    if len(samples) / rate_hz < 0.9 * declared_s - _MISSING_TOLERANCE_S:
        raise MediaError(
            f"{source.name} is cut short: {len(samples) / rate_hz:.2f} of {declared_s:.2f} s of sound can "
            "be read. Copy or download it again."
        )
    return samples, rate_hz


def _read_track(container: Any, stream: Any, name: str) -> tuple[np.ndarray, int]:
    """All samples of `stream`, channels averaged: float32 `[samples]` and the rate."""
    import av

    resampler, parts, rate_hz = None, [], 0
    for frame in container.decode(stream):
        if resampler is None:
            rate_hz = frame.sample_rate
            resampler = av.AudioResampler(format="s16", layout=frame.layout, rate=rate_hz)
        parts += [_average(piece) for piece in resampler.resample(frame)]
    if resampler is None:
        raise MediaError(f"{name} has a sound track without sound in it.")
    parts += [_average(piece) for piece in resampler.resample(None)]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32), rate_hz


def _average(frame: Any) -> np.ndarray:
    channels = frame.to_ndarray().reshape(-1, frame.layout.nb_channels)
    return channels.astype(np.float32).mean(axis=1, dtype=np.float32) / np.float32(2.0**15)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
