"""Who calls when and for what, seeded, so that every engine and server gets the same load; and what those callers wait for.

Needs neither MindSpore nor a web framework: engines, servers and the metrics of `ms-omni serve` are measured with the same figures.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .scenarios import PLAIN_IDS, Load
from .worker import part

MEDIA_EVERY = 4
"""One in so many callers asks about a picture and a sound, and no two about the same."""
TURN_START = 3  # im_start user \n


@dataclass(frozen=True)
class Caller:
    """at_s: when the call comes; prompt: tokens of the question; frames: 0 for an answer in text alone; media: the question is about a
    picture and a sound instead.
    """

    at_s: float
    prompt: int
    tokens: int
    frames: int = 0
    media: bool = False
    seed: list[int] = field(default_factory=list)


def callers(count: int, rate: float | None, spoken: float, seed: int, load: Load = Load()) -> list[Caller]:
    """rate: of a Poisson process, calls per second, or None: all at once; spoken: the share of answers that are spoken."""
    rng = np.random.default_rng([seed, 4])
    moments = np.cumsum(rng.exponential(1.0, count)) / (rate or np.inf)
    speaks = np.arange(count) < round(spoken * count)
    rng.shuffle(speaks)
    result = []
    for number, (moment, speaking) in enumerate(zip(moments.tolist(), speaks.tolist())):
        prompt, tokens, frames = (int(rng.integers(low, high + 1)) for low, high in (load.prompt, load.tokens, load.frames))
        media = number % MEDIA_EVERY == MEDIA_EVERY - 1
        result.append(Caller(moment, prompt, tokens, frames * speaking, media, [seed, 5, number]))
    return result


def inputs_of(caller: Caller, arrays: dict[str, np.ndarray], config: Any) -> dict[str, np.ndarray]:
    """Model inputs of a question: random words, or the picture and the sound of the scenarios, the picture changed a little."""
    question, rng = part(arrays, "question"), np.random.default_rng(caller.seed)
    if caller.media:
        noise = rng.standard_normal(question["pixel_values"].shape, np.float32)
        return {**question, "pixel_values": question["pixel_values"] + noise / 100}
    ids = question["input_ids"][0]
    user = np.flatnonzero((ids[:-1] == config.im_start_token_id) & (ids[1:] == config.user_token_id))[0]
    before, behind = ids[user : user + TURN_START], ids[np.flatnonzero(ids == config.im_end_token_id)[-1] :]
    words = rng.integers(0, PLAIN_IDS, max(caller.prompt - len(before) - len(behind), 1))
    whole = np.concatenate([before, words, behind])[None]
    return {"input_ids": whole, "attention_mask": np.ones_like(whole)}


@dataclass
class Timings:
    """Of one call, in seconds of any clock: when it came, when each token arrived, when each piece of sound arrived and how long it
    plays, when the answer was complete; error: why it was not.
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
    """Seconds of silence, each time that a player had played all that was there before more came.

    It plays from the first piece on, and goes on with the next as soon as that is there.
    """
    silences, played = [], sounds[0][0] if sounds else 0.0
    for moment, length in sounds:
        silences += [moment - played] if moment > played else []
        played = max(moment, played) + length
    return silences


def summary(calls: Sequence[Timings]) -> dict[str, float]:
    """The figures of a run, by the names of `report.METRICS`; those that nobody wanted are left out.

    The time per token is that of answers in text alone: where there is speech, the text is written as it is spoken.
    """
    done = [call for call in calls if call.error is None and call.ended is not None]
    spoken = [call for call in done if call.sounds]
    figures = percentiles("first_token", [call.first_token_s for call in done if call.tokens])
    figures |= percentiles("first_sound", [call.first_sound_s for call in spoken])
    figures |= percentiles("token", [call.token_s for call in done if not call.sounds and len(call.tokens) > 1])
    whole_s = max([call.ended or 0.0 for call in done], default=0.0) - min([call.called for call in done], default=0.0)
    if done:
        figures["requests_per_s"] = len(done) / whole_s
        figures["tokens_per_s"] = sum(len(call.tokens) for call in done) / whole_s
    if spoken:
        silences = [gap for call in spoken for gap in gaps(call.sounds)]
        figures["real_time_factor"] = float(np.median([call.real_time_factor for call in spoken]))
        figures["sound_per_s"] = sum(call.sound_s for call in spoken) / whole_s
        figures["under_runs"], figures["silence_s"] = len(silences), sum(silences)
    return figures | {"failed": len(calls) - len(done)}


def percentiles(name: str, seconds: Sequence[float]) -> dict[str, float]:
    """Median, 95th percentile (the least that 95 % do not exceed) and maximum."""
    if not seconds:
        return {}
    p50, p95 = float(np.median(seconds)), float(np.quantile(seconds, 0.95, method="inverted_cdf"))
    return {f"{name}_p50_s": p50, f"{name}_p95_s": p95, f"{name}_max_s": max(seconds)}
