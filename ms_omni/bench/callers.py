"""Who calls when, for what: seeded, so that every engine is asked the same."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .inputs import PLAIN_IDS, part

SHOWN = 4
"""One in so many callers shows a picture and plays a sound, and no two the same."""
TURN_START = 3  # im_start user \n


@dataclass(frozen=True)
class Load:
    """Bounds of what a caller wants: prompts and answers in tokens, speech in frames of 80 ms."""

    prompt: tuple[int, int] = (32, 256)
    tokens: tuple[int, int] = (16, 48)
    frames: tuple[int, int] = (25, 75)


@dataclass(frozen=True)
class Caller:
    """at_s: when he calls; prompt: tokens of his question, frames: 0 for an answer in text alone; shows: he asks of a picture and a
    sound instead.
    """

    at_s: float
    prompt: int
    tokens: int
    frames: int
    shows: bool
    seed: list[int] = field(default_factory=list)


def callers(count: int, rate: float | None, spoken: float, seed: int, load: Load = Load()) -> list[Caller]:
    """rate: of a Poisson process, calls per second, or None: all at once; spoken: the share of answers that are spoken."""
    rng = np.random.default_rng([seed, 4])
    moments = np.cumsum(rng.exponential(1.0, count)) / (rate or np.inf)
    speaks = np.arange(count) < round(spoken * count)
    rng.shuffle(speaks)
    found = []
    for number, (moment, speaking) in enumerate(zip(moments.tolist(), speaks.tolist())):
        prompt, tokens, frames = (int(rng.integers(low, high + 1)) for low, high in (load.prompt, load.tokens, load.frames))
        found.append(Caller(moment, prompt, tokens, frames * speaking, number % SHOWN == SHOWN - 1, [seed, 5, number]))
    return found


def inputs_of(caller: Caller, arrays: dict[str, np.ndarray], config: Any) -> dict[str, np.ndarray]:
    """Model inputs of his question: words, or those of the scenarios' picture and sound, the picture changed a little."""
    question, rng = part(arrays, "question"), np.random.default_rng(caller.seed)
    if caller.shows:
        noise = rng.standard_normal(question["pixel_values"].shape, np.float32)
        return {**question, "pixel_values": question["pixel_values"] + noise / 100}
    ids = question["input_ids"][0]
    user = np.flatnonzero((ids[:-1] == config.im_start_token_id) & (ids[1:] == config.user_token_id))[0]
    before, behind = ids[user : user + TURN_START], ids[np.flatnonzero(ids == config.im_end_token_id)[-1] :]
    words = rng.integers(0, PLAIN_IDS, max(caller.prompt - len(before) - len(behind), 1))
    whole = np.concatenate([before, words, behind])[None]
    return {"input_ids": whole, "attention_mask": np.ones_like(whole)}
