"""Training of the thinker: what it hears, sees, reads, and how it answers."""

import argparse
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, IterableDataset
from transformers import AutoTokenizer, WhisperFeatureExtractor
from transformers.models.qwen3_omni_moe import modeling_qwen3_omni_moe as modeling

from .batches import IGNORED, Batcher
from .conversations import Maker
from .models import build
from .settings import write_settings
from .voices import load_clips


@dataclass(frozen=True)
class Phase:
    """A part of the training with a learning rate that rises and falls.

    mix: conversations of each step by task. first_variety: of the pictures at its start (1 after half of it).
    learn_words: whether the token embeddings change; the talker relies on those of the first phase.
    others: share of pictures that are not square.
    """

    steps: int
    mix: dict[str, int]
    learning_rate: float
    first_variety: float
    learn_words: bool
    others: float = 0.35


PHASES = (  # first mainly to hear and to read, then mainly to see, what moves while somebody speaks, pictures of usual sides
    Phase(
        1500,
        {
            "digits": 17,
            "spoken_sum": 5,
            "strange_sound": 2,
            "shape": 8,
            "two_shapes": 2,
            "strange_picture": 1,
            "motion": 5,
            "motion_and_digits": 4,
            "sum": 5,
            "repeat": 3,
            "strange_text": 9,
        },
        1e-3,
        0.0,
        True,
    ),
    Phase(
        1800,
        {
            "digits": 6,
            "spoken_sum": 9,
            "strange_sound": 4,
            "shape": 14,
            "two_shapes": 5,
            "strange_picture": 3,
            "motion": 6,
            "motion_and_digits": 6,
            "sum": 2,
            "repeat": 2,
            "strange_text": 5,
        },
        1e-3,
        0.6,
        False,
    ),
    Phase(
        300,
        {
            "digits": 6,
            "spoken_sum": 4,
            "strange_sound": 3,
            "shape": 7,
            "two_shapes": 7,
            "strange_picture": 2,
            "motion": 13,
            "motion_and_digits": 13,
            "sum": 2,
            "repeat": 2,
            "strange_text": 3,
        },
        5e-4,
        1.0,
        False,
    ),
    Phase(
        300,
        {
            "digits": 8,
            "spoken_sum": 3,
            "strange_sound": 2,
            "shape": 20,
            "two_shapes": 9,
            "strange_picture": 3,
            "motion": 7,
            "motion_and_digits": 5,
            "sum": 4,
            "repeat": 2,
            "strange_text": 3,
        },
        5e-4,
        1.0,
        False,
        0.75,
    ),
)
SOURCES = {1: "thinker.sight.pt", 2: "thinker.1.pt", 3: "thinker.2.pt"}  # what a phase starts from
HELD_OUT = {
    "digits": 300,
    "spoken_sum": 100,
    "strange_sound": 100,
    "shape": 200,
    "two_shapes": 60,
    "strange_picture": 60,
    "motion": 120,
    "motion_and_digits": 100,
    "sum": 100,
    "repeat": 60,
    "strange_text": 150,
}
BETAS, WEIGHT_DECAY, WARM_UP = (0.9, 0.98), 0.05, 100
BALANCE = 0.003  # weight of the router's balance loss
SAVE_EVERY = 200


def learning_rate(step: int, phase: Phase) -> float:
    """Warm-up, constant for the first third, then a cosine down to a fiftieth."""
    if step < WARM_UP:
        return phase.learning_rate * (step + 1) / WARM_UP
    done = max(0.0, (step / phase.steps - 1 / 3) * 1.5)
    return phase.learning_rate * (0.02 + 0.98 * (0.5 + 0.5 * math.cos(math.pi * min(1.0, done))))


class Steps(IterableDataset):
    """The batches of a phase from step `first` on; every batch follows from the seed, the phase and its step alone."""

    def __init__(self, clips, batcher, number: int, first: int, seed: int):
        self.maker = Maker(clips, random.Random(0))
        self.batcher, self.number, self.first, self.seed = batcher, number, first, seed

    def __iter__(self):
        torch.set_num_threads(1)
        phase = PHASES[self.number]
        for step in range(self.first, phase.steps):
            done = step / phase.steps
            self.maker.rng = random.Random(f"{self.seed}/{self.number}/{step}")
            self.maker.others = phase.others
            self.maker.longest = 2 if done < 0.1 and not self.number else 4
            growth = min(1.0, max(0.0, (done - 0.1) / 0.4))
            self.maker.variety = phase.first_variety + (1 - phase.first_variety) * growth
            rows = [self.maker.conversation(task) for task, count in phase.mix.items() for _ in range(count)]
            yield step, self.batcher.batch(rows, np.random.default_rng([self.seed, self.number, step]))


def logits_and_labels(thinker, batch):
    """Logits `[N, V]` and labels `[N]` of the answers' tokens, and the routers' balance loss."""
    output = thinker.model(
        input_ids=batch.input_ids,
        attention_mask=batch.mask(),
        position_ids=batch.place,
        use_cache=False,
        output_router_logits=True,
        **batch.media,
    )
    chosen = batch.labels != IGNORED
    balance = modeling.load_balancing_loss_func(
        output.router_logits, thinker.num_experts, thinker.num_experts_per_tok, (batch.owner >= 0).long()
    )
    return thinker.lm_head(output.last_hidden_state[chosen]).float(), batch.labels[chosen], balance


@torch.no_grad()
def exact(thinker, batcher, conversations, size: int = 50) -> dict[str, list[bool]]:
    """By task, whether each whole last answer is the most likely one, token by token (greedy decoding gives it)."""
    found: dict[str, list[bool]] = {}
    thinker.eval()
    for start in range(0, len(conversations), size):
        batch = batcher.batch(conversations[start : start + size])
        logits, labels, _ = logits_and_labels(thinker, batch)
        owners = batch.owner[batch.labels != IGNORED]
        wrong = torch.zeros(len(batch.tasks), dtype=torch.bool)
        wrong[owners[logits.argmax(-1) != labels]] = True
        for task, failed in zip(batch.tasks, wrong.tolist()):
            found.setdefault(task, []).append(not failed)
    thinker.train()
    return found


def held_out(clips, counts=HELD_OUT, seed: int = 4711):
    maker = Maker(clips, random.Random(seed), plain=True)
    return [maker.conversation(task) for task, count in counts.items() for _ in range(count)]


def optimiser_for(thinker, phase: Phase):
    """AdamW; weight decay on matrices only."""
    thinker.get_input_embeddings().requires_grad_(phase.learn_words)
    weights = [weight for weight in thinker.parameters() if weight.requires_grad]
    groups = (
        {"params": [weight for weight in weights if weight.ndim >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [weight for weight in weights if weight.ndim < 2], "weight_decay": 0.0},
    )
    return torch.optim.AdamW(groups, lr=phase.learning_rate, betas=BETAS, fused=True)


def train(folder: Path, number: int, seed: int = 1) -> None:
    """Train one phase, or go on with it, in `folder` (clips are in `folder/clips`).

    Phase 0 starts from fresh weights, the others from `SOURCES`; writes `thinker.<number>.pt`.
    """
    phase = PHASES[number]
    thinker = build(write_settings(folder / "processor"), seed).thinker
    batcher = batcher_for(thinker, folder)
    test = held_out(load_clips(folder / "clips/unheard.npz"))
    if number in SOURCES:
        thinker.load_state_dict(torch.load(folder / SOURCES[number]))
    optimiser, state_path, first = optimiser_for(thinker, phase), folder / f"thinker.{number}.state.pt", 0
    if state_path.exists():
        state = torch.load(state_path)
        thinker.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        first = state["step"]
    data = Steps(load_clips(folder / "clips/heard.npz"), batcher, number, first, seed)
    begin, recent = time.time(), []
    for step, batch in DataLoader(data, batch_size=None, num_workers=1, prefetch_factor=3):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, phase)
        with torch.autocast("cpu", torch.bfloat16):
            logits, labels, balance = logits_and_labels(thinker, batch)
            loss = F.cross_entropy(logits, labels)
        (loss + BALANCE * balance).backward()
        torch.nn.utils.clip_grad_norm_(thinker.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        recent.append(loss.item())
        if (step + 1) % 25 == 0:
            pace = (time.time() - begin) / (step + 1 - first)
            print(f"step {step + 1}/{phase.steps} loss {np.mean(recent[-25:]):.3f} {pace:.2f} s/step", flush=True)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == phase.steps:
            marks = exact(thinker, batcher, test)
            print("  ".join(f"{task} {100 * np.mean(right):.1f}" for task, right in marks.items()), flush=True)
            partial = state_path.with_suffix(".partial")
            torch.save({"model": thinker.state_dict(), "optimiser": optimiser.state_dict(), "step": step + 1}, partial)
            partial.rename(state_path)
    torch.save(thinker.state_dict(), folder / f"thinker.{number}.pt")


def batcher_for(thinker, folder: Path) -> Batcher:
    """The batcher with the tokenizer in `folder/processor` and the usual mel filters."""
    filters = WhisperFeatureExtractor(feature_size=128).mel_filters
    return Batcher(AutoTokenizer.from_pretrained(folder / "processor"), filters, thinker.model.get_rope_index)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--phase", type=int, choices=range(len(PHASES)), required=True)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    train(arguments.folder, arguments.phase, arguments.seed)
