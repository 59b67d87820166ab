"""A day of an engine: `python -m tests.engine.soak --requests 1000`. Some callers leave, some fail, and it stays as it was.

Every `BURST` requests it comes to rest; then nobody and nothing may be left of them, and the memory of the process is read.
"""

import argparse
import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ms_omni.engine.engine import Engine
from ms_omni.errors import InputError, MediaError
from tests.engine.callers import Callers, World, check_empty

BURST, KINDS = 25, 60
FAILING = 20
"""One of so many requests."""
LEAVING = 0.15
"""Of the others would leave; about a third of them is answered before."""
WARM = 100
"""Requests until the process has the memory that it needs."""
GROWTH_KIB = 5.0
"""Per request behind those, of a line through what was measured: the allocators of C and of MindSpore keep what the largest burst so
far took, and a later one may take a few MiB more. The smallest thing of a request that could stay, a prompt's chunk with what a talker
hears of it or a piece of speech, has 50 KiB.
"""
PICTURE = 2
"""A request that shows one."""


def raises(*_: Any) -> Any:
    """A caller's own function that is out of order."""
    raise RuntimeError("out of order")


def raises_later(ids: Any, scores: Any) -> Any:
    """The same, for about every third token."""
    return scores if ids[0, -1] % 3 else raises()


ENDLESS = {"max_new_tokens": 100, "eos_token_id": [], "thinker_do_sample": True, "temperature": 3.0}
SPOKEN = {"max_new_tokens": 20, "eos_token_id": [], "talker_max_new_tokens": 20, "talker_eos_token_id": []}
FAULTS: list[tuple[str, int | None, dict[str, Any]]] = [
    ("did you mean", None, {"max_new_token": 4}),
    ("NaN or infinite", PICTURE, {"pixel_values": np.full((80, 13824), 1e38, np.float32)}),
    ("make the prompt shorter", None, {"max_new_tokens": 10**6}),
    ("expected scores of shape", None, {"logits_processor": [lambda ids, scores: scores[:, :2]]}),
    ("max_new_tokens is -1", None, {"max_new_tokens": -1}),
    ("out of order", None, {"logits_processor": [raises]}),
    ("unknown speaker", None, {"speaker": "nobody", "return_audio": True}),
    ("out of order", None, {"logits_processor": [raises_later], **ENDLESS}),
    ("came without pixel_values", PICTURE, {"pixel_values": None}),
    ("out of order", None, {"stopping_criteria": [raises]}),
    ("NaN or infinite", PICTURE, {"pixel_values": np.full((80, 13824), np.nan, np.float32)}),
    ("expected one truth value", None, {"stopping_criteria": [lambda ids, scores: np.zeros(3, bool)]}),
]
"""What the error says, the number of the request or None for any, and what is wrong with it: what is refused, what fails, and so on."""


class Soak(Callers):
    """Requests come at random; memory: `(requests so far, KiB)` at every rest."""

    def __init__(self, world: World, seed: int = 0) -> None:
        for kind in range(KINDS):
            world.alone(kind)
        engine = Engine(world.model, tokens=1280)
        engine.scheduler.margin, engine.thinker.features.budget = 0, 2**20
        super().__init__(world, engine)
        self.draw = np.random.default_rng([1000, seed])
        self.leaving: dict[int, int] = {}  # ticks until they do
        self.asked, self.memory = 0, [(0, resident_kib())]

    def run(self, requests: int, show: Callable = lambda *_: None) -> "Soak":
        """So many of them, answered."""
        while self.asked < requests:
            self.burst(min(self.asked + BURST, requests))
            self.memory.append((self.asked, resident_kib()))
            show(self)
        return self

    def burst(self, until: int) -> None:
        """Until so many have asked and are answered."""
        while self.asked < until or self.calls:
            if self.asked < until and self.draw.random() < 0.2:
                self.asked += 1
                self.ask_one()
            self.step()
            for id in [id for id in self.leaving if id in self.calls]:
                self.leaving[id] -= 1
                if self.leaving[id] < 0:
                    self.cancel(id)
        self.leaving.clear()
        check_empty(self.engine)

    def ask_one(self) -> None:
        """Somebody comes, and goes or fails later, or not."""
        kind = int(self.draw.integers(KINDS))
        if self.asked % FAILING == 0:
            self.fail_one(kind, self.asked // FAILING % (len(FAULTS) + 2))
            return
        own = {"logits_processor": [lambda ids, scores: scores]} if self.draw.random() < 0.1 else {}
        id = self.call(kind, **own)
        if self.draw.random() < LEAVING:
            self.leaving[id] = int(self.draw.exponential(15))

    def fail_one(self, kind: int, sort: int) -> None:
        """Somebody whose request is refused, or fails in the middle."""
        if sort == len(FAULTS):
            id = self.call(kind, "'NoneType' object", return_audio=True, **SPOKEN)
            self.engine.speech.sequences[id].stream = None  # the vocoder breaks down
            return
        try:
            if sort > len(FAULTS):
                self.world.ask("What is this?", {"image": "samples.json"})
            else:
                text, number, options = FAULTS[sort]
                self.call(kind if number is None else number, text, **options)
        except (InputError, MediaError) as error:
            self.counts["refused"] += 1
            if sort < len(FAULTS) and text not in str(error):
                self.faults.append(f"request {kind} was refused, expected {text}: {error!r}")

    def growth(self) -> float:
        """KiB per request, behind the first."""
        asked, memory = np.array([entry for entry in self.memory if entry[0] >= WARM]).T
        return float(np.polyfit(asked, memory, 1)[0])


def resident_kib() -> float:
    """Memory of this process."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**10


def _show(soak: Soak) -> None:
    asked, memory = soak.memory[-1]
    print(f"{asked:6d} requests {memory / 2**10:8.1f} MiB {dict(soak.counts)}", *soak.faults, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.engine.soak")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    soak = Soak(World(), arguments.seed).run(arguments.requests, _show)
    growth = soak.growth() if arguments.requests > 2 * WARM else 0.0
    print(f"{len(soak.faults)} faults; {growth:.1f} KiB per request from the {WARM}th on, at most {GROWTH_KIB}")
    sys.exit(bool(soak.faults) or growth > GROWTH_KIB)


if __name__ == "__main__":
    main()
