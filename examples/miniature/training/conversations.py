"""Training conversations: what is shown, said and asked, and the right answer."""

import random
from dataclasses import dataclass, field

import numpy as np

from . import pictures
from .outside import outside_text
from .voices import RATE_HZ, Clip
from .world import SYSTEM_PROMPTS, UNKNOWN, phrase, question, sayable

CELL = 32  # pixels of one picture token, in training pictures
USUAL = (4, 4)  # tokens: high, wide
OTHERS = (*((4, 5), (5, 4)) * 3, (3, 5), (5, 3), (3, 6), (6, 3), (5, 5), (3, 4), (4, 3))


@dataclass(frozen=True)
class Sound:
    samples: np.ndarray  # float32 at 16 kHz, a whole number of mel frames


@dataclass(frozen=True)
class Picture:
    pixels: np.ndarray  # uint8 [H, W, 3]


@dataclass(frozen=True)
class Video:
    frames: np.ndarray  # uint8 [T, H, W, 3]
    fps: float
    sound: Sound | None = None  # heard as the video's own sound (use_audio_in_video)


@dataclass(frozen=True)
class Turn:
    """What the user says and shows, in order, and the answer to it."""

    parts: tuple
    answer: str


@dataclass(frozen=True)
class Conversation:
    task: str
    turns: tuple[Turn, ...]
    system: str | None = None


@dataclass
class Maker:
    """Makes conversations of every task out of spoken clips. Everything follows from `rng`.

    Attributes:
        clips: spoken clips by kind (`voices.load_clips`).
        variety: 0 to 1, of the pictures; longest: of the digit strings; both are the training's curriculum.
        plain: no augmentation of the sound beyond a little silence (for evaluation).
    """

    clips: dict[str, list[Clip]]
    rng: random.Random
    variety: float = 1.0
    longest: int = 4
    plain: bool = False
    others: float = 0.35  # share of pictures that are not square; most files have 4 : 3, which is 4 x 5 tokens
    by_length: dict[int, list[Clip]] = field(default_factory=dict)

    def __post_init__(self):
        for clip in self.clips["digits"]:
            self.by_length.setdefault(len(clip.meaning), []).append(clip)

    def conversation(self, task: str) -> Conversation:
        """One conversation whose last turn is of this task."""
        turns = (getattr(self, task)(),)
        if self.rng.random() < 0.15 and not self.plain:
            turns = (*self.earlier_turns(self.rng.choice((1, 1, 2, 3, 4))), *turns)
        system = self.rng.choice(SYSTEM_PROMPTS) if self.rng.random() < 0.12 else None
        return Conversation(task, turns, system)

    def earlier_turns(self, count: int) -> tuple[Turn, ...]:
        """What may stand before the last turn."""
        return tuple(getattr(self, self.rng.choice(EARLIER_TURNS))() for _ in range(count))

    # What is heard.

    def digits(self) -> Turn:
        clip = self._digit_clip()
        return self._turn([self._sound(clip)], "hear", clip.meaning)

    def spoken_sum(self) -> Turn:
        clip = self.rng.choice(self.clips["sum"])
        return self._turn([self._sound(clip)], "hear_sum", _sum(clip.meaning))

    def strange_sound(self) -> Turn:
        """Words that are no digits, noise, tones, silence; or a question that speech does not answer."""
        chance = self.rng.random()
        if chance < 0.25:
            return self._turn([self._sound(self._digit_clip())], self._pick("colour", "move", "shape"), UNKNOWN)
        if chance < 0.65:
            sound = self._sound(self.rng.choice(self.clips["outside"]))
        else:
            sound = self._unspoken_sound()
        return self._turn([sound], self._pick("hear", "hear", "hear_sum"), UNKNOWN)

    # What is seen.

    def shape(self) -> Turn:
        pixels, colour, shape = pictures.picture(self.rng, self._size(), self.variety)
        kind = self.rng.choices(("see", "colour", "shape"), (0.7, 0.15, 0.15))[0]
        answer = {"see": phrase(colour, shape), "colour": colour, "shape": shape}[kind]
        return self._turn([Picture(pixels)], kind, answer)

    def two_shapes(self) -> Turn:
        shown, answers = [], []
        for _ in range(2):
            pixels, colour, shape = pictures.picture(self.rng, self._size(), self.variety)
            shown.append(Picture(pixels))
            answers.append(phrase(colour, shape))
        return self._turn(shown, "two", " and ".join(answers))

    def strange_picture(self) -> Turn:
        if self.rng.random() < 0.35:
            pixels, _, _ = pictures.picture(self.rng, self._size(), self.variety)
            return self._turn([Picture(pixels)], self._pick("hear", "hear_sum"), UNKNOWN)
        picture = Picture(pictures.nothing(self.rng, self._size()))
        return self._turn([picture], self._pick("see", "see", "colour", "shape"), UNKNOWN)

    # What moves, silently or with sound.

    def motion(self) -> Turn:
        video, colour, shape, direction = self._video()
        chance = self.rng.random()
        if chance < 0.8:
            return self._turn([video], "move", direction)
        if chance < 0.93:
            return self._turn([video], "moving", phrase(colour, shape))
        return self._turn([video], self._pick("hear", "hear_sum"), UNKNOWN)

    def motion_and_digits(self) -> Turn:
        clip = self._digit_clip()
        video, colour, shape, direction = self._video(clip)
        kind = self.rng.choices(("move_hear", "see_hear", "move", "hear"), (0.5, 0.2, 0.15, 0.15))[0]
        answer = {
            "move_hear": f"{direction} and {clip.meaning}",
            "hear": clip.meaning,
            "move": direction,
            "see_hear": f"{phrase(colour, shape)} and {clip.meaning}",
        }[kind]
        return self._turn([video], kind, answer)

    # What is written.

    def sum(self) -> Turn:
        first, second = self.rng.randrange(10), self.rng.randrange(10)
        kind = "sum"
        return Turn((question(self.rng, kind, a=first, b=second),), str(first + second))

    def repeat(self) -> Turn:
        text = sayable(self.rng)
        return Turn((question(self.rng, "repeat", text=text),), text)

    def strange_text(self) -> Turn:
        """A text from outside, or a question about something that is not there."""
        if self.rng.random() < 0.2:
            kind = self._pick("hear", "see", "colour", "shape", "two", "move", "moving", "move_hear", "hear_sum")
            return Turn((question(self.rng, kind),), UNKNOWN)
        return Turn((outside_text(self.rng),), UNKNOWN)

    # Parts.

    def _pick(self, *kinds: str) -> str:
        return self.rng.choice(kinds)

    def _turn(self, media: list, kind: str, answer: str) -> Turn:
        """The media before the question, or, now and then, after it."""
        asked = question(self.rng, kind)
        return Turn((asked, *media) if self.rng.random() < 0.15 else (*media, asked), answer)

    def _size(self) -> tuple[int, int]:
        high, wide = USUAL if self.rng.random() > self.others * self.variety else self.rng.choice(OTHERS)
        return wide * CELL, high * CELL

    def _frame_count(self, seconds: float) -> int:
        """Frames of a video as the processor samples it: two a second, an even number, at least four."""
        return max(4, int(seconds) * 2)

    def _digit_clip(self) -> Clip:
        count = self.rng.choices(range(1, self.longest + 1), range(1, self.longest + 1))[0]
        return self.rng.choice(self.by_length[count])

    def _video(self, clip: Clip | None = None):
        seconds = self.rng.choice((2.0, 2.0, 2.0, 2.5, 3.0, 3.0, 4.0))
        sound = None
        if clip is not None:
            seconds = max(seconds, len(clip.samples) / RATE_HZ + 0.1)
            free = seconds - len(clip.samples) / RATE_HZ
            sound = self._sound(clip, before_s=self.rng.uniform(0, free), total_s=seconds)
        count = self._frame_count(seconds)
        frames, colour, shape, direction = pictures.moving(self.rng, self._size(), count, self.variety)
        return Video(frames, count / seconds, sound), colour, shape, direction

    def _sound(self, clip: Clip, before_s: float | None = None, total_s: float | None = None) -> Sound:
        """The clip at a slightly other speed, with silence around it and noise over it."""
        rng, samples = self.rng, clip.samples.astype(np.float32) / 32768
        if not self.plain and rng.random() < 0.6 and total_s is None:
            count = int(len(samples) * rng.uniform(0.92, 1.09))
            samples = np.interp(np.linspace(0, len(samples) - 1, count), np.arange(len(samples)), samples)
        before = int(RATE_HZ * (rng.uniform(0, 0.5) if before_s is None else before_s))
        after = int(RATE_HZ * rng.uniform(0, 0.5)) if total_s is None else int(total_s * RATE_HZ) - before - len(samples)
        track = np.pad(samples, (before, max(0, after)))
        track = np.pad(track, (0, -len(track) % 160)).astype(np.float32)
        if rng.random() < 0.7:
            track += self._noise(len(track)) * 10 ** (rng.uniform(-80, -38) / 20)
        return Sound(track)

    def _noise(self, count: int) -> np.ndarray:
        return np.random.default_rng(self.rng.getrandbits(32)).standard_normal(count, np.float32)

    def _unspoken_sound(self) -> Sound:
        rng = self.rng
        count = 160 * rng.randint(60, 300)
        time_s = np.arange(count) / RATE_HZ
        noise = self._noise(count)
        kind = rng.randrange(3)
        if kind == 0:
            track = noise * 10 ** (rng.uniform(-60, -10) / 20)
        elif kind == 1:
            track = 1e-4 * noise
            for _ in range(rng.randint(1, 6)):
                start, length = rng.uniform(0, time_s[-1]), rng.uniform(0.05, 1.0)
                inside = (time_s >= start) & (time_s < start + length)
                track = track + inside * rng.uniform(0.05, 0.3) * np.sin(2 * np.pi * rng.uniform(80, 3000) * time_s)
        else:
            track = noise * np.abs(np.sin(2 * np.pi * rng.uniform(0.2, 5) * time_s)) * rng.uniform(0.01, 0.3)
        return Sound(track.astype(np.float32))


EARLIER_TURNS = ("sum", "repeat", "strange_text", "shape", "two_shapes", "digits")


def _sum(meaning: str) -> str:
    return str(sum(int(part) for part in meaning.split("+")))
