"""What callers go through, from the moments at which something came: times, gaps, under-runs."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Answer:
    """Of one caller, moments in seconds: when he called, when each token came, when each piece of sound came and how many seconds
    it lasts, when all was said; error: why it was not.
    """

    called: float
    tokens: list[float] = field(default_factory=list)
    sounds: list[tuple[float, float]] = field(default_factory=list)
    ended: float | None = None
    error: Exception | None = None

    @property
    def first_token_s(self) -> float:
        """From the call to the first token."""
        return self.tokens[0] - self.called

    @property
    def token_s(self) -> float:
        """Per token behind the first."""
        return (self.tokens[-1] - self.tokens[0]) / max(len(self.tokens) - 1, 1)

    @property
    def first_sound_s(self) -> float:
        """From the call to the first piece of sound."""
        return self.sounds[0][0] - self.called

    @property
    def sound_s(self) -> float:
        """How long the speech is."""
        return sum(length for _, length in self.sounds)

    @property
    def real_time_factor(self) -> float:
        """Seconds from the call to the last piece of sound, per second of speech."""
        return (self.sounds[-1][0] - self.called) / self.sound_s


def gaps(sounds: Sequence[tuple[float, float]]) -> list[float]:
    """The seconds of silence, each time that a listener had heard all that was sent before more came.

    He listens from the first piece on, and goes on with the next as soon as it is there.
    """
    found, heard = [], None
    for moment, length in sounds:
        if heard is not None and moment > heard:
            found.append(moment - heard)
        heard = max(moment, moment if heard is None else heard) + length
    return found


def summary(answers: Sequence[Answer]) -> dict[str, float]:
    """The figures of a run, by the names of `metrics.UNITS`; those that nobody was asked for are left out.

    The time per token is that of answers in text alone: where there is speech, words are written as they are said.
    """
    done = [answer for answer in answers if answer.error is None and answer.ended is not None]
    spoken = [answer for answer in done if answer.sounds]
    silences = [gap for answer in spoken for gap in gaps(answer.sounds)]
    found = spread("first_token", [answer.first_token_s for answer in done if answer.tokens])
    found |= spread("first_sound", [answer.first_sound_s for answer in spoken])
    found |= spread("token", [answer.token_s for answer in done if not answer.sounds and len(answer.tokens) > 1])
    if spoken:
        found["real_time_factor"] = float(np.median([answer.real_time_factor for answer in spoken]))
    whole_s = max((answer.ended for answer in done), default=0.0) - min((answer.called for answer in done), default=0.0)
    if done:
        found["requests_per_s"] = len(done) / whole_s
        found["tokens_per_s"] = sum(len(answer.tokens) for answer in done) / whole_s
    if spoken:
        found["sound_per_s"] = sum(answer.sound_s for answer in spoken) / whole_s
        found["under_runs"], found["silence_s"] = len(silences), sum(silences)
    return found | {"failed": len(answers) - len(done)}


def spread(name: str, seconds: Sequence[float]) -> dict[str, float]:
    """Median, 95th percentile (the least that 95 % do not exceed) and maximum."""
    if not seconds:
        return {}
    ranked = sorted(seconds)
    late = ranked[-(-95 * len(ranked) // 100) - 1]
    return {f"{name}_p50_s": float(np.median(ranked)), f"{name}_p95_s": late, f"{name}_max_s": ranked[-1]}
