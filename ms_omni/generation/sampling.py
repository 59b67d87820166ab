"""Choosing the next token on the host: penalties, masks, temperature, top-k, top-p, seeds.

The order of the steps is the one of transformers' `generate`: repetition penalty, minimum length, suppressed tokens,
then, when sampling, temperature, top-k, top-p.
"""

import math
from dataclasses import dataclass, fields
from numbers import Real

import numpy as np

from ..errors import InputError


@dataclass(frozen=True)
class SamplingParams:
    """How one autoregressive loop picks its tokens. Lengths count new tokens; eos_token_id may be several ids."""

    max_new_tokens: int = 1024
    min_new_tokens: int = 0
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    suppress_tokens: tuple = ()
    eos_token_id: tuple = ()
    pad_token_id: int | None = None
    seed: int | None = None

    def __post_init__(self):
        object.__setattr__(self, "eos_token_id", as_ids("eos_token_id", self.eos_token_id))
        object.__setattr__(self, "suppress_tokens", as_ids("suppress_tokens", self.suppress_tokens))
        object.__setattr__(self, "top_k", 0 if self.top_k is None else self.top_k)
        object.__setattr__(self, "top_p", 1.0 if self.top_p is None else self.top_p)
        checks = (
            ("max_new_tokens", _whole(self.max_new_tokens, 1), "an integer of at least 1"),
            ("min_new_tokens", _whole(self.min_new_tokens, 0), "an integer of at least 0"),
            ("temperature", _positive(self.temperature), "a number above 0 (use do_sample=False for greedy decoding)"),
            ("top_k", _whole(self.top_k, 0), "an integer of at least 0 (0: no limit)"),
            ("top_p", _positive(self.top_p) and self.top_p <= 1, "a number in (0, 1]"),
            ("repetition_penalty", _positive(self.repetition_penalty), "a number above 0 (1: none)"),
            ("pad_token_id", self.pad_token_id is None or _whole(self.pad_token_id, 0), "a token id"),
            ("seed", self.seed is None or _whole(self.seed, 0), "an integer of at least 0, or None for another every time"),
        )
        for name, good, expected in checks:
            if not good:
                raise InputError(f"{name} is {getattr(self, name)!r}, expected {expected}")

    def check_vocabulary(self, vocab_size):
        """Raises `InputError` for ids that a vocabulary of this size does not have."""
        for name in ("eos_token_id", "suppress_tokens", "pad_token_id"):
            beyond = [token for token in as_ids(name, getattr(self, name)) if token >= vocab_size]
            if beyond:
                raise InputError(f"{name} holds {beyond[:5]}, but the vocabulary has {vocab_size} tokens")

    @property
    def pad_id(self):
        """The id that fills rows which ended early: pad_token_id, else the first eos id, else 0."""
        return self.pad_token_id if self.pad_token_id is not None else (self.eos_token_id or (0,))[0]


NAMES = tuple(field.name for field in fields(SamplingParams))


def as_ids(name, value):
    """An id, several ids or None as a tuple of ints."""
    values = () if value is None else np.atleast_1d(np.asarray(value, dtype=object)).tolist()
    if not all(_whole(v, 0) for v in values):
        raise InputError(f"{name} is {value!r}, expected a token id or a list of token ids")
    return tuple(int(v) for v in values)


def _whole(value, low):
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and value >= low


def _positive(value):
    return isinstance(value, Real) and 0 < value < math.inf


class Sampler:
    """Draws one token per row and step. Each row has a random stream of its own, so batches do not change results."""

    def __init__(self, params, batch_size, vocab_size, prompt=None, valid=None):
        """prompt int `[B, T]` and valid bool `[B, T]`: the history that the repetition penalty starts from."""
        self.params = params
        self.steps = 0
        self.streams = row_streams(params.seed, batch_size)
        self.seen = np.zeros((batch_size, vocab_size), bool) if params.repetition_penalty != 1 else None
        params.check_vocabulary(vocab_size)
        if self.seen is not None and prompt is not None:
            for row, ids in enumerate(prompt):
                self.seen[row, ids if valid is None else ids[valid[row]]] = True

    def __call__(self, logits):
        """logits float32 `[B, V]` -> tokens int64 `[B]`."""
        tokens = self.choose(self.adjust(logits))
        self.note(tokens)
        return tokens

    def choose(self, scores):
        """One token int64 `[B]` per row of adjusted scores `[B, V]`."""
        if not self.params.do_sample:
            return scores.argmax(axis=-1).astype(np.int64)
        rows = zip(self.probabilities(scores), self.streams)
        return np.array([draw(probabilities, stream) for probabilities, stream in rows], np.int64)

    def note(self, tokens):
        """Remembers the tokens `[B]` that a step ended with."""
        if self.seen is not None:
            self.seen[np.arange(len(tokens)), tokens] = True
        self.steps += 1

    def adjust(self, logits, first=0):
        """Penalties and masks that also hold for greedy decoding; logits `[B, n]` are those of the ids from `first` on."""
        params, scores, width = self.params, logits, logits.shape[1]
        if self.seen is not None:
            penalty = np.float32(params.repetition_penalty)
            penalised = np.where(scores < 0, scores * penalty, scores / penalty)
            scores = np.where(self.seen[:, first : first + width], penalised, scores)
        banned = params.suppress_tokens + (params.eos_token_id if self.steps < params.min_new_tokens else ())
        banned = [token - first for token in banned if first <= token < first + width]
        if banned:
            scores = scores.copy() if scores is logits else scores
            scores[:, banned] = -np.inf
        return scores

    def probabilities(self, scores):
        """The distribution `[B, V]` float64 that sampling draws from."""
        params = self.params
        scores = scores / np.float32(params.temperature)
        if 0 < params.top_k < scores.shape[-1]:
            scores = keep_top_k(scores, params.top_k)
        if params.top_p < 1:
            scores = keep_top_p(scores, params.top_p)
        return softmax(scores)


def row_streams(seed, batch_size, purpose=0):
    """A random generator per row, the same for the same seed (None: a fresh one), row and purpose."""
    seed = seed if seed is not None else np.random.SeedSequence().entropy
    return [np.random.default_rng([seed, row, purpose]) for row in range(batch_size)]


def softmax(scores):
    """Softmax of the last axis in float64."""
    scores = np.exp(scores.astype(np.float64) - scores.max(axis=-1, keepdims=True))
    return scores / scores.sum(axis=-1, keepdims=True)


def keep_top_k(scores, k):
    """All but the k largest of each row (ties with the k-th stay) become -inf."""
    threshold = np.partition(scores, -k, axis=-1)[:, -k, None]
    return np.where(scores < threshold, -np.inf, scores)


def keep_top_p(scores, p):
    """Keeps the smallest set of tokens whose probability reaches p, at least one (Holtzman et al. 2020)."""
    order = np.argsort(scores, axis=-1, kind="stable")  # ascending
    total = np.cumsum(softmax(np.take_along_axis(scores, order, -1)), axis=-1)
    drop = total <= 1 - p
    drop[:, -1] = False
    removed = np.zeros_like(drop)
    np.put_along_axis(removed, order, drop, axis=-1)
    return np.where(removed, -np.inf, scores)


def draw(probabilities, stream):
    """One index, by inversion of the cumulative distribution."""
    total = np.cumsum(probabilities)
    return int(np.searchsorted(total, stream.random() * total[-1], side="right"))
