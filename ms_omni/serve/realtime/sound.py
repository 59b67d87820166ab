"""Sound on the wire: 16-bit samples or G.711, in base64; what is heard is kept as it came."""

import base64
import binascii
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ...input.audio import SAMPLING_RATE_HZ, decode_audio
from ...outputs import pcm16
from ..errors import ApiError
from .settings import Format

APPEND_BYTES = 15 << 20
"""Of one `input_audio_buffer.append`, decoded."""
SPEECH_RATE_HZ = 24_000


def _table(kind: str) -> np.ndarray:
    """What each of the 256 codes of G.711 means, int16."""
    code = np.arange(256)
    if kind == "audio/pcmu":
        code = ~code & 0xFF
        value = (((code & 0x0F) << 3) + 0x84 << ((code & 0x70) >> 4)) - 0x84
        return np.where(code & 0x80, -value, value).astype(np.int16)
    code = code ^ 0x55
    step, low = (code & 0x70) >> 4, (code & 0x0F) << 4
    value = np.where(step == 0, low + 8, (low + 0x108) << np.maximum(step - 1, 0))
    return np.where(code & 0x80, value, -value).astype(np.int16)


TABLES = {kind: _table(kind) for kind in ("audio/pcmu", "audio/pcma")}


def samples_of(text: str, form: Format) -> np.ndarray:
    """int16 `[n]` of base64. Raises `ApiError`."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(400, "audio must be base64 of samples in the input format", "audio", "invalid_value") from None
    if len(data) > APPEND_BYTES:
        raise ApiError(
            400, f"audio has {len(data)} bytes, at most {APPEND_BYTES} are taken at once", "audio", "invalid_value"
        )
    if form.type != "audio/pcm":
        return TABLES[form.type][np.frombuffer(data, np.uint8)]
    if len(data) % 2:
        raise ApiError(400, f"audio has {len(data)} bytes, which are no 16-bit samples", "audio", "invalid_value")
    return np.frombuffer(data, "<i2").astype(np.int16)


def encoded(samples: np.ndarray, form: Format) -> str:
    """int16 `[n]` as base64."""
    if form.type == "audio/pcm":
        return base64.b64encode(samples.astype("<i2").tobytes()).decode()
    table = TABLES[form.type]
    order = np.argsort(table, kind="stable")
    middles = (table[order][1:].astype(np.float32) + table[order][:-1]) / 2
    return base64.b64encode(order[np.searchsorted(middles, samples)].astype(np.uint8).tobytes()).decode()


class Outgoing:
    """Samples float32 of 24 kHz as they are sent, in one format; piece by piece the same as at once."""

    def __init__(self, form: Format):
        self.form, self._stream = form, None
        if form.rate_hz != SPEECH_RATE_HZ:
            import soxr

            self._stream = soxr.ResampleStream(SPEECH_RATE_HZ, form.rate_hz, 1, dtype="float32", quality="HQ")

    def __call__(self, pcm: np.ndarray, last: bool = False) -> str:
        """base64, possibly of nothing."""
        if self._stream is not None:
            pcm = self._stream.resample_chunk(np.ascontiguousarray(pcm), last=last)
        return encoded(pcm16(pcm), self.form)


@dataclass(eq=False)
class Sound:
    """What somebody said: samples int16 `[n]` at a rate."""

    samples: np.ndarray
    rate_hz: int

    @property
    def size(self) -> int:
        """Bytes, with those of `heard`."""
        return self.samples.nbytes + len(self.samples) * 4 * SAMPLING_RATE_HZ // self.rate_hz

    @property
    def duration_ms(self) -> int:
        """Rounded down."""
        return len(self.samples) * 1000 // self.rate_hz

    def at(self, rate_hz: int) -> np.ndarray:
        """The samples at another rate."""
        if rate_hz == self.rate_hz:
            return self.samples
        import soxr

        return soxr.resample(self.samples, self.rate_hz, rate_hz, quality="HQ")

    @cached_property
    def heard(self) -> np.ndarray:
        """float32 at 16 kHz, the same as of a file of these samples."""
        return decode_audio((self.samples, self.rate_hz), "the sound")


@dataclass(eq=False)
class InputBuffer:
    """What a client has sent and nobody has taken. Positions are samples since the session began, at the format's rate."""

    form: Format = field(default_factory=Format)
    start: int = 0
    stop: int = 0
    _pieces: list[np.ndarray] = field(default_factory=list)

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def rate_hz(self) -> int:
        """Samples per second."""
        return self.form.rate_hz

    def ms(self, position: int) -> int:
        """A position in milliseconds."""
        return position * 1000 // self.rate_hz

    def at(self, samples: int) -> int:
        """The position at which as much was heard as in so many samples of 16 kHz."""
        return samples * self.rate_hz // SAMPLING_RATE_HZ

    def append(self, samples: np.ndarray) -> None:
        """Behind what is there, int16."""
        self._pieces.append(samples)
        self.stop += len(samples)

    def between(self, first: int, last: int) -> np.ndarray:
        """What lies between two positions."""
        if len(self._pieces) > 1:
            self._pieces = [np.concatenate(self._pieces)]
        whole = self._pieces[0] if self._pieces else np.zeros(0, np.int16)
        return whole[max(first - self.start, 0) : max(last - self.start, 0)].copy()

    def forget(self, before: int) -> None:
        """What lies before a position."""
        rest = self.between(before, self.stop)
        self._pieces, self.start = [rest], self.stop - len(rest)

    def change(self, form: Format) -> None:
        """Another format, from here on. Raises `ApiError` while something is there that came in another."""
        if form.rate_hz == self.rate_hz:
            self.form = form
            return
        if len(self):
            raise ApiError(
                400, "the format can change when the input buffer is empty; commit or clear it", "session.audio.input"
            )
        self.start = self.stop = self.stop * form.rate_hz // self.rate_hz
        self.form = form
