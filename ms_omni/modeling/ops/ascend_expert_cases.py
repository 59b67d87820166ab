"""Mixtures of experts, for what the operators are tried with on a device (see `ascend_cases.py`)."""

import numpy as np

from .ascend_coded_cases import normal


def mixture(rng, tokens, experts, width, inner, k):
    """Each expert is its neighbour turned by one, which costs less than as many random numbers."""
    up, down = normal(rng, width, 2 * inner, scale=width**-0.5), normal(rng, inner, width, scale=inner**-0.5)
    weights = (np.stack([np.roll(part, number, 0) for number in range(experts)]) for part in (up, down))
    indices = np.stack([rng.permutation(experts - 4)[:k] + 2 for _ in range(tokens)]).astype(np.int32)
    return normal(rng, tokens, width), *weights, rng.uniform(0.1, 1, (tokens, k)), indices


def experts(tokens, ranks):
    """With few tokens most experts are empty, the first and the last among them. ranks: the first expert that is here."""

    def cases(rng, published):
        case = mixture(rng, tokens[0], 16, 64, 32, 4)
        yield from ((*case, first) for first in ranks)
        if published:
            yield *mixture(rng, tokens[1], 128, 2048, 768, 8), ranks[0] and 60

    return cases


def few_whole(x, gate_up, down, weights, indices, first=None):
    return first is None and indices.shape[0] <= 16


def few(x, gate_up, down, weights, indices, first=None):
    return indices.shape[0] <= 16


def whole(x, gate_up, down, weights, indices, first=None):
    return first is None
