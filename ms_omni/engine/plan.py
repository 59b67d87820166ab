"""What the engine and its scheduler say to each other: a `Job` comes in, a `Plan` goes out, `Facts` come back."""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

from .blocks import CHUNK

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

    prompt: tokens, 0 where the text is written elsewhere (`Scheduler.written`); limit: tokens that may be written; keys: of the
    prompt's full chunks (`Prompt.keys`), of `chunk` tokens each; reads: nothing is written behind it; media: `(stop, tokens)` per call of an encoder: where the tokens end that it is for, and
    its cost, in tokens that could be read instead; held: tokens at its beginning that are copied from elsewhere whenever the row is
    admitted; asks: its tokens are chosen between two ticks, by functions of the caller's (`Scheduler.asleep`); named: whether
    somebody has asked for this limit, else it may be less (`Scheduler.fitted`).
    """

    prompt: int
    limit: int
    keys: tuple[bytes, ...] = ()
    media: tuple[tuple[int, int], ...] = ()
    speech: Speech | None = None
    held: int = 0
    asks: bool = False
    named: bool = True
    chunk: int = CHUNK
    reads: bool = False

    @property
    def findable(self) -> tuple[bytes, ...]:
        """Keys of what may be found. The last chunk is read even if it is known, for somebody has to draw from it."""
        return self.keys if self.reads else self.keys[: (self.prompt - 1) // self.chunk]


@dataclass(frozen=True)
class Facts:
    """What came of a plan that nobody could know before, by ids of rows.

    text_ended: what they drew last ends their text; speech_ended: what they drew is no frame, but the end of their speech, or they
    have not a word to say; failed: they are given up; payloads: what to keep beside the chunk that was read.
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
    """A tick, in the order in which it is done; whoever has the same rows can follow it, on any rank.

    gone      (row)                  has ended, failed or been cancelled since the last plan
    dropped   (row)                  gives up its keys and values, and is admitted again later
    admitted  (row, tokens)          begins, or begins again; so many tokens of its prompt were found in the cache
    blocks    (row, decoder, block)  to be appended to its table, those that were found among them
    encode    (row, call)            an encoder, for a part of its media
    read      (row, decoder, start, stop)  a chunk of a prompt
    decode    (row)                  a token is read by the thinker
    frames    (row)                  a frame is read by the talker
    sound     (row, frames)          a piece for the vocoder; this tick's frame is counted, and missing if none was made

    Whoever has read the last token or frame that is known draws the next one.
    """

    gone: list[tuple[int]] = column(1)
    dropped: list[tuple[int]] = column(1)
    admitted: list[tuple[int, int]] = column(2)
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
        return cls(
            *([tuple(next(rest) for _ in range(part.metadata["width"])) for _ in range(next(rest))] for part in fields(cls))
        )
