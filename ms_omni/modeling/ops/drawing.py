"""What `race` takes, in numpy: how each row draws among its likeliest ids."""

from collections.abc import Sequence

import numpy as np

CANDIDATES = 64
"""Of the likeliest ids that one is drawn from; top_k may be as large."""
SCALE = np.float32(1e20)
"""Of the room below top_p: with it any room is larger than any score, so that the smaller one is the score or below 0."""
LEAST_NOISE = np.float32(1e-12)

Kind = tuple[float, int, float] | None
"""(temperature, top_k, top_p), top_k 0 for all candidates; or None for the likeliest id."""


def draw_terms(kinds: Sequence[Kind], count: int = CANDIDATES) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """inverse_temperature, excluded and room of rows that draw among so many candidates."""
    rows = [(1.0, 1, 1.0) if kind is None else kind for kind in kinds]
    temperature, top_k, top_p = (np.array(column)[:, None] for column in zip(*rows))
    excluded = np.where(np.arange(count) < np.where(top_k == 0, count, top_k), np.float32(0), np.float32(-np.inf))
    room = SCALE * np.where(top_p < 1, top_p, 2).astype(np.float32)  # at 1 none is left out by rounding
    return (1 / temperature).astype(np.float32), excluded, np.repeat(room, count, 1)


def draw_inputs(kinds: Sequence[Kind], noise: np.ndarray) -> tuple[np.ndarray, ...]:
    """The same and the noise; noise float32 `[..., CANDIDATES]`, exponential."""
    return *draw_terms(kinds), np.maximum(noise, LEAST_NOISE)


def before(count: int = CANDIDATES) -> np.ndarray:
    """What sums up, for each candidate, the probabilities of those before it: float32 `[K, K]`, times `-SCALE`."""
    return np.triu(np.full((count, count), -SCALE, np.float32), 1)
