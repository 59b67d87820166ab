"""A short training of the vision encoder alone: colour and shape straight from its tokens.

Answers in words teach an encoder slowly. Classes read off its picture tokens, weighted by a learnt attention, teach it what
a shape looks like at a tenth of the cost; the readout is thrown away afterwards.
"""

import argparse
import math
import random
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from . import pictures
from .batches import VISION, patchify
from .conversations import CELL, OTHERS, USUAL
from .models import build
from .settings import write_settings
from .world import COLOURS, SHAPES

STEPS, BATCH, LEARNING_RATE = 1500, 48, 1.5e-3
SAVE_EVERY = 100


class Readout(nn.Module):
    """Colour and shape from the tokens of a picture, from the last layer's and from the early (deepstack) ones."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.score, self.classes = nn.Linear(width, 1), nn.Linear(width, len(COLOURS) + len(SHAPES))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        tokens = self.norm(tokens.float())
        return self.classes((self.score(tokens).softmax(0) * tokens).sum(0))


class Pictures(IterableDataset):
    """Patches, grids and classes of the pictures of each step."""

    def __init__(self, first: int, steps: int, seed: int):
        self.first, self.steps, self.seed = first, steps, seed

    def __iter__(self):
        torch.set_num_threads(1)
        for step in range(self.first, self.steps):
            yield step, *sample(random.Random(f"{self.seed}/{step}"), BATCH, min(1.0, 0.3 + step / self.steps * 2))


def sample(rng: random.Random, count: int, variety: float):
    patches, grids, colours, shapes = [], [], [], []
    for _ in range(count):
        high, wide = USUAL if rng.random() < 0.75 else rng.choice(OTHERS)
        pixels, colour, shape = pictures.picture(rng, (wide * CELL, high * CELL), variety)
        values, grid = patchify(pixels.transpose(2, 0, 1)[None], VISION)
        patches.append(values)
        grids.append(grid)
        colours.append(tuple(COLOURS).index(colour))
        shapes.append(SHAPES.index(shape))
    return torch.from_numpy(np.concatenate(patches)), torch.tensor(grids), torch.tensor(colours), torch.tensor(shapes)


def loss_and_marks(visual, readouts, values, grids, colours, shapes):
    """Mean loss of all readouts, and the share of pictures whose colour and shape are right by the first one."""
    found = visual(values, grid_thw=grids)
    sizes = (grids.prod(-1) // 4).tolist()
    total, right = 0.0, None
    for readout, features in zip(readouts, (found.pooler_output, *found.deepstack_features)):
        logits = torch.stack([readout(tokens) for tokens in features.split(sizes)])
        colour, shape = logits.split((len(COLOURS), len(SHAPES)), -1)
        total = total + F.cross_entropy(colour, colours) + F.cross_entropy(shape, shapes)
        if right is None:
            right = ((colour.argmax(-1) == colours) & (shape.argmax(-1) == shapes)).float().mean().item()
    return total, right


def train(folder: Path, source: str = "thinker.0.pt", target: str = "thinker.sight.pt", steps: int = STEPS, seed: int = 21):
    """Train the vision encoder of `folder/source`, or go on with it, and write the whole thinker to `folder/target`."""
    thinker = build(write_settings(folder / "processor"), seed).thinker
    thinker.load_state_dict(torch.load(folder / source))
    visual = thinker.visual if hasattr(thinker, "visual") else thinker.model.visual
    width = thinker.config.text_config.hidden_size
    readouts = nn.ModuleList(Readout(width) for _ in range(1 + len(visual.deepstack_visual_indexes)))
    both = nn.ModuleDict({"visual": visual, "readouts": readouts})
    optimiser = torch.optim.AdamW(both.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.02, fused=True)
    state_path, first = folder / "sight.state.pt", 0
    if state_path.exists():
        state = torch.load(state_path)
        both.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        first = state["step"]
    test = sample(random.Random(0), 300, 1.0)
    begin, recent = time.time(), []
    for step, *batch in DataLoader(Pictures(first, steps, seed), batch_size=None, num_workers=1, prefetch_factor=3):
        rate = LEARNING_RATE * min(1.0, (step + 1) / 100) * (0.03 + 0.97 * (0.5 + 0.5 * math.cos(math.pi * step / steps)))
        for group in optimiser.param_groups:
            group["lr"] = rate
        with torch.autocast("cpu", torch.bfloat16):
            loss, right = loss_and_marks(visual, readouts, *batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(both.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        recent.append((loss.item(), right))
        if (step + 1) % 25 == 0:
            pace = (time.time() - begin) / (step + 1 - first)
            mean = np.mean(recent[-25:], 0)
            print(f"step {step + 1}/{steps} loss {mean[0]:.3f} right {mean[1]:.1%} {pace:.2f} s/step", flush=True)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            with torch.no_grad():
                print(f"held out: {loss_and_marks(visual, readouts, *test)[1]:.1%}", flush=True)
            partial = state_path.with_suffix(".partial")
            torch.save({"model": both.state_dict(), "optimiser": optimiser.state_dict(), "step": step + 1}, partial)
            partial.rename(state_path)
    torch.save(thinker.state_dict(), folder / target)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    train(arguments.folder, steps=arguments.steps)
