"""One answer on its way, in numbers: how far its text and its speech are, and how long its listener has something to hear."""

from dataclasses import dataclass, field
from typing import Any

from .blocks import BLOCK, CHUNK
from .plan import TALKER, THINKER, Job

FRAME_S = 0.08
"""Sound of a frame."""
CALM_S = 2.0
"""Rows with more sound to be heard wait while somebody is in need."""
DRY_S = 0.5
"""Rows with less are in need, as are those that were not heard yet."""


@dataclass(eq=False)
class Track:
    """What one decoder has done for a row: the first `read` of the `known` positions are in its blocks, `made` of them were drawn.

    chunked: positions that are read in chunks of `size`; the others are read in steps. Reading the last known position draws another, so a
    track that has lost its blocks simply reads again: chunks first, then steps, and nothing is drawn twice.
    """

    prompt: int
    limit: int
    chunked: int
    size: int = CHUNK
    read: int = 0
    made: int = 0
    ended: bool = False
    blocks: list[int] = field(default_factory=list)

    @property
    def known(self) -> int:
        """Positions that can be read by now."""
        return self.prompt + self.made

    @property
    def full(self) -> bool:
        """Whether the next position needs another block."""
        return self.read == len(self.blocks) * BLOCK

    @property
    def chunk(self) -> int:
        """Tokens of the next chunk; 0 when there is none."""
        return 0 if self.ended else max(min(self.size, self.chunked - self.read), 0)

    @property
    def steps(self) -> bool:
        """Whether a step is next."""
        return self.prompt > 0 and not self.ended and self.read >= self.chunked

    @property
    def replays(self) -> bool:
        """Whether that step draws nothing."""
        return self.read + 1 < self.known


@dataclass(eq=False)
class Row:
    """An answer. deadline: when its listener will have heard all that was sent, before that when the first sound is late; sent:
    frames that became sound, in so many pieces; encoded: calls of encoders that were made; payloads: of the chunks that were found
    when it was admitted.
    """

    id: int
    job: Job
    deadline: float
    text: Track
    speech: Track | None
    encoded: int = 0
    sent: int = 0
    pieces: int = 0
    payloads: list[Any] = field(default_factory=list)

    @property
    def tracks(self) -> tuple[Track, Track | None]:
        """By decoder."""
        return self.text, self.speech

    @property
    def speaks(self) -> bool:
        """Whether frames may be made."""
        return self.speech is not None and not self.speech.ended

    @property
    def done(self) -> bool:
        """Whether all was written, and all that was made is sent."""
        return self.text.ended and (self.speech is None or (self.speech.ended and self.sent == self.speech.made))

    @property
    def word(self) -> bool:
        """Whether the next frame has its text: a token each, and silence behind the last."""
        return self.speech.replays or self.text.ended or self.text.made - self.job.speech.lead > self.speech.made

    @property
    def mute(self) -> bool:
        """Whether its first word is not written yet."""
        return self.text.made <= self.job.speech.lead

    @property
    def writes(self) -> bool:
        """Whether it could have a word in the tick that makes the frame."""
        return self.text.steps and not self.text.replays and not self.job.asks

    @property
    def next_frame(self) -> float:
        """When its next frame will be missed."""
        return self.deadline + (self.speech.made - self.sent) * FRAME_S

    @property
    def unheard(self) -> bool:
        """Whether its listener (reader, if it does not speak) waits for the first of all."""
        return self.sent == 0 if self.speaks else self.text.made == 0

    def dry(self, now: float) -> bool:
        """Whether its listener would soon hear nothing more."""
        return self.speaks and self.sent > 0 and self.deadline - now < DRY_S

    def calm(self, now: float) -> bool:
        """Whether it has to hear for a while."""
        return self.sent > 0 and self.deadline - now > CALM_S

    def reading(self) -> tuple[int | None, int] | None:
        """What it reads next: the decoder of a chunk, or None for media, and how many tokens; or nothing."""
        if self.text.chunk and self.encoded < len(self.job.media):
            return None, self.job.media[self.encoded][1]
        if self.text.chunk:
            return THINKER, self.text.chunk
        if self.speaks and not self.mute and self.speech.chunk:
            return TALKER, self.speech.chunk
        return None

    def left(self) -> int:
        """Tokens that it has to read until it can be heard."""
        media = sum(tokens for _, tokens in self.job.media[self.encoded :])
        return media + sum(max(track.chunked - track.read, 0) for track in self.tracks if track and not track.ended)
