"""Choosing the next token on the host: what may be asked for, and a sampler per row that does it.

The steps and their order are in `logits.py`.
"""

import sys
from collections import Counter
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError
from .checks import CHECKS, as_ids, as_tuple, biases, check, id_sequences
from .logits import ADJUSTMENTS, FILTERS, softmax


@dataclass(frozen=True)
class SamplingParams:
    """How one autoregressive loop picks its tokens; names and meanings as in transformers' `GenerationConfig`.

    Lengths count new tokens. eos_token_id may be several ids, and -1 or [] means none. temperature 0 is greedy. bad_words_ids:
    sequences of ids; sequence_bias: `{ids: bias}`. presence_penalty and frequency_penalty (as OpenAI's) count new tokens.
    Raises `InputError` that names the field, what was got and what is expected.
    """

    max_new_tokens: int = 1024
    min_new_tokens: int = 0
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    top_h: float | None = None
    typical_p: float = 1.0
    epsilon_cutoff: float = 0.0
    eta_cutoff: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    bad_words_ids: tuple = ()
    sequence_bias: tuple = ()
    suppress_tokens: tuple = ()
    begin_suppress_tokens: tuple = ()
    forced_eos_token_id: tuple = ()
    exponential_decay_length_penalty: tuple = ()
    remove_invalid_values: bool = False
    renormalize_logits: bool = False
    eos_token_id: tuple = ()
    pad_token_id: int | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("eos_token_id", "pad_token_id"):  # transformers' tests write -1 for "none"
            if isinstance(getattr(self, name), (int, np.integer)) and getattr(self, name) == -1:
                self._set(name, None)
        for name in ("eos_token_id", "suppress_tokens", "begin_suppress_tokens", "forced_eos_token_id"):
            ids = getattr(self, name)
            none = name == "eos_token_id" and isinstance(ids, (list, tuple)) and list(ids) == [-1]
            self._set(name, () if none else as_ids(name, ids))
        self._set("bad_words_ids", id_sequences("bad_words_ids", self.bad_words_ids))
        self._set("sequence_bias", biases("sequence_bias", self.sequence_bias))
        self._set("exponential_decay_length_penalty", as_tuple(self.exponential_decay_length_penalty))
        for field in fields(self):
            if getattr(self, field.name) is None and field.name not in ("top_h", "pad_token_id", "seed"):
                self._set(field.name, field.default)
        for name in CHECKS.keys() & vars(self).keys():
            check(name, getattr(self, name))
        if self.min_new_tokens > self.max_new_tokens:
            raise InputError(
                f"min_new_tokens is {self.min_new_tokens}, more than max_new_tokens, which is {self.max_new_tokens}"
            )
        if np.float32(self.temperature) == 0:
            self._set("do_sample", False)
            self._set("temperature", 1.0)
        for name in ("do_sample", "remove_invalid_values", "renormalize_logits"):
            self._set(name, bool(getattr(self, name)))

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raises `InputError` for ids that a vocabulary of this size does not have, and when none is left to choose."""
        named = {name: getattr(self, name) for name in ID_FIELDS}
        named["pad_token_id"] = as_ids("pad_token_id", self.pad_token_id)
        named["bad_words_ids"] = [token for ids in self.bad_words_ids for token in ids]
        named["sequence_bias"] = [token for ids, _ in self.sequence_bias for token in ids]
        for name, ids in named.items():
            beyond = [token for token in ids if token >= vocab_size]
            if beyond:
                raise InputError(f"{name} holds {beyond[:5]}, but the vocabulary has {vocab_size} tokens")
        if len(set(self.suppress_tokens)) == vocab_size:
            raise InputError(f"suppress_tokens holds all {vocab_size} tokens of the vocabulary, so none is left to choose")

    @property
    def needs_seed(self) -> bool:
        """Whether numbers are drawn, and none are named to draw them by."""
        return self.do_sample and self.seed is None

    @property
    def pad_id(self) -> int:
        """The id that fills rows which ended early: pad_token_id, else the first eos id, else 0."""
        return self.pad_token_id if self.pad_token_id is not None else (self.eos_token_id or (0,))[0]


NAMES = tuple(field.name for field in fields(SamplingParams))
ID_FIELDS = ("eos_token_id", "suppress_tokens", "begin_suppress_tokens", "forced_eos_token_id")


class Chosen(NamedTuple):
    """What a device chose: an id, and the largest of the scores that it was chosen from, NaN where there is any."""

    id: int
    largest: float


class Likeliest(NamedTuple):
    """All that may be chosen of a row: adjusted scores float32 `[n]`, and their ids, in ascending order once they are chosen from."""

    scores: np.ndarray
    ids: np.ndarray


class RowSampler:
    """What one row chooses by: its parameters, a random stream of its own, and the ids so far.

    history: ids of prompt and text; seen: each of them once; counts: how often each new one came; new: how many there are.
    """

    def __init__(
        self, params: SamplingParams, stream: np.random.Generator | None, prompt: Any = (), part: str = "thinker"
    ) -> None:
        """part: of the model, whose logits are chosen from."""
        self.params, self.stream, self.part, self.new = params, stream, part, 0
        self.history = np.asarray(prompt, np.int64).tolist()
        self.seen = np.unique(np.array(self.history, np.int64))
        self.counts = Counter()
        self.adjustments = [step for maker in ADJUSTMENTS if (step := maker(self)) is not None]
        self.filters = [step for maker in FILTERS if (step := maker(self)) is not None] if params.do_sample else []

    def ends_with(self, ids: tuple[int, ...]) -> bool:
        """Whether the text so far ends with these ids."""
        return not ids or tuple(self.history[-len(ids) :]) == ids

    def note(self, token: int) -> None:
        """Remembers the token that a step ended with."""
        self.new += 1
        if self.adjustments:
            self.history.append(token)
            if token not in self.counts and token not in self.seen:
                self.seen = np.append(self.seen, token)
            self.counts[token] += 1

    def adjusted(self, logits: np.ndarray, first: int = 0) -> np.ndarray:
        """After penalties and masks, which also hold for greedy decoding; logits `[n]` are those of the ids from `first` on."""
        if not self.adjustments:
            return logits
        scores = logits.copy()
        for step in self.adjustments:
            step(scores, first)
        return scores

    def filtered(self, scores: np.ndarray) -> np.ndarray:
        """Adjusted scores `[V]` -> those that are chosen from, -inf for what may not be drawn.

        Raises `InputError` where there is nothing to choose from.
        """
        self._check(scores.max())  # NaN where there is any
        for step in self.filters:
            scores = step(scores)
        if self.params.renormalize_logits:
            scores = scores - scores.max()
            scores = scores - np.log(np.exp(scores).sum())
        return scores

    def _check(self, largest):
        if not largest < np.inf:
            raise InputError(not_finite(f"{self.part}'s logits"))
        if largest == -np.inf:
            raise InputError("every token of the vocabulary is banned here; ban fewer (suppress_tokens, bad_words_ids, ...)")

    def choose(self, found: "np.ndarray | Chosen | Likeliest") -> int:
        """A token by logits float32 `[V]`, or by what a device found in them. Raises `InputError` as `filtered`."""
        if isinstance(found, Chosen):
            self._check(found.largest)
            return found.id
        if isinstance(found, Likeliest):
            return int(found.ids[self.chosen(self.filtered(found.scores))])
        return self.chosen(self.filtered(self.adjusted(found)))

    def chosen(self, scores: np.ndarray) -> int:
        """A token of filtered scores `[V]`: the likeliest one, or one that is drawn."""
        if not self.params.do_sample:
            return int(scores.argmax())
        assert self.stream is not None, "a row that samples has a random stream"
        ids = np.flatnonzero(scores > -np.inf)
        return int(ids[draw(softmax(scores[ids]), self.stream)])


class Sampler:
    """The samplers of a loop's rows. Each has a random stream of its own, so batches do not change results."""

    def __init__(
        self,
        params: SamplingParams,
        batch_size: int,
        vocab_size: int,
        prompt: Any = None,
        valid: Any = None,
        part: str = "thinker",
    ) -> None:
        """prompt int `[B, T]` and valid bool `[B, T]`: the history that penalties start from; part: see `RowSampler`."""
        params.check_vocabulary(vocab_size)
        self.params = params
        prompts = [()] * batch_size if prompt is None else prompt if valid is None else map(np.extract, valid, prompt)
        streams = row_streams(params.seed, batch_size) if params.do_sample else [None] * batch_size
        self.rows = [RowSampler(params, *row, part) for row in zip(streams, prompts)]

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        """logits float32 `[B, V]` -> tokens int64 `[B]`."""
        tokens = self.choose(self.filter(self.adjust(logits)))
        self.note(tokens)
        return tokens

    def adjust(self, logits: np.ndarray, first: int = 0) -> np.ndarray:
        """Penalties and masks that also hold for greedy decoding; logits `[B, n]` are those of the ids from `first` on."""
        return np.stack([row.adjusted(line, first) for row, line in zip(self.rows, logits)])

    def filter(self, scores: np.ndarray) -> np.ndarray:
        """Adjusted scores `[B, V]` -> those that are chosen from. Raises `InputError` where there is nothing to choose from."""
        return np.stack([row.filtered(line) for row, line in zip(self.rows, scores)])

    def choose(self, scores: np.ndarray) -> np.ndarray:
        """One token int64 `[B]` per row of filtered scores `[B, V]`."""
        return np.array([row.chosen(line) for row, line in zip(self.rows, scores)], np.int64)

    def note(self, tokens: np.ndarray) -> None:
        """Remembers the tokens `[B]` that a step ended with."""
        for row, token in zip(self.rows, tokens.tolist()):
            row.note(token)


def not_finite(what: str) -> str:
    """The message for numbers of the model that are no numbers any more."""
    return (
        f"the {what} hold NaN or infinite numbers, so there is no answer: weights that were changed or loaded do, or inputs or a "
        "narrow dtype led there; load the checkpoint again, with dtype='float32', and look at inputs_embeds and logits_processor "
        "where you pass any"
    )


def row_streams(seed: int | None, batch_size: int, purpose: int = 0) -> list[np.random.Generator]:
    """A random generator per row, the same for the same seed (None: see `fresh_seed`), row and purpose."""
    seed = fresh_seed() if seed is None else seed
    return [row_stream(seed, row, purpose) for row in range(batch_size)]


def row_stream(seed: int | None, row: int, purpose: int = 0) -> np.random.Generator:
    """The one of a single row."""
    return np.random.default_rng([fresh_seed() if seed is None else seed, row, purpose])


def fresh_seed() -> int:
    """A seed for a request that names none: another one every time, but the same series after `mindspore.set_seed`.

    `set_seed` seeds numpy's global generator; it is read only then.
    """
    mindspore = sys.modules.get("mindspore")
    if mindspore is not None and mindspore.get_seed() is not None:
        return int(np.random.randint(2**31))
    return int(np.random.SeedSequence().generate_state(1, np.uint64)[0] >> np.uint64(1))


def draw(probabilities: np.ndarray, stream: np.random.Generator) -> int:
    """One index, by inversion of the cumulative distribution."""
    total = np.cumsum(probabilities)
    return int(np.searchsorted(total, stream.random() * total[-1], side="right"))
