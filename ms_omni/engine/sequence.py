"""One answer: all that is known of it (`Sequence`), and its text (`Text`). No state of an answer lives anywhere else."""

import time
from collections import deque
from collections.abc import Callable
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..arrays import HostArray
from ..errors import InputError
from ..generation.options import TextOptions
from ..generation.request import SpeechParams
from ..generation.sampling import Chosen, Likeliest, RowSampler, SamplingParams, row_stream
from ..locking import exclusive
from ..modeling.packing import host_array
from ..outputs import AudioChunk, Logprobs, StreamEnd, StreamError, TextDelta
from .prompt import Prompt


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

    def _shows(self, strings: Rows[str], piece: str) -> bool:
        """Whether the text contains one of the strings; what lies farther back than the longest was searched before."""
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
        if piece.endswith("\n"):  # what came before can be forgotten: no character spans a line's end
            self.ids, self.emitted = [], ""
        elif len(self.ids) > MAX_IDS:
            self.ids = self.ids[-CONTEXT_IDS:]
            self.emitted = self.tokenizer.decode(self.ids, skip_special_tokens=True)
        return piece


@dataclass(eq=False)
class Sequence:
    """table: the thinker's blocks; read: how many positions lie in them; talker_states: the thinker's states per chunk
    that was read, for the talker: `(embeddings, hidden states)`, each `[n, D]`; features: by the number of their call;
    hidden_states: the states of all layers per pass, where they are asked for.

    speech: how it is to be spoken, or None; turn: the ids of the assistant turn in the prompt, from its start token on; fed: how
    many of its ids, and of the text behind them, the speech has; codes: of what was spoken, int64 `[Q, n]` each; cached: tokens of the
    prompt that were found in the cache when the row was scheduled first; speech_complete: whether the speech has all of the text.

    given: the prompt ends with the text that is spoken, and none is written; prefill_only: nothing is written or spoken.

    max_tokens: tokens of text that fit into the whole cache, no more than are wanted.

    pending_scores: what `Text.choose` takes, until the caller's functions that take part in the choice are called.

    past: `(cache, row, columns)` that hold the first tokens of the prompt, or None; new_kv: keys and values of what was read behind
    them, where they are wanted.
    """

    prompt: Prompt
    text: Text
    turn: list[int] = field(default_factory=list)
    speech: SpeechParams | None = None
    fed: int = 0
    codes: list[np.ndarray] = field(default_factory=list)
    samples: int = 0
    cached: int = 0
    speech_complete: bool = False
    given: bool = False
    prefill_only: bool = False
    max_tokens: int = 0
    table: list[int] = field(default_factory=list)
    read: int = 0
    talker_states: list[tuple[Any, Any]] = field(default_factory=list)
    features: dict[int, Any] = field(default_factory=dict)
    hidden_states: list[tuple] = field(default_factory=list)
    pending_scores: tuple | None = None
    past: tuple | None = None
    new_kv: list | None = None
    events: deque = field(default_factory=deque)
    started: float = 0.0
    first_text_s: float | None = None
    first_audio_s: float | None = None
    error: Exception | None = None
    late_error: Exception | None = None  # it waits for the end of text and speech
    ended: bool = False  # its last event is among the events

    def position(self) -> np.float32:
        """Of the next token that the thinker reads, behind the prompt."""
        return self.prompt.following + np.float32(self.read - len(self.prompt))

    def next_token(self) -> int:
        """The one that the thinker reads next, behind the prompt."""
        return self.text.tokens[self.read - len(self.prompt)]

    @property
    def choosing(self) -> bool:
        """Whether a new token is to be chosen behind what the thinker reads next, which ends with all that was written."""
        return not self.text.tokens or self.read + 1 == len(self.prompt) + len(self.text.tokens)

    def unfed_ids(self) -> list[int]:
        """The ids of the assistant turn that its speech does not have yet."""
        spoken_ids, start = self.text.spoken_ids, max(self.fed - len(self.turn), 0)
        return self.turn[self.fed :] + spoken_ids[start:]

    @property
    def text_complete(self) -> bool:
        """Whether no more text comes that is spoken."""
        return self.given or self.text.unspoken or not self.text.active

    def drop_blocks(self) -> None:
        """Forgets what the blocks held."""
        self.table.clear()
        self.read = 0

    def add(self, event: Any, now: float) -> None:
        """Hands out an event."""
        if isinstance(event, AudioChunk):
            self.first_audio_s = self.first_audio_s or now - self.started
        elif isinstance(event, TextDelta):
            self.first_text_s = self.first_text_s or now - self.started
        self.events.append(event)

    def sound(self, pcm: np.ndarray, codes: np.ndarray, now: float) -> None:
        """Hands out samples `[n]` of codes `[Q, frames]`."""
        self.codes.append(codes)
        self.add(AudioChunk(self.samples, pcm[None], np.array([len(pcm)])), now)
        self.samples += len(pcm)

    def end(self, now: float) -> None:
        """Hands out the last event, an error where its speech has failed."""
        tokens, frames = (
            np.array([count]) for count in (len(self.text.tokens), sum(codes.shape[1] for codes in self.codes))
        )
        times = self.first_text_s, self.first_audio_s, now - self.started
        self.add(StreamEnd(self.text.ids(), tokens, frames, *times, (self.text.reason,), np.array([self.cached])), now)
        self.ended = True

    def fail(self, error: Exception) -> None:
        """Hands out an error as the last event."""
        self.events.append(StreamError(error))
        self.ended = True
