"""One answer: all that is known of it. No state of an answer lives anywhere else."""

from collections import deque
from collections.abc import Sequence as Rows
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..outputs import AudioChunk, StreamEnd
from .plan import TALKER, THINKER
from .prompt import Prompt
from .text import Text


@dataclass(eq=False)
class Sequence:
    """tables: the blocks of thinker and talker; read: how many positions lie in them; states: of the thinker, per chunk that was
    read, what a talker hears of it: `(embeddings, hidden states)`, each `[n, D]`; features: of the media, by their number;
    watched: the states of all layers per pass, where they are asked for.

    turn: the ids of the assistant turn in the prompt, from its start token on; voice: the state of its speech, or None.
    """

    prompt: Prompt
    text: Text
    turn: list[int] = field(default_factory=list)
    voice: Any = None
    given: bool = False
    tables: tuple[list[int], list[int]] = field(default_factory=lambda: ([], []))
    read: list[int] = field(default_factory=lambda: [0, 0])
    states: list[tuple[Any, Any]] = field(default_factory=list)
    features: dict[int, Any] = field(default_factory=dict)
    watched: list[tuple] = field(default_factory=list)
    events: deque = field(default_factory=deque)
    started: float = 0.0
    first_text_s: float | None = None
    first_audio_s: float | None = None
    error: Exception | None = None
    ended: bool = False  # its last event is among the events

    def position(self) -> np.float32:
        """Of the next token that the thinker reads, behind the prompt."""
        return self.prompt.following + np.float32(self.read[THINKER] - len(self.prompt))

    def next_token(self) -> int:
        """The one that the thinker reads next, behind the prompt."""
        return self.text.tokens[self.read[THINKER] - len(self.prompt)]

    def spoken(self, index: int, end: int, silence: int) -> int | None:
        """The id at a place of the assistant turn, as it is said: the words, an end, then silence; None where no text is yet."""
        words = self.turn + self.text.words
        if index < len(words):
            return words[index]
        if self.text.going and not self.given:
            return None
        return end if index == len(words) else silence

    def drop(self) -> None:
        """Forgets what the blocks held."""
        for decoder in (THINKER, TALKER):
            self.tables[decoder].clear()
            self.read[decoder] = 0

    def add(self, event: Any, now: float) -> None:
        """Hands out an event."""
        if isinstance(event, AudioChunk):
            self.first_audio_s = self.first_audio_s or now - self.started
        elif not isinstance(event, StreamEnd):
            self.first_text_s = self.first_text_s or now - self.started
        self.events.append(event)

    def end(self, now: float, frames: int) -> StreamEnd:
        """The last event. frames: that were spoken."""
        tokens = np.array([len(self.text.tokens)])
        counts = np.array([frames])
        times = self.first_text_s, self.first_audio_s, now - self.started
        return StreamEnd(self.text.ids(), tokens, counts, *times)


def bucket(rows: Rows) -> int:
    """Rows of the launch that so many take: the next of 1, 2, 4, 8, 16, ..."""
    return 1 << max(len(rows) - 1, 0).bit_length()
