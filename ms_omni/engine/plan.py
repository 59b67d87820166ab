"""What the engine and its scheduler exchange: a `Job` comes in, a `Plan` goes out, `Facts` come back; a `Row` is an answer under way,
in numbers: how far its text and its speech are, and for how long there is sound to play.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

from .blocks import BLOCK, CHUNK

THINKER, TALKER = 0, 1
"""The two decoders; each has a pool of blocks of its own."""


@dataclass(frozen=True)
class Speech:
    """prompt: rows that the talker reads before it speaks. The last of them has the form of all that follow (a code and a word)
    and is read like those, by the step that makes the first frame. limit: frames, and the draw that ends them; pieces: frames per
    piece of sound, the last number for all later ones; lead: tokens of the text that come before its first word; named: see `Job`.
    """

    prompt: int
    limit: int
    pieces: tuple[int, ...] = (4, 8, 16, 25)
    lead: int = 0
    named: bool = True


@dataclass(frozen=True)
class Job:
    """One answer in numbers.

    prompt: tokens, 0 where another process writes the text (`Scheduler.add_text`); limit: tokens that may be written; keys: of the
    prompt's full chunks (`Prompt.keys`), of `chunk` tokens each; prefill_only: nothing is written behind it; media: `(stop,
    tokens)` per call of an encoder: where the tokens end that it is for, and its cost, in tokens that could be read instead;
    past_tokens: tokens at its beginning that are copied from a cache of the caller's whenever the row is scheduled; has_callbacks:
    its tokens are chosen between two ticks, by functions of the caller's (`Scheduler.asleep`); named: whether the caller has given
    this limit, else it may be less (`Scheduler.fitted`).
    """

    prompt: int
    limit: int
    keys: tuple[bytes, ...] = ()
    media: tuple[tuple[int, int], ...] = ()
    speech: Speech | None = None
    past_tokens: int = 0
    has_callbacks: bool = False
    named: bool = True
    chunk: int = CHUNK
    prefill_only: bool = False

    @property
    def spoken(self) -> Speech:
        """How it is spoken, of one that is."""
        assert self.speech is not None
        return self.speech

    @property
    def findable(self) -> tuple[bytes, ...]:
        """Keys of what may be found. The last chunk is read even if it is known, since a token is drawn from it."""
        return self.keys if self.prefill_only else self.keys[: (self.prompt - 1) // self.chunk]


@dataclass(frozen=True)
class Facts:
    """What came of a plan and could not be known before, by ids of rows.

    text_ended: what they drew last ends their text; speech_ended: what they drew is no frame, but the end of their speech, or there is
    nothing to speak; failed: they are removed; payloads: what to store beside the chunk that was read.
    """

    text_ended: frozenset[int] = frozenset()
    speech_ended: frozenset[int] = frozenset()
    failed: frozenset[int] = frozenset()
    payloads: dict[int, Any] = field(default_factory=dict)


def column(width: int) -> Any:
    """A field of a `Plan`: tuples of so many integers."""
    return field(default_factory=list, metadata={"width": width})


@dataclass
class Plan:
    """A tick, in the order in which it is executed, by any rank that has the same rows.

    removed   (row)                  has ended, failed or been cancelled since the last plan
    preempted (row)                  loses its keys and values, and is scheduled again later
    scheduled (row, tokens)          begins, or begins again; so many tokens of its prompt were found in the cache
    blocks    (row, decoder, block)  to be appended to its table, those that were found among them
    encode    (row, call)            an encoder, for a part of its media
    read      (row, decoder, start, stop)  a chunk of a prompt
    decode    (row)                  a token is read by the thinker
    frames    (row)                  a frame is read by the talker
    sound     (row, frames)          a piece for the vocoder; this tick's frame is counted, and missing where none was drawn

    Whoever has read the last token or frame that is known draws the next one.
    """

    removed: list[tuple[int]] = column(1)
    preempted: list[tuple[int]] = column(1)
    scheduled: list[tuple[int, int]] = column(2)
    blocks: list[tuple[int, int, int]] = column(3)
    encode: list[tuple[int, int]] = column(2)
    read: list[tuple[int, int, int, int]] = column(4)
    decode: list[tuple[int]] = column(1)
    frames: list[tuple[int]] = column(1)
    sound: list[tuple[int, int]] = column(2)

    def __bool__(self) -> bool:
        return any(getattr(self, part.name) for part in fields(self))

    def to_array(self) -> list[int]:
        """Per field how many tuples, then their numbers."""
        parts = [getattr(self, part.name) for part in fields(self)]
        return [number for rows in parts for number in (len(rows), *(number for row in rows for number in row))]

    @classmethod
    def from_array(cls, numbers: Iterable[int]) -> "Plan":
        """The plan again; the array may be longer."""
        rest = map(int, numbers)
        columns: list[Any] = [
            [tuple(next(rest) for _ in range(part.metadata["width"])) for _ in range(next(rest))] for part in fields(cls)
        ]
        return cls(*columns)


FRAME_S = 0.08
"""Sound of a frame."""
BUFFERED_S = 2.0
"""Rows with more sound to play wait while another runs out of it."""
UNDERRUN_S = 0.5
"""Rows with less are about to run out of it; they go first, as do those without any sound yet."""


@dataclass(eq=False)
class Track:
    """What one decoder has done for a row: the first `read` of the `known` positions are in its blocks; drawn: how
    many of those behind the prompt there are.

    chunked: positions that are read in chunks of `size`; the others are read in steps. Reading the last known position draws another, so a
    track that has lost its blocks simply reads again: chunks first, then steps, and nothing is drawn twice.
    """

    prompt: int
    limit: int
    chunked: int
    size: int = CHUNK
    read: int = 0
    drawn: int = 0
    ended: bool = False
    blocks: list[int] = field(default_factory=list)

    @property
    def known(self) -> int:
        """Positions that can be read by now."""
        return self.prompt + self.drawn

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
    """An answer. deadline: when all sound that was sent will have been played, before any when the first sound is late; sent:
    frames that became sound, in so many pieces; encoded: calls of encoders that are done; payloads: of the chunks that were found
    when it was scheduled.
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
    def talker(self) -> Track:
        """What the talker has done, of one that is spoken."""
        assert self.speech is not None
        return self.speech

    def track(self, decoder: int) -> Track:
        """The one of a decoder that it needs."""
        return self.text if decoder == THINKER else self.talker

    @property
    def speaks(self) -> bool:
        """Whether frames may be made."""
        return self.speech is not None and not self.speech.ended

    @property
    def done(self) -> bool:
        """Whether the text has ended, and all of the speech is sent."""
        return self.text.ended and (self.speech is None or (self.speech.ended and self.sent == self.speech.drawn))

    @property
    def has_text(self) -> bool:
        """Whether the text of the next frame is there: a token each, and tts_pad behind the last."""
        return self.talker.replays or self.text.ended or self.text.drawn - self.job.spoken.lead > self.talker.drawn

    @property
    def awaits_text(self) -> bool:
        """Whether the text of its first frame is not written yet."""
        return self.text.drawn <= self.job.spoken.lead

    @property
    def can_write(self) -> bool:
        """Whether it can write the text of a frame in the tick that makes the frame."""
        return self.text.steps and not self.text.replays and not self.job.has_callbacks

    @property
    def next_frame(self) -> float:
        """When its next frame will be missed."""
        return self.deadline + (self.talker.drawn - self.sent) * FRAME_S

    @property
    def awaits_first_output(self) -> bool:
        """Whether no sound was sent yet, or no token where it does not speak."""
        return self.sent == 0 if self.speaks else self.text.drawn == 0

    def underruns(self, now: float) -> bool:
        """Whether its listener is about to run out of sound."""
        return self.speaks and self.sent > 0 and self.deadline - now < UNDERRUN_S

    def well_buffered(self, now: float) -> bool:
        """Whether its listener has sound for a while."""
        return self.sent > 0 and self.deadline - now > BUFFERED_S

    def reading(self) -> tuple[int | None, int] | None:
        """What it reads next: the decoder of a chunk, or None for media, and how many tokens; or nothing."""
        if self.text.chunk and self.encoded < len(self.job.media):
            return None, self.job.media[self.encoded][1]
        if self.text.chunk:
            return THINKER, self.text.chunk
        if self.speaks and not self.awaits_text and self.talker.chunk:
            return TALKER, self.talker.chunk
        return None

    def left(self) -> int:
        """Tokens that it has to read until its first sound can be made."""
        media = sum(tokens for _, tokens in self.job.media[self.encoded :])
        return media + sum(max(track.chunked - track.read, 0) for track in self.tracks if track and not track.ended)
