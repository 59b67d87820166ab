"""One answer: all that is known of it. No state of an answer lives anywhere else."""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..generation.request import SpeechParams
from ..outputs import AudioChunk, StreamEnd, StreamError, TextDelta
from .prompt import Prompt
from .text import Text


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
