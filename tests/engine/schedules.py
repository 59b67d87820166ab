"""Random schedules of callers: `python -m tests.engine.schedules --count 200 --seed 0`, one again by `--only SEED`."""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterable

import numpy as np

from ms_omni.engine.engine import Engine
from tests.engine.callers import Callers, World, check_empty

KINDS = 64
CONTAINED = (
    *(
        "answers",
        "cancelled",
        "joined others",
        "prompt cut",
        "prefix found",
        "dropped and rebuilt",
        "dropped while speaking",
    ),
    *("spoken", "image", "audio", "video", "video with its sound"),
    *("text greedy", "text sampled", "speech greedy", "speech sampled"),
)
"""What twenty schedules hold of everything."""


def schedule(world: World, seed: int) -> Callers:
    """Comes to its end, on a clock of its own so that the same seed is the same schedule."""
    draw = np.random.default_rng([20, seed])
    tight = draw.random() < 0.4  # answers that grow, where there is no room for it
    kinds = world.growing(KINDS) if tight else range(KINDS)
    wanted = draw.choice(kinds, int(draw.integers(3, 6 if tight else 12))).tolist()
    sizes, share = [world.tokens(kind) for kind in wanted], 0 if tight else float(draw.choice([0, 0.3, 1]))
    tokens, rows = max(sizes) + int(share * sum(sizes)), int(draw.integers(2 if tight else 1, 17))
    engine = Engine(world.model, max_rows=rows, tokens=tokens, grows=bool(draw.random() < 0.3))
    scheduler, now = engine.scheduler, [0.0]
    scheduler.clock, pace = lambda: now[0], float(draw.choice([0.001, 0.02, 0.2]))
    scheduler.budget, scheduler.margin = int(draw.choice([128, 512, 2048])), 0 if tight else int(draw.choice([0, 256]))
    engine.thinker.features.budget = int(draw.choice([0, 2**20, 2**28]))
    arrivals, leaves = 1.0 if tight else float(draw.choice([0.05, 0.3, 1.0])), float(draw.choice([0, 0.01]))
    callers = Callers(world, engine)
    while wanted or callers.calls:
        if wanted and (draw.random() < arrivals or not callers.calls):
            callers.call(wanted.pop())
        callers.step()
        now[0] += pace * draw.exponential()
        if callers.calls and draw.random() < leaves:
            callers.cancel(int(draw.choice(sorted(callers.calls))))
    check_empty(engine)
    return callers


def run_schedules(world: World, seeds: Iterable[int], show: Callable = lambda *_: None) -> tuple[list[str], Counter]:
    """Faults, and counts of what happened to the answers."""
    faults, counts = [], Counter()
    for seed in seeds:
        callers = schedule(world, seed)
        faults += [f"python -m tests.engine.schedules --only {seed}: {fault}" for fault in callers.faults]
        counts += callers.counts
        show(seed, callers)
    return faults, counts


def _show(seed: int, callers: Callers) -> None:
    print(seed, dict(callers.counts), *callers.faults, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.engine.schedules")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the first schedule; the next ones follow")
    parser.add_argument("--only", type=int, help="the schedule of this seed")
    arguments = parser.parse_args()
    seeds = range(arguments.seed, arguments.seed + arguments.count) if arguments.only is None else [arguments.only]
    faults, counts = run_schedules(World(), seeds, _show)
    for name, count in sorted(counts.items()):
        print(f"{name:24s} {count}")
    print(f"{len(faults)} faults in {len(seeds)} schedules")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
