"""The speech codes: what 80 ms of the two voices sound like, as 16 numbers, without a neural encoder.

Log-mel patches are reduced by principal components and quantised by residual k-means. Every word that the miniature can
say is recorded once per voice and padded to whole frames, so that a sentence's codes are its words' codes in a row.
"""

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from .settings import CODE_GROUPS, CODES, SPEAKERS
from .voices import Voice, speak, trim
from .world import COLOURS, DIGITS, DIRECTIONS, SHAPES, UNKNOWN, sayable

RATE_HZ = 24_000
FRAME = 1920  # samples of a code frame: 80 ms
HOP, FFT, MELS = 240, 1024, 80
COMPONENTS = 96
VOICES = {"ethan": Voice("en-us+m7", 150, 45), "chelsie": Voice("en-gb+f2", 150, 55)}
WORDS = (*DIGITS, *COLOURS, *SHAPES, *DIRECTIONS, "a", "an", "and", *UNKNOWN.split())
PHRASES = 700  # spoken in one breath, so that the vocoder hears more than single words
LOUDNESS = 0.08  # root mean square of a word


def mel_filters(bins: int, fft: int, rate_hz: int) -> torch.Tensor:
    """Triangular filters on the mel scale: `[fft // 2 + 1, bins]`."""
    top = 2595 * np.log10(1 + rate_hz / 2 / 700)
    edges = 700 * (10 ** (np.linspace(0, top, bins + 2) / 2595) - 1)
    frequency = np.linspace(0, rate_hz / 2, fft // 2 + 1)[:, None]
    rising = (frequency - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - frequency) / (edges[2:] - edges[1:-1])
    return torch.tensor(np.maximum(0, np.minimum(rising, falling)), dtype=torch.float32)


def log_mel(samples: torch.Tensor) -> torch.Tensor:
    """`[..., N]` samples at 24 kHz -> `[..., N // HOP, MELS]`."""
    spectrum = torch.stft(samples, FFT, HOP, window=torch.hann_window(FFT), return_complex=True, pad_mode="constant")
    power = spectrum.abs()[..., :-1].transpose(-1, -2) @ mel_filters(MELS, FFT, RATE_HZ)
    return power.clamp(min=1e-3).log()


def whole_frames(samples: np.ndarray) -> np.ndarray:
    return np.pad(samples, (0, -len(samples) % FRAME)).astype(np.float32)


@dataclass
class Codec:
    """Principal components and codebooks; encodes, and gives the vocoder its first embeddings."""

    mean: torch.Tensor  # [P]
    basis: torch.Tensor  # [P, COMPONENTS]
    books: torch.Tensor  # [CODE_GROUPS, CODES, COMPONENTS]

    def encode(self, samples: np.ndarray) -> torch.Tensor:
        """A whole number of frames of sound -> codes int64 `[frames, CODE_GROUPS]`."""
        rest = (_patches(samples) - self.mean) @ self.basis
        codes = []
        for book in self.books:
            codes.append(torch.cdist(rest, book).argmin(1))
            rest = rest - book[codes[-1]]
        return torch.stack(codes, 1)


def _patches(samples: np.ndarray) -> torch.Tensor:
    mel = log_mel(torch.from_numpy(samples))
    return mel.reshape(len(samples) // FRAME, -1)


def fit(recordings: list[np.ndarray], seed: int) -> Codec:
    """Components and codebooks of these recordings."""
    values = torch.cat([_patches(samples) for samples in recordings])
    mean = values.mean(0)
    _, _, directions = torch.linalg.svd(values - mean, full_matrices=False)
    basis = directions[:COMPONENTS].T.contiguous()
    rest, books = (values - mean) @ basis, []
    generator = torch.Generator().manual_seed(seed)
    for _ in range(CODE_GROUPS):
        book = _k_means(rest, generator)
        rest = rest - book[torch.cdist(rest, book).argmin(1)]
        books.append(book)
    return Codec(mean, basis, torch.stack(books))


def _k_means(values: torch.Tensor, generator: torch.Generator, rounds: int = 12) -> torch.Tensor:
    """CODES centres; one that loses all its points restarts at a random point."""
    centres = values[torch.randperm(len(values), generator=generator)[:CODES]].clone()
    for _ in range(rounds):
        nearest = torch.cdist(values, centres).argmin(1)
        counts = torch.bincount(nearest, minlength=CODES)
        sums = torch.zeros_like(centres).index_add_(0, nearest, values)
        centres = sums / counts.clamp(min=1)[:, None]
        empty = counts == 0
        centres[empty] = values[torch.randint(len(values), (int(empty.sum()),), generator=generator)]
    return centres


def record(text: str, speaker: str) -> np.ndarray:
    """The text in this speaker's voice, whole frames at 24 kHz, all at one loudness."""
    samples = trim(speak(text, VOICES[speaker], RATE_HZ), margin=240)
    return whole_frames(samples * (LOUDNESS / np.sqrt((samples**2).mean())))


def spoken_words(text: str) -> list[str]:
    """The words that a text is read as: digits one by one, case and marks left out."""
    words, current = [], ""
    for letter in f"{text} ":
        if letter.isalpha():
            current += letter
            continue
        if current:
            words.append(current if current in WORDS else current.lower())
            current = ""
        if letter.isdigit():
            words.append(DIGITS[int(letter)])
    return words


def make(folder: Path, seed: int = 3) -> None:
    """Record, fit and encode: writes `codec.pt` with the codec, each word's codes, and recordings with their codes."""
    if (folder / "codec.pt").exists():
        return
    rng = random.Random(seed)
    words = {speaker: {word: record(word, speaker) for word in WORDS} for speaker in SPEAKERS}
    phrases = []
    for index in range(PHRASES):
        speaker = SPEAKERS[index % len(SPEAKERS)]
        phrases.append(record(" ".join(spoken_words(sayable(rng))), speaker))
    single = [samples for by_word in words.values() for samples in by_word.values()]
    codec = fit([*single * 3, *phrases], seed)
    word_codes = {
        speaker: {word: codec.encode(samples) for word, samples in by_word.items()} for speaker, by_word in words.items()
    }
    torch.save(
        {
            "codec": vars(codec),
            "word_codes": word_codes,
            "phrases": [(codec.encode(item), item) for item in phrases],
            "words": words,
        },
        folder / "codec.pt",
    )


def load(folder: Path) -> dict:
    return torch.load(folder / "codec.pt", weights_only=False)
