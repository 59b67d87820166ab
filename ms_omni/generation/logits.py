"""The steps between logits and choice, in the order of transformers' `generate`.

ADJUSTMENTS hold for greedy decoding too. Each touches ids that it can name, so it works on any part of the vocabulary:
`step(scores, first)` changes the scores float32 `[n]` of the ids from `first` on in place.
FILTERS are for sampling and look at the whole distribution: `step(scores)` takes `[V]` and returns `[V]`, -inf for what may
not be drawn.

Both are tables of makers: `maker(row)` returns the step for one `RowSampler`, or None where its option is off.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from .sampling import RowSampler

Adjustment = Callable[[np.ndarray, int], None]
Filter = Callable[[np.ndarray], np.ndarray]


def softmax(scores: np.ndarray) -> np.ndarray:
    """Softmax of the last axis in float64."""
    scores = np.exp(scores.astype(np.float64) - scores.max(axis=-1, keepdims=True))
    return scores / scores.sum(axis=-1, keepdims=True)


def _inside(ids, first, scores):
    """The indices into the scores of those ids that they hold."""
    return ids[(ids >= first) & (ids < first + len(scores))] - first


def _banning(ids):
    ids = np.unique(np.array(ids, np.int64))

    def ban(scores, first):
        scores[_inside(ids, first, scores)] = -np.inf

    return ban if len(ids) else None


# -- adjustments -----------------------------------------------------------------------------------------------------


def sequence_bias(row: RowSampler) -> Adjustment | None:
    """Adds a number to the last id of a sequence wherever the text ends with what is before it."""
    biases = row.params.sequence_bias
    alone = [(ids[0], bias) for ids, bias in biases if len(ids) == 1]
    alone_ids, added = np.array([id for id, _ in alone], np.int64), np.array([bias for _, bias in alone], np.float32)
    longer = [(ids, bias) for ids, bias in biases if len(ids) > 1]

    def step(scores, first):
        inside = (alone_ids >= first) & (alone_ids < first + len(scores))
        np.add.at(scores, alone_ids[inside] - first, added[inside])
        for ids, bias in longer:
            index = ids[-1] - first
            if 0 <= index < len(scores) and row.ends_with(ids[:-1]):
                scores[index] += np.float32(bias)

    return step if biases else None


def repetition_penalty(row: RowSampler) -> Adjustment | None:
    """Divides positive and multiplies negative logits of ids of the prompt or the text (Keskar et al. 2019)."""
    penalty = np.float32(row.params.repetition_penalty)

    def step(scores, first):
        indices = _inside(row.seen, first, scores)
        values = scores[indices]
        scores[indices] = np.where(values < 0, values * penalty, values / penalty)

    return step if penalty != 1 else None


def frequency_penalties(row: RowSampler) -> Adjustment | None:
    """Subtracts presence_penalty from ids of the text, and frequency_penalty for each time; the prompt does not count."""
    presence, frequency = row.params.presence_penalty, row.params.frequency_penalty

    def step(scores, first):
        for token, count in row.counts.items():
            if 0 <= token - first < len(scores):
                scores[token - first] -= np.float32(presence + frequency * count)

    return step if presence or frequency else None


def no_repeat_ngram(row: RowSampler) -> Adjustment | None:
    """Bans every id that would complete an n-gram which stands in the text already."""
    size = row.params.no_repeat_ngram_size
    followers, known = defaultdict(set), 0

    def step(scores, first):
        nonlocal known
        history = row.history
        for end in range(max(known, size - 1), len(history)):
            followers[tuple(history[end - size + 1 : end])].add(history[end])
        known = len(history)
        if known >= size - 1:
            banned = followers.get(tuple(history[known - size + 1 :]), ())
            scores[[token - first for token in banned if 0 <= token - first < len(scores)]] = -np.inf

    return step if size else None


def bad_words(row: RowSampler) -> Adjustment | None:
    """Bans the last id of a sequence wherever the text ends with what is before it; an end token alone is not banned."""
    words = [ids for ids in row.params.bad_words_ids if not (len(ids) == 1 and ids[0] in row.params.eos_token_id)]

    def step(scores, first):
        for ids in words:
            index = ids[-1] - first
            if 0 <= index < len(scores) and row.ends_with(ids[:-1]):
                scores[index] = -np.inf

    return step if words else None


def min_new_tokens(row: RowSampler) -> Adjustment | None:
    """Bans every end token for so many tokens."""
    count, ban = row.params.min_new_tokens, _banning(row.params.eos_token_id)
    if ban is None or not count:
        return None

    def step(scores, first):
        if row.new < count:
            ban(scores, first)

    return step


def forced_end(row: RowSampler) -> Adjustment | None:
    """Makes the last token that the limit allows one of forced_eos_token_id."""
    ids = np.array(row.params.forced_eos_token_id, np.int64)

    def step(scores, first):
        if row.new == row.params.max_new_tokens - 1:
            scores[:] = -np.inf
            scores[_inside(ids, first, scores)] = 0

    return step if len(ids) else None


def invalid_values(row: RowSampler) -> Adjustment | None:
    """Turns NaN into 0 and infinities into the largest numbers there are."""

    def step(scores, first):
        np.nan_to_num(scores, copy=False)

    return step if row.params.remove_invalid_values else None


def exponential_decay(row: RowSampler) -> Adjustment | None:
    """Raises the end tokens after `start` new tokens, by a factor that grows with every token."""
    decay, ids = row.params.exponential_decay_length_penalty, np.array(row.params.eos_token_id, np.int64)

    def step(scores, first):
        late = row.new - decay[0]
        if late > 0:
            indices = _inside(ids, first, scores)
            indices = indices[np.isfinite(scores[indices])]
            scores[indices] += np.abs(scores[indices]) * np.float32(decay[1] ** late - 1)

    return step if decay and len(ids) else None


def suppress(row: RowSampler) -> Adjustment | None:
    """Bans ids always."""
    return _banning(row.params.suppress_tokens)


def begin_suppress(row: RowSampler) -> Adjustment | None:
    """Bans ids as the first new token."""
    ban = _banning(row.params.begin_suppress_tokens)
    if ban is None:
        return None

    def step(scores, first):
        if row.new == 0:
            ban(scores, first)

    return step


ADJUSTMENTS = (
    sequence_bias,
    repetition_penalty,
    frequency_penalties,
    no_repeat_ngram,
    bad_words,
    min_new_tokens,
    forced_end,
    invalid_values,
    exponential_decay,
    suppress,
    begin_suppress,
)


# -- filters ---------------------------------------------------------------------------------------------------------


def _masked(scores, keep):
    return np.where(keep, scores, np.float32(-np.inf))


def temperature(row: RowSampler) -> Filter | None:
    """Divides by the temperature; where that overflows, differences to the largest."""
    divisor = np.float32(row.params.temperature)

    def step(scores):
        with np.errstate(over="ignore"):
            tempered = scores / divisor
            return tempered if np.isfinite(tempered.max()) else (scores - scores.max()) / divisor

    return step if divisor != 1 else None


def top_h(row: RowSampler) -> Filter | None:
    """Keeps the likeliest (of 100) up to a share of their entropy (min-p's successor, Potraghloo et al. 2025)."""
    share = row.params.top_h

    def step(scores):
        order = np.argsort(-scores, kind="stable")[:100]
        probabilities = softmax(scores[order])
        entropy = -probabilities * np.log(probabilities, where=probabilities > 0, out=np.zeros_like(probabilities))
        keep = np.zeros(len(scores), bool)
        keep[order] = np.cumsum(entropy) <= share * entropy.sum()
        keep[order[0]] = True
        return _masked(scores, keep)

    return step if share is not None else None


def top_k(row: RowSampler) -> Filter | None:
    """Keeps the k largest, and ties with the k-th."""
    k = row.params.top_k

    def step(scores):
        return _masked(scores, scores >= np.partition(scores, -k)[-k]) if k < len(scores) else scores

    return step if k else None


def top_p(row: RowSampler) -> Filter | None:
    """Keeps the smallest set of tokens whose probability reaches p, at least one (Holtzman et al. 2020)."""
    p = row.params.top_p

    def step(scores):
        ids = np.flatnonzero(scores > -np.inf)
        order = ids[np.argsort(scores[ids], kind="stable")]  # ascending
        dropped = np.cumsum(softmax(scores[order])) <= 1 - p
        scores = scores.copy()
        scores[order[:-1][dropped[:-1]]] = -np.inf
        return scores

    return step if p < 1 else None


def min_p(row: RowSampler) -> Filter | None:
    """Drops what is less likely than so many times the likeliest (Nguyen et al. 2024)."""
    share = row.params.min_p

    def step(scores):
        probabilities = softmax(scores)
        return _masked(scores, probabilities >= share * probabilities.max())

    return step if share else None


def typical_p(row: RowSampler) -> Filter | None:
    """Keeps the tokens whose surprise is nearest to the expected one, up to the probability p (Meister et al. 2022)."""
    mass = row.params.typical_p

    def step(scores):
        ids = np.flatnonzero(scores > -np.inf)
        probabilities = softmax(scores[ids])
        surprise = -np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))
        distance = np.abs(surprise - (probabilities * surprise).sum())
        order = np.argsort(distance, kind="stable")
        last = min((np.cumsum(probabilities[order]) < mass).sum(), len(ids) - 1)
        keep = np.zeros(len(scores), bool)
        keep[ids] = distance <= distance[order[last]]
        return _masked(scores, keep)

    return step if mass < 1 else None


def epsilon_cutoff(row: RowSampler) -> Filter | None:
    """Drops what is less likely than epsilon, but for the likeliest (Hewitt et al. 2022)."""
    epsilon = row.params.epsilon_cutoff
    return (lambda scores: _above(scores, softmax(scores), epsilon)) if epsilon else None


def eta_cutoff(row: RowSampler) -> Filter | None:
    """As epsilon_cutoff, with a limit that falls with the entropy (Hewitt et al. 2022)."""
    epsilon = row.params.eta_cutoff

    def step(scores):
        probabilities = softmax(scores)
        logs = np.log(probabilities, where=probabilities > 0, out=np.zeros_like(probabilities))
        return _above(scores, probabilities, min(epsilon, np.sqrt(epsilon) * np.exp((probabilities * logs).sum())))

    return step if epsilon else None


def _above(scores, probabilities, limit):
    return _masked(scores, (probabilities >= limit) | (scores == scores.max()))


FILTERS = (temperature, top_h, top_k, top_p, min_p, typical_p, epsilon_cutoff, eta_cutoff)


class StoppingCriteria:
    """Called with ids int64 `[B, T]` and the scores so far; returns whether to stop, one bool or bool `[B]`."""

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no __call__; write one that says whether to stop")


class StoppingCriteriaList(list):
    """Several `StoppingCriteria`: a row ends when one of them says so."""


class LogitsProcessor:
    """Called with ids int64 `[B, T]` and scores float32 `[B, V]`; returns scores of the same shape."""

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} has no __call__; write one that returns the scores")


class LogitsProcessorList(list):
    """Several `LogitsProcessor`s, called one after the other."""
