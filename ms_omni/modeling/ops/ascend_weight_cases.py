"""Matrices stored as codes, and mixtures of experts, for the test cases of operators on a device (see `ascend_cases.py`)."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ...quantised import Quantised, Storage, quantised

GROUP = 128  # of the published sizes


def normal(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> np.ndarray:
    """Normal numbers of that deviation, float32."""
    return rng.standard_normal(shape, np.float32) * np.float32(scale)


def coded(matrix: np.ndarray, storage: Storage) -> Quantised:
    """A `Quantised` of arrays, its scales in float32, like all that is rounded to the dtype under test."""
    stored = quantised(matrix, storage)
    return Quantised(stored.codes, stored.scales.astype(np.float32))


def coded_stack(matrix: np.ndarray, storage: Storage, count: int) -> Quantised:
    """A stack of so many matrices, each with the outputs of the one before rolled by one."""
    stored = coded(matrix, storage)
    return Quantised(*(np.stack([np.roll(part, number, 0) for number in range(count)]) for part in stored[:2]))


def linear_of_codes(rng: np.random.Generator, published: bool) -> Iterator[tuple]:
    for outputs, inputs, storage in ((96, 64, Storage(8)), (128, 64, Storage(4, 32)), (96, 64, Storage(8, 32))):
        stored = coded(normal(rng, outputs, inputs), storage)
        yield normal(rng, 3, inputs), stored, None
        points = rng.integers(-7, 8, stored.scales.shape)  # exact as offsets in float32
        yield normal(rng, 1, 2, inputs), stored._replace(offsets=points * stored.scales.astype(float)), normal(rng, outputs)
    for storage in (Storage(8), Storage(4, GROUP)) if published else ():
        yield normal(rng, 4, 2048), coded(normal(rng, 5120, 2048), storage), None


def experts_of_codes(rng: np.random.Generator, published: bool) -> Iterator[tuple]:
    """Experts 0 and the last one stay empty."""
    sizes = [(8, 64, 32, Storage(8)), (8, 64, 32, Storage(4, 32))]
    if published:
        sizes += [(128, 2048, 768, Storage(8)), (128, 2048, 768, Storage(4, GROUP))]
    for experts, width, inner, storage in sizes:
        up, down = (normal(rng, *shape, scale=shape[1] ** -0.5) for shape in ((2 * inner, width), (width, inner)))
        stacks = (coded_stack(part, storage, experts) for part in (up, down))
        indices = np.stack([rng.permutation(experts - 2)[:2] + 1 for _ in range(5)]).astype(np.int32)
        yield normal(rng, 5, width), *stacks, rng.uniform(0.1, 1, indices.shape), indices, None


def is_coded(x: Any, weight: Any, *_: Any, **__: Any) -> bool:
    return isinstance(weight, tuple)


def mixture(rng: np.random.Generator, tokens: int, experts: int, width: int, inner: int, k: int) -> tuple:
    """Each expert is its neighbour rolled by one, which costs less than random numbers for all."""
    up, down = normal(rng, width, 2 * inner, scale=width**-0.5), normal(rng, inner, width, scale=inner**-0.5)
    weights = (np.stack([np.roll(part, number, 0) for number in range(experts)]) for part in (up, down))
    indices = np.stack([rng.permutation(experts - 4)[:k] + 2 for _ in range(tokens)]).astype(np.int32)
    return normal(rng, tokens, width), *weights, rng.uniform(0.1, 1, (tokens, k)), indices


def experts(
    tokens: tuple[int, int], ranks: tuple[int | None, ...]
) -> Callable[[np.random.Generator, bool], Iterator[tuple]]:
    """With few tokens most experts are empty, the first and the last among them. ranks: the first expert of this rank."""

    def cases(rng, published):
        case = mixture(rng, tokens[0], 16, 64, 32, 4)
        yield from ((*case, first) for first in ranks)
        if published:
            yield *mixture(rng, tokens[1], 128, 2048, 768, 8), ranks[0] and 60

    return cases


def few_whole(x: Any, gate_up: Any, down: Any, weights: Any, indices: Any, first: Any = None) -> bool:
    return first is None and indices.shape[0] <= 16


def few(x: Any, gate_up: Any, down: Any, weights: Any, indices: Any, first: Any = None) -> bool:
    return indices.shape[0] <= 16


def whole(x: Any, gate_up: Any, down: Any, weights: Any, indices: Any, first: Any = None) -> bool:
    return first is None
