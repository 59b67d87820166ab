"""The text of one answer: what was chosen so far, from which logits, and whether it goes on."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..arrays import HostArray
from ..errors import InputError
from ..generation.options import TextOptions
from ..generation.sampling import Chosen, Likeliest, RowSampler, SamplingParams, row_stream
from ..locking import exclusive
from ..modeling.packing import host_array
from ..outputs import Logprobs, TextDelta


class Text:
    """tokens: the new ids so far; active: whether more may follow; spoken_ids: the ids that are spoken, those that end a row left out;
    unspoken: whether what follows is not spoken, see `TextOptions.unspoken_from`; emitted: the end of the text so far, as long as the
    longest stop string; reason: why no more follow, as in `StreamEnd`.

    row: the number of the conversation among those that one call asked, which its random stream depends on.
    """

    def __init__(
        self,
        prompt: np.ndarray,
        params: SamplingParams,
        options: TextOptions,
        row: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.params, self.options = params, options
        self.prompt = prompt.astype(np.int64)
        stream = row_stream(params.seed, row) if params.do_sample else None
        self.sampler = RowSampler(params, stream, self.prompt)
        self.decoder = options.tokenizer and IncrementalDecoder(options.tokenizer)
        self.tokens: list[int] = []
        self.spoken_ids: list[int] = []
        self.active, self.unspoken, self.reason = True, False, ""
        self.emitted = ""
        self.scores: list[np.ndarray] = []
        self.logits: list[np.ndarray] = []
        self._last_logits: np.ndarray | None = None  # logits of the next token, where its log-probability is asked for
        self._clock, self._started = clock, clock()

    @property
    def has_callbacks(self) -> bool:
        """Whether functions of the caller's are called for every token."""
        return bool(self.options.logits_processor or self.options.stopping_criteria)

    def choose(self, logits: np.ndarray | Chosen | Likeliest, adjusted: bool = False) -> TextDelta:
        """Chooses the next token by logits float32 `[V]`, adjusted: penalties are in there already; or takes what a device found.

        Raises `InputError` for logits that are not finite, and for what the caller's functions return.
        """
        if isinstance(logits, Chosen | Likeliest):
            return self.add(self.sampler.choose(logits))
        return self.add(self.sampler.chosen(self.process(logits, adjusted)))

    def process(self, logits: np.ndarray, adjusted: bool = False) -> np.ndarray:
        """The scores that the next token is chosen from, which are stored where they are asked for."""
        scores = self.sampler.filtered(self._processed(logits if adjusted else self.sampler.adjusted(logits)))
        if self.options.output_scores:
            self.scores.append(HostArray.of(scores))
        if self.options.output_logits:
            self.logits.append(HostArray.of(logits))
        if self.options.logprobs is not None:
            self._last_logits = logits
        return scores

    def add(self, token: int, active: bool | None = None) -> TextDelta:
        """Takes the next token; active: whether more follow, where that is known already."""
        self.sampler.note(token)
        self.tokens.append(token)
        full = len(self.tokens) == self.params.max_new_tokens
        self.unspoken = self.unspoken or token in self.options.unspoken_from
        if not (self.unspoken or token in self.params.eos_token_id + (self.params.forced_eos_token_id if full else ())):
            self.spoken_ids.append(token)
        piece = None if self.decoder is None else self.decoder.push(token, full)
        if active is None:
            self.reason = self._ended(token, piece) or ("length" if full else "")
        self.active = not self.reason if active is None else active
        if self.decoder is not None and piece is not None and not self.active and not full:
            piece += self.decoder.rest()
        logits, count = self._last_logits, self.options.logprobs or 0
        logprobs = None if logits is None else (log_probabilities(logits, token, count),)
        return TextDelta(np.array([token]), np.ones(1, bool), None if piece is None else (piece,), logprobs)

    def ids(self) -> HostArray:
        """Prompt and tokens int64 `[1, T + n]`."""
        return HostArray.of(np.concatenate([self.prompt, np.array(self.tokens, np.int64)])[None])

    def _processed(self, scores):
        """After the caller's processors of logits, which see one conversation: ids `[1, T]`, scores `[1, V]`."""
        for processor in self.options.logits_processor:
            given = HostArray.of(np.array(scores[None]))
            found = exclusive.released(processor, self.ids(), given)
            if getattr(found, "shape", None) != given.shape:
                raise InputError(
                    f"the logits processor {processor!r} returned {type(found).__name__} of shape "
                    f"{getattr(found, 'shape', None)}, expected scores of shape {given.shape}"
                )
            scores = np.asarray(host_array(found), np.float32)[0]
        return scores

    def _ended(self, token, piece):
        """Why the text ends here, "" if it does not."""
        options = self.options
        stops = [self._stops(criterion) for criterion in options.stopping_criteria]  # all of them are called for every token
        if token in self.params.eos_token_id:
            return "stop"
        if options.stop_strings and self._shows(options.stop_strings, piece):
            return "stop"
        late = options.max_time is not None and self._clock() - self._started > options.max_time
        return "stop" if any(stops) else "time" if late else ""

    def _shows(self, strings: Sequence[str], piece: str) -> bool:
        """Whether the text contains one of the strings; what lies farther back than the longest has been looked at."""
        text = self.emitted + piece + self.decoder.pending
        longest = max(map(len, strings))
        self.emitted = (self.emitted + piece)[-longest:]
        return any(string in text for string in strings)

    def _stops(self, criterion: Any) -> bool:
        scores = tuple(score[None] for score in self.scores) if self.options.output_scores else None
        stops = np.asarray(host_array(exclusive.released(criterion, self.ids(), scores)))
        if stops.shape not in ((), (1,)):
            raise InputError(
                f"the stopping criterion {criterion!r} returned shape {stops.shape}, expected one truth value for its conversation"
            )
        return bool(stops.all())


def log_probabilities(logits: np.ndarray, token: int, count: int) -> Logprobs:
    """Of a token and of the `count` likeliest ones, by logits float32 `[V]`; of equals the smaller id comes first."""
    scores = logits.astype(np.float64)
    scores -= scores.max()
    scores -= np.log(np.exp(scores).sum())
    count = min(count, len(scores))
    least = np.partition(scores, -count)[-count] if count else np.inf
    ids = np.flatnonzero(scores >= least)
    ids = ids[np.argsort(-scores[ids], kind="stable")][:count]
    return Logprobs(float(scores[token]), ids, scores[ids])


MAX_IDS, CONTEXT_IDS = 64, 8
"""Ids that are decoded again with each new one, and how many of them remain when there are more: so the time per token does not grow
with the text, and a tokenizer that joins neighbours still has some.
"""


class IncrementalDecoder:
    """Turns one row of ids into text piece by piece. pending: text that is held back, since the bytes of its last character are not all
    there yet; emitted: that of the ids which are still decoded.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.emitted = ""
        self.pending = ""

    def push(self, token: int, final: bool = False) -> str:
        """The text that this token completes, possibly none; final: nothing follows, so nothing is held back."""
        self.ids.append(int(token))
        self.pending = self.tokenizer.decode(self.ids, skip_special_tokens=True)[len(self.emitted) :]
        return "" if self.pending.endswith("\ufffd") and not final else self.rest()

    def rest(self) -> str:
        """The text that was held back; nothing follows."""
        piece, self.pending = self.pending, ""
        self.emitted += piece
        if piece.endswith("\n"):  # a safe place to forget: no character spans a line's end
            self.ids, self.emitted = [], ""
        elif len(self.ids) > MAX_IDS:
            self.ids = self.ids[-CONTEXT_IDS:]
            self.emitted = self.tokenizer.decode(self.ids, skip_special_tokens=True)
        return piece
