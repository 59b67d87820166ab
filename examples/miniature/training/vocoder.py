"""Training of code2wav: from codes to the waveform, by spectral losses at several resolutions."""

import argparse
import math
import random
import time
from pathlib import Path

import numpy as np
import torch

from . import codec
from .codec import FRAME, Codec, mel_filters
from .models import build
from .settings import CODE_GROUPS, SPEAKERS, write_settings
from .world import sayable

STEPS = 2400
SEGMENT, BATCH = 12, 8  # frames of a segment; segments per step
LEARNING_RATE = 1e-3
SHIFT = 555  # the reference leaves out this many samples at the start: what its transposed convolutions trim
RESOLUTIONS = (256, 512, 1024, 2048)
SAVE_EVERY = 100


def word_sequence(rng: random.Random, stored: dict, speaker: str) -> tuple[torch.Tensor, np.ndarray]:
    """Codes `[frames, 16]` and sound of a random sayable text, word by word."""
    words = codec.spoken_words(sayable(rng))
    codes = torch.cat([stored["word_codes"][speaker][word] for word in words])
    return codes, np.concatenate([stored["words"][speaker][word] for word in words])


def segments(rng: random.Random, stored: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes `[B, 16, SEGMENT]` and sound `[B, SEGMENT * FRAME]`; a third starts where an utterance starts."""
    codes, sounds = [], []
    while len(codes) < BATCH:
        if rng.random() < 0.7:
            whole, sound = word_sequence(rng, stored, rng.choice(SPEAKERS))
        else:
            whole, sound = rng.choice(stored["phrases"])
        if len(whole) < SEGMENT:
            continue
        first = 0 if rng.random() < 0.33 else rng.randint(0, len(whole) - SEGMENT)
        codes.append(whole[first : first + SEGMENT].T)
        sounds.append(torch.from_numpy(sound[first * FRAME : (first + SEGMENT) * FRAME]))
    return torch.stack(codes), torch.stack(sounds)


class SpectralLoss:
    """Distance of magnitudes, linear and logarithmic, at several resolutions, of the mel spectrum and of the wave."""

    def __init__(self):
        self.windows = {size: torch.hann_window(size) for size in RESOLUTIONS}
        self.filters = mel_filters(codec.MELS, codec.FFT, codec.RATE_HZ)

    def __call__(self, made: torch.Tensor, wanted: torch.Tensor) -> tuple[torch.Tensor, float]:
        """`[B, N]` each -> the loss, and the log-mel distance to report."""
        total, mel = 0.0, 0.0
        for size, window in self.windows.items():
            ours, theirs = (
                torch.stft(wave, size, size // 4, window=window, return_complex=True).abs().clamp(min=1e-4)
                for wave in (made, wanted)
            )
            total = total + (ours.log() - theirs.log()).abs().mean() * 0.5
            total = total + (ours - theirs).abs().mean() / theirs.mean() * 0.5
            if size == codec.FFT:
                ours, theirs = ((part.transpose(1, 2) @ self.filters).clamp(min=1e-3).log() for part in (ours, theirs))
                mel = (ours - theirs).abs().mean()
                total = total + 2 * mel
        return total + 3 * (made - wanted).abs().mean(), mel.item()


def learning_rate(step: int, steps: int) -> float:
    warm = min(1.0, (step + 1) / 50)
    return LEARNING_RATE * warm * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * min(1.0, step / steps))))


def train(folder: Path, steps: int = STEPS, seed: int = 5) -> None:
    """Train, or go on with a training, in `folder`: writes `vocoder.pt`."""
    codec.make(folder)
    stored = codec.load(folder)
    vocoder = build(write_settings(folder / "processor"), seed).code2wav
    books = Codec(**stored["codec"]).books
    with torch.no_grad():
        vocoder.code_embedding.weight.copy_(CODE_GROUPS * books.flatten(0, 1) / books[0].std())
    optimiser = torch.optim.AdamW(vocoder.parameters(), lr=LEARNING_RATE, betas=(0.8, 0.99), weight_decay=0.01, fused=True)
    state_path, first = folder / "vocoder.state.pt", 0
    if state_path.exists():
        state = torch.load(state_path)
        vocoder.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        first = state["step"]
    distance, begin, recent = SpectralLoss(), time.time(), []
    for step in range(first, steps):
        codes, sounds = segments(random.Random(f"{seed}/{step}"), stored)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, steps)
        made = vocoder(codes)[:, 0]
        loss, mel = distance(made, sounds[:, SHIFT : SHIFT + made.shape[1]])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vocoder.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        recent.append(mel)
        if (step + 1) % 25 == 0:
            pace = (time.time() - begin) / (step + 1 - first)
            print(f"step {step + 1}/{steps} log-mel distance {np.mean(recent[-25:]):.3f} {pace:.2f} s/step", flush=True)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            partial = state_path.with_suffix(".partial")
            torch.save({"model": vocoder.state_dict(), "optimiser": optimiser.state_dict(), "step": step + 1}, partial)
            partial.rename(state_path)
    torch.save(vocoder.state_dict(), folder / "vocoder.pt")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=5)
    arguments = parser.parse_args()
    train(arguments.folder, arguments.steps, arguments.seed)
