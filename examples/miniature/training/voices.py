"""Speech synthesised by espeak-ng: many voices for the training, others kept for the evaluation."""

import io
import random
import shutil
import subprocess
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile
import soxr

from .outside import outside_speech
from .world import DIGITS, digit_string

RATE_HZ = 16_000
ACCENTS = ("en-gb", "en-us", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-rp", "en-gb-x-gbcwmd", "en-029")
VARIANTS = (
    "m1",
    "m2",
    "m3",
    "m5",
    "m6",
    "m7",
    "m8",
    "f1",
    "f2",
    "f3",
    "f4",
    "klatt",
    "klatt3",
    "klatt4",
    "adam",
    "Alex",
    "Alicia",
    "Andy",
    "Annie",
    "aunty",
    "belinda",
    "benjamin",
    "boris",
    "caleb",
    "david",
    "Denis",
    "Diogo",
    "ed",
    "Gene",
    "Hugo",
    "iven",
    "Jacky",
    "john",
    "Lee",
    "Linda",
    "marcelo",
    "Marco",
    "max",
    "Michael",
    "miguel",
    "Mike",
    "norbert",
    "pablo",
    "pedro",
    "quincy",
    "rob",
    "robert",
    "sandro",
    "shelby",
    "Steph",
    "travis",
    "victor",
    "Zac",
)
UNHEARD_ACCENTS = (*ACCENTS, "en-us-nyc")
UNHEARD_VARIANTS = ("m4", "f5", "klatt2", "Andrea", "edward", "paul", "Steph2", "grandpa")


@dataclass(frozen=True)
class Voice:
    """One way of speaking: name as espeak-ng takes it, words per minute, pitch 0-99, pause between words in 10 ms."""

    name: str
    speed: int
    pitch: int
    gap: int = 0


def random_voice(rng: random.Random, heard: bool = True) -> Voice:
    """A voice of the training, or (not `heard`) one that is kept for the evaluation."""
    accents, variants = (ACCENTS, VARIANTS) if heard else (UNHEARD_ACCENTS, UNHEARD_VARIANTS)
    gap = rng.choice((0, 0, 0, 1, 3, 6))
    return Voice(f"{rng.choice(accents)}+{rng.choice(variants)}", rng.randint(115, 205), rng.randint(22, 78), gap)


@lru_cache(maxsize=1)
def _program() -> str:
    path = shutil.which("espeak-ng")
    if path is None:
        raise RuntimeError("espeak-ng was not found; install it (apt-get install espeak-ng): it speaks the training data.")
    return path


def speak(text: str, voice: Voice, rate_hz: int = RATE_HZ) -> np.ndarray:
    """The text in this voice: float32 mono at `rate_hz`."""
    command = [
        _program(),
        "-v",
        voice.name,
        "-s",
        str(voice.speed),
        "-p",
        str(voice.pitch),
        "-g",
        str(voice.gap),
        "--stdout",
        text,
    ]
    wav = subprocess.run(command, check=True, capture_output=True).stdout
    samples, native_hz = soundfile.read(io.BytesIO(wav), dtype="float32")
    return soxr.resample(samples, native_hz, rate_hz, quality="HQ").astype(np.float32)


def trim(samples: np.ndarray, floor: float = 0.003, margin: int = 160) -> np.ndarray:
    """The clip without the silence around it."""
    loud = np.flatnonzero(np.abs(samples) > floor * max(1e-6, np.abs(samples).max()))
    return samples if not len(loud) else samples[max(0, loud[0] - margin) : loud[-1] + margin]


def spoken_form(digits: str, rng: random.Random) -> str:
    """How a digit string is handed to espeak-ng: one word for each digit, sometimes with pauses."""
    joint = rng.choice((" ", " ", " ", ", "))
    return joint.join(DIGITS[int(digit)] for digit in digits)


@dataclass(frozen=True)
class Clip:
    """A spoken clip: int16 samples at 16 kHz, its kind ("digits", "sum" or "outside") and what is said."""

    samples: np.ndarray
    kind: str
    meaning: str


def _utterance(seed: int, kind: str, heard: bool) -> tuple[np.ndarray, str]:
    rng = random.Random(f"{seed}/{kind}/{heard}")
    voice = random_voice(rng, heard)
    if kind == "digits":
        meaning = digit_string(rng)
        text = spoken_form(meaning, rng)
    elif kind == "sum":
        first, second = rng.randrange(10), rng.randrange(10)
        meaning = f"{first}+{second}"
        text = f"{DIGITS[first]} plus {DIGITS[second]}"
    else:
        meaning = text = outside_speech(rng)
    samples = trim(speak(text, voice))
    peak = np.abs(samples).max()
    return (samples / max(peak, 1e-6) * 0.7 * 32767).astype(np.int16), meaning


def _utterances(jobs: list[tuple[int, str, bool]]) -> list[tuple[np.ndarray, str]]:
    return [_utterance(*job) for job in jobs]


def make_clips(path: Path, counts: dict[str, int], heard: bool, seed: int, workers: int = 2) -> None:
    """Synthesise clips and keep them in one compressed file; nothing is done if the file is there."""
    if path.exists():
        return
    jobs = [(seed * 1_000_003 + index, kind, heard) for kind, count in counts.items() for index in range(count)]
    pieces = [jobs[start : start + 50] for start in range(0, len(jobs), 50)]
    with ProcessPoolExecutor(workers) as pool:
        made = [item for piece in pool.map(_utterances, pieces) for item in piece]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial.npz")
    np.savez(
        partial,
        samples=np.concatenate([samples for samples, _ in made]),
        lengths=np.array([len(samples) for samples, _ in made]),
        kinds=np.array([job[1] for job in jobs]),
        meanings=np.array([meaning for _, meaning in made]),
    )
    partial.rename(path)


def load_clips(path: Path) -> dict[str, list[Clip]]:
    """Clips by kind."""
    with np.load(path) as stored:
        samples, ends = stored["samples"], np.cumsum(stored["lengths"])
        kinds, meanings = stored["kinds"].tolist(), stored["meanings"].tolist()
    clips: dict[str, list[Clip]] = {}
    for end, length, kind, meaning in zip(ends, np.diff(ends, prepend=0), kinds, meanings):
        clips.setdefault(kind, []).append(Clip(samples[end - length : end], kind, meaning))
    return clips
