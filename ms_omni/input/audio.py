"""Sound files, sound tracks and arrays to mono float32 at 16 kHz."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np

from ms_omni.errors import MediaError
from ms_omni.input.limits import limits
from ms_omni.input.sound_files import pieces_beside_pictures, pieces_of_file, to_float
from ms_omni.input.sources import ACCEPTED, Source, is_source, open_source, to_array
from ms_omni.input.spellings import DICT_ACCEPTED, is_number_list, sound_pair, unwrapped
from ms_omni.notices import caller_level

SAMPLING_RATE_HZ = 16_000
MIN_SAMPLES = 201  # half a mel window at either end is mirrored: shorter clips have nothing to mirror
MOST_CHANNELS = 8
AUDIO_ACCEPTED = f"{ACCEPTED}, an array at {SAMPLING_RATE_HZ} Hz, (array, sampling_rate_hz) in either order, or a dict with {DICT_ACCEPTED}"
_GROWTH = 60 * SAMPLING_RATE_HZ
_GAP_S = 0.1  # time stamps are rounded; only what can be heard as a gap is one


def load_audio(value: Any, start_s: float | None = None, end_s: float | None = None, name: str = "sound") -> np.ndarray:
    """Any accepted sound as mono samples.

    Files are decoded as players do it: what is there counts, not what headers say of it, and of several tracks the default one
    is heard. Channels are averaged, then resampled with soxr (HQ), piece by piece. An `end_s` past the end means the end.

    Args:
        value: see `AUDIO_ACCEPTED`. Arrays are `[samples]`, or `[samples, channels]` in either order; integers are scaled
            to -1..1.
        start_s, end_s: the part to take, in seconds.
        name: what error messages call it when it has no file name.

    Returns:
        float32 `[samples]` at 16 kHz, at least `MIN_SAMPLES` of them.

    Raises:
        MediaError: not a sound, cut short, damaged, no samples in the part asked for, not finite, too short, or longer than
            `limits.sound_s`.
    """
    value, rate_hz = unwrapped(value, name), SAMPLING_RATE_HZ
    pair = sound_pair(value)
    if pair is not None:
        value, rate_hz = pair[0], checked_rate(pair[1], name)
    array = np.asarray(value) if is_number_list(value) else to_array(value)
    if array is not None:
        clip = _Clip(name, start_s, end_s)
        clip.add(_from_array(array, name), rate_hz)
    elif is_source(value):
        source = open_source(value, "sound")
        name, clip = source.name, _Clip(source.name, start_s, end_s)
        for samples, rate_hz in pieces_of_file(source):
            if not clip.add(samples, checked_rate(rate_hz, name)):
                break
    else:
        raise MediaError(f"{name} is a {type(value).__name__}; give {AUDIO_ACCEPTED}.")
    return check_clip(clip.finish(), name)


def load_sound_of_video(source: Source, start_s: float | None = None, end_s: float | None = None) -> np.ndarray | None:
    """What is heard beside the pictures of a video from `start_s` to `end_s`; None when there is nothing to hear.

    Sample 0 belongs to the picture at `start_s`: where the track begins later than the pictures, or stops for a while, there is
    silence, and what comes before the first picture is left out. A track that is there but cannot be used (empty, damaged, over
    before `start_s`, of an unknown codec, ...) is said in a warning.

    Returns:
        float32 `[samples]` at 16 kHz, at least `MIN_SAMPLES` of them.

    Raises:
        MediaError: not a media file, or longer than `limits.sound_s`.
    """
    name = f"the sound track of {source.name}"
    clip = _Clip(name, start_s, end_s)
    try:
        pieces = pieces_beside_pictures(source)
        if pieces is None:
            return None
        for samples, rate_hz, time_s in pieces:
            if not clip.add(samples, checked_rate(rate_hz, name), time_s):
                break
        return check_clip(clip.finish(), name)
    except _TooLongError:
        raise
    except MediaError as error:
        warnings.warn(f"{source.name} is seen without sound: {error}", stacklevel=caller_level())
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
        self.name, self.start_s, self.end_s = name, start_s or 0.0, end_s
        self._samples, self._count = np.empty(_GROWTH, np.float32), 0
        self._before_s, self._before_count = 0.0, 0  # what came, and what was made, at earlier rates
        self._rate_hz, self._seen, self._taken, self._resampler = 0, 0, 0, None

    def add(self, samples: np.ndarray, rate_hz: int, time_s: float | None = None) -> bool:
        """Join a piece float32 `[samples]` that begins at `time_s`, or where the last one ends; False: no more is wanted.

        Raises:
            MediaError: the clip grows over `limits.sound_s`.
        """
        if rate_hz != self._rate_hz:
            self._end_rate()
            self._begin_rate(rate_hz)
        if time_s is not None:
            samples = self._placed(samples, time_s)
        first = int((self.start_s - self._before_s) * rate_hz)
        last = None if self.end_s is None else int((self.end_s - self._before_s) * rate_hz)
        part = samples[max(0, first - self._seen) : None if last is None else max(0, last - self._seen)]
        self._seen, self._taken = self._seen + len(samples), self._taken + len(part)
        if len(part):
            self._keep(part if self._resampler is None else self._resampler.resample_chunk(part))
        return last is None or self._seen < last

    def finish(self) -> np.ndarray:
        """The clip, float32 `[samples]` at 16 kHz.

        Raises:
            MediaError: nothing lies between start and end.
        """
        self._end_rate()
        if self._before_s and not self._count:
            end = "its end" if self.end_s is None else f"{self.end_s:g} s"
            raise MediaError(f"{self.name} lasts {self._before_s:.2f} s; nothing lies between {self.start_s:g} s and {end}.")
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
                self._keep(self._resampler.resample_chunk(np.zeros(0, np.float32), last=True))
            count = self._before_count + math.ceil(self._taken * SAMPLING_RATE_HZ / self._rate_hz)
            self._keep(np.zeros(max(0, count - self._count), np.float32))
            self._count = count
        if self._rate_hz:
            self._before_s += self._seen / self._rate_hz
        self._before_count, self._rate_hz, self._seen, self._taken, self._resampler = self._count, 0, 0, 0, None

    def _placed(self, samples: np.ndarray, time_s: float) -> np.ndarray:
        """The piece without what comes too early, once silence fills what is missing before it."""
        gap_s = time_s - self._before_s - self._seen / self._rate_hz
        begun = self._before_s + self._seen > 0
        gap = round(gap_s * self._rate_hz) if not begun or abs(gap_s) > _GAP_S else 0
        while gap > 0:
            silence = np.zeros(min(gap, _GROWTH), np.float32)
            gap = gap - len(silence) if self.add(silence, self._rate_hz) else 0
        return samples[-gap:] if gap < 0 else samples

    def _keep(self, samples: np.ndarray) -> None:
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
    samples = to_float(array, name)
    if samples.ndim == 1:
        return samples
    channels = int(np.argmin(samples.shape)) if samples.ndim == 2 else 0
    if samples.ndim != 2 or samples.shape[channels] > MOST_CHANNELS or samples.shape[1 - channels] <= MOST_CHANNELS:
        raise MediaError(
            f"{name} is an array of shape {list(array.shape)}; expected one axis of samples, or two of samples and at most "
            f"{MOST_CHANNELS} channels."
        )
    return samples.mean(axis=channels, dtype=np.float32)
