"""Whole days of callers on a simulated clock: nobody is lost, nobody starves, and who listens hears."""

import random
from dataclasses import replace

import pytest

from ms_omni.engine.blocks import blocks_for
from ms_omni.engine.plan import BUFFERED_S, FRAME_S
from ms_omni.engine.scheduler import LAUNCH_ROWS, SKIPS, Scheduler
from tests.engine.simulated import Caller, RoundRobin, Simulation, ascend, ignore, processor


def random_callers(draw, count):
    """Questions that begin alike or not, with media or not; some are cancelled, some fail, some have nothing to say."""
    callers, time, pace = [], 0.0, draw.choice([1, 1000, 1000])
    for index in range(count):
        time += draw.expovariate(pace)
        ids = (
            *range(draw.choice([0, 0, 0, 512, 600])),
            *(10_000 * index + place for place in range(5000, 5000 + draw.choice([1, 100, 120, 512]))),
        )
        if callers and draw.random() < 0.2:
            ids = draw.choice(callers).ids
        text = draw.choice([1, draw.randint(2, 20), draw.randint(100, 350)])
        frames = draw.choice([None, draw.randint(0, 40), draw.randint(50, 250), draw.randint(50, 250)])
        media = ((len(ids) // 2, 200), (len(ids), 100)) if draw.random() < 0.3 else ()
        fails = draw.randint(1, text) if draw.random() < 0.05 else None
        cancels = draw.expovariate(2) if draw.random() < 0.1 else None
        callers.append(Caller(time, ids, text, frames, draw.choice([1, 9, 130, 700]), media, fails, cancels))
    return callers


def read_otherwise(draw, caller):
    """In smaller chunks, maybe, or ahead of an answer."""
    caller = replace(caller, chunk=draw.choice([128, 256, 512, 512]))
    if draw.random() < 0.85:
        return caller
    ids = caller.ids[: len(caller.ids) // caller.chunk * caller.chunk]
    return replace(caller, ids=ids, text=0, frames=None, fails=None, prefill_only=True)


class Watch:
    """Asserts that nobody starves, tick by tick."""

    def __init__(self):
        self.missed, self.oldest, self.behind = {}, None, 0

    def __call__(self, simulation, plan):
        running, now = simulation.scheduler.running, simulation.now
        begun = {id for id, _ in plan.scheduled}
        rows = [row for row in running if row.id not in begun]
        for row in rows:
            assert row.speaks or not row.text.steps or (row.id,) in plan.decode, "who only writes does so in every tick"
            able = (
                row.speaks
                and row.speech.steps
                and (row.has_text or row.text.steps)
                and not row.text.replays
                and not row.well_buffered(now)
            )
            self.missed[row.id] = self.missed.get(row.id, 0) + 1 if able and (row.id,) not in plan.frames else 0
            ahead = 2 * round(BUFFERED_S / FRAME_S)  # frames that it may have more than the others, who catch up first
            assert self.missed[row.id] <= ahead * ((len(running) - 1) // LAUNCH_ROWS), "who speaks has its turn"
        waits = any(not row.job.prefill_only for row in simulation.scheduler.waiting)  # then who reads ahead counts as well
        oldest = next((row for row in running if row.reading() and (waits or not row.job.prefill_only)), None)
        reads = oldest is None or oldest.id in {entry[0] for entry in (*plan.encode, *plan.read)}
        self.behind = 0 if reads or oldest is not self.oldest else self.behind + 1
        self.oldest = oldest
        assert self.behind < 2 * (SKIPS + 1), "the oldest reads in one of so many ticks"


@pytest.mark.parametrize("block", range(20))
def test_random_schedules(block):
    """Ten of them each."""
    for seed in range(10 * block, 10 * block + 10):
        draw = random.Random(seed)
        own = random.Random(-1 - seed)
        callers = [read_otherwise(own, caller) for caller in random_callers(draw, draw.choice([3, 10, 40]))]
        share, pools = draw.choice([0, 0.2, 0.5, 1]), []
        for tokens in (
            [c.prompt + max(c.text, 1) for c in callers],
            [c.talker + c.frames + 1 for c in callers if c.frames is not None],
        ):
            blocks = [1, *map(blocks_for, tokens)]
            pools.append(1 + max(blocks) + int(share * sum(blocks)))
        options = {
            "max_rows": draw.choice([2, 8, 40]),
            "budget": draw.choice([128, 512, 2048]),
            "margin": draw.choice([0, 0, 256]),
        }
        Simulation(callers, draw.choice([ascend, processor])(), pools, **options).run(Watch()).check()


def at_once(count, kind=Scheduler, costs=ascend(), **options):
    """So many callers in one moment, 128 tokens each; when the last is heard, and when it could be if all prompts were read one
    after another and then all first pieces made together.
    """
    callers = [Caller(0.0, tuple(range(1000 * index, 1000 * index + 128)), 60, 150, talker=128) for index in range(count)]
    simulation = (
        Simulation(callers, costs, kind=kind, max_rows=64, **options).run(Watch() if kind is Scheduler else ignore).check()
    )
    launches = [min(LAUNCH_ROWS, count - first) for first in range(0, count, LAUNCH_ROWS)]
    together = sum(3 * costs.decode(rows) + 4 * costs.frame(rows) + costs.sound(rows, 4) for rows in launches)
    first = [answer.first_sound for answer in simulation.answers.values()]
    return max(first), sum(costs.prompt(caller) for caller in callers) + together, simulation


@pytest.mark.parametrize("costs", [ascend(), processor()])
@pytest.mark.parametrize("count", [1, 8, 16, 64])
def test_callers_at_once_are_heard_soon(count, costs):
    """Without deadlines the last of 64 waits longer; of fewer it does not, as what matters there is how much is read in a tick."""
    last, ideal, _ = at_once(count, costs=costs)
    plain, _, _ = at_once(count, RoundRobin, costs)
    assert last <= (1.25 if count > 1 else 1.0001) * ideal
    assert last <= 1.02 * plain and (count < 64 or plain > 1.25 * last)


def test_a_lone_caller_waits_for_nothing_that_its_sound_does_not_need():
    """Four frames need four tokens, the first of which comes with the prompt."""
    tokens = []

    def watch(simulation, plan):
        answer = simulation.answers[0]
        if not answer.heard:
            tokens.append(len(answer.ids) - answer.caller.prompt)

    Simulation([Caller(0.0, tuple(range(128)), 60, 150)], ascend()).run(watch).check()
    assert max(tokens) == 3  # and the fourth in the tick that makes the first sound


def conversations(seed, costs, rate, count=40):
    """Callers of all lengths, `rate` of them per second, three quarters of whom speak."""
    draw, time, callers = random.Random(seed), 0.0, []
    for index in range(count):
        time += draw.expovariate(rate)
        prompt = draw.choice([32, 128, 512, 1500, 4096])
        frames = draw.choice([None, *(draw.randint(60, 200) for _ in range(3))])
        ids = tuple(range(10_000 * index, 10_000 * index + prompt))
        callers.append(Caller(time, ids, draw.randint(20, 80), frames, min(prompt, 300)))
    return callers


def silence(callers, costs, kind):
    """Seconds of silence within speech, rows that had some, the most real-time factors at a time, all of it summed up."""
    factors = [0.0]

    def watch(simulation, plan):
        factors.append(costs.factor() * sum(row.speaks for row in simulation.scheduler.running))

    simulation = Simulation(callers, costs, kind=kind, max_rows=64).run(watch).check()
    dry = [answer.underruns() for answer in simulation.answers.values()]
    return sum(dry), sum(seconds > 0 for seconds in dry), max(factors)


@pytest.mark.parametrize(("costs", "rates"), [(ascend(), [2.0, 3.0]), (processor(), [0.25, 0.5, 0.8])])
def test_speech_does_not_stop_while_others_read(costs, rates):
    """Not while the real-time factors of all who speak add up to less than 0.9; where rows share launches, which these factors of
    lone rows know nothing of, not at 5 either. Without deadlines it does.
    """
    runs = [conversations(seed, costs, rate) for rate in rates for seed in range(4)]
    bound = 0.9 if costs.frame(16) > costs.frame(1) else 7.5
    mine = [silence(callers, costs, Scheduler) for callers in runs]
    plain = [silence(callers, costs, RoundRobin) for callers in runs]
    assert all(seconds == 0 for seconds, _, factors in mine if factors < bound)
    assert max(factors for _, _, factors in mine if factors < bound) > 0.7 * bound
    assert sum(rows for _, rows, factors in plain if factors < bound) > len(runs)
