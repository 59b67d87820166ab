"""Rows whose callers' functions are waited for, and answers that nobody has limited, where there is little room."""

import random

import pytest

from ms_omni.engine.blocks import BLOCK, BlockPool, blocks_for
from ms_omni.engine.plan import THINKER, Facts, Job, Speech
from ms_omni.engine.scheduler import REST_S, Scheduler
from ms_omni.errors import InputError
from tests.engine.simulated import UNNAMED, Caller, Simulation, ascend, processor
from tests.engine.test_scheduler import clock, filled, tick  # noqa: F401
from tests.engine.test_schedules import random_callers


def test_a_limit_that_nobody_named_is_what_fits():
    scheduler = Scheduler(BlockPool(11), BlockPool(3))
    speech = Speech(57, 4096, named=False)
    row = scheduler.rows[scheduler.add(Job(1000, 1024, speech=speech, named=False))]
    assert (row.job.limit, row.job.speech.limit, row.text.limit, row.speech.limit) == (280, 199, 280, 199)
    assert scheduler.fitted(row.job) == row.job
    assert scheduler.fitted(Job(1000, 100, named=False)).limit == 100
    for job in (Job(1000, 1024), Job(1153, 1024, named=False), Job(9, 9, speech=Speech(129, 4096, named=False))):
        with pytest.raises(InputError, match="make the prompt shorter"):
            scheduler.add(job)
    assert scheduler.fitted(Job(1152, 1024, named=False)).limit == BLOCK


def full(clock, has_callbacks):
    """Two rows that hold all blocks; `has_callbacks` says which of them fall asleep. The next token of the first needs another block."""
    scheduler = Scheduler(BlockPool(4), margin=0, clock=clock)
    rows = [scheduler.add(Job(prompt, 150, has_callbacks=one)) for prompt, one in zip((128, 200), has_callbacks)]
    tick(scheduler)
    assert scheduler.pools[THINKER].available == 0
    return scheduler, rows


def test_who_needs_a_block_of_a_sleeper_waits_for_it(clock):
    """Nothing is dropped and nobody ends while it may wake at any time; then the newest is dropped as ever."""
    scheduler, (old, new) = full(clock, (False, True))
    scheduler.sleep(new)
    clock.now += REST_S / 2
    assert not scheduler.plan() and len(scheduler.running) == 2
    scheduler.wake(new)
    assert filled(tick(scheduler)) == {"preempted": [(new,)], "blocks": [(old, THINKER, 2)], "decode": [(old,)]}


def test_a_sleeper_gives_its_blocks_up_after_a_while(clock):
    """Also to newer rows, and is not scheduled before it wakes; then it goes on where it was."""
    scheduler, (old, new) = full(clock, (True, False))
    scheduler.sleep(old)
    while tick(scheduler):
        pass
    assert scheduler.rows[new].text.read == 256 and len(scheduler.running) == 2
    clock.now += 2 * REST_S
    assert filled(tick(scheduler)) == {"preempted": [(old,)], "blocks": [(new, THINKER, 1)], "decode": [(new,)]}
    tick(scheduler, text_ended=[new])
    assert filled(tick(scheduler)) == {"removed": [(new,)]} and scheduler.pools[THINKER].used == 0
    scheduler.wake(old)
    assert tick(scheduler).read == [(old, THINKER, 0, 128)]
    assert scheduler.rows[old].text.drawn == 1 and tick(scheduler).decode == [(old,)]


def test_a_sleeper_may_end_without_its_blocks(clock):
    scheduler, (old, new) = full(clock, (True, False))
    scheduler.sleep(old)
    while tick(scheduler):
        pass
    clock.now += 2 * REST_S
    assert tick(scheduler).preempted == [(old,)]
    scheduler.wake(old)
    assert scheduler.done(scheduler.plan(), Facts(text_ended=frozenset([old]))) == [old]
    scheduler.cancel(new)
    assert not scheduler.rows and not scheduler.asleep and scheduler.pools[THINKER].used == 0


def test_a_sleeper_makes_place_for_whom_its_function_may_ask(clock):
    scheduler = Scheduler(BlockPool(11), max_rows=1, clock=clock)
    outer = scheduler.add(Job(10, 50, has_callbacks=True))
    tick(scheduler)
    scheduler.sleep(outer)
    inner = scheduler.add(Job(10, 50))
    assert not scheduler.plan()
    clock.now += 2 * REST_S
    plan = tick(scheduler)
    assert (plan.preempted, plan.scheduled, plan.read) == ([(outer,)], [(inner, 0)], [(inner, THINKER, 0, 10)])


def test_who_waits_for_a_block_says_no_word_that_is_not_written(clock):
    """A frame whose word cannot be written in this tick waits with it."""
    scheduler = Scheduler(BlockPool(4), BlockPool(11), margin=0, clock=clock)
    row = scheduler.add(Job(128, 100, speech=Speech(1, 100)))
    sleeper = scheduler.add(Job(129, 100, has_callbacks=True))
    plan = tick(scheduler)
    scheduler.sleep(sleeper)
    while plan.frames or not scheduler.rows[row].speech.drawn:
        plan = tick(scheduler)
    assert not plan and scheduler.rows[row].text.drawn == 1 == scheduler.rows[row].speech.drawn
    scheduler.wake(sleeper)
    plan = tick(scheduler)
    assert (plan.preempted, plan.decode, plan.frames) == ([(sleeper,)], [(row,)], [(row,)])


def asking(draw, caller):
    """Some callers have functions, a few of which take their time; some do not say how long their answers may be."""
    has_callbacks = draw.choice([None, None, 0.0, 0.01, draw.uniform(0, 3) if caller.text < 20 else 0.1])
    named = draw.random() < 0.5
    text = caller.text if named else draw.choice([caller.text, 3000])
    frames = caller.frames if named or not caller.frames else draw.choice([caller.frames, 5000])
    return Caller(**{**vars(caller), "has_callbacks": has_callbacks, "named": named, "text": text, "frames": frames})


@pytest.mark.parametrize("block", range(5))
def test_random_schedules(block):
    """Ten of them each: everybody is answered up to the limits that fit, and all blocks come back."""
    cut = 0
    for seed in range(10 * block, 10 * block + 10):
        draw = random.Random(seed)
        callers = [asking(draw, caller) for caller in random_callers(draw, draw.choice([3, 6, 12]))]
        pools = []
        for sizes in (
            [(c.prompt, c.text, c.named) for c in callers],
            [(c.talker, c.frames + 1, c.named) for c in callers if c.frames is not None],
        ):
            least = [prompt + (limit if named else BLOCK) for prompt, limit, named in sizes]
            pools.append(1 + max([1, *map(blocks_for, least)]) + draw.choice([0, 0, 2, 5]))
        options = {"max_rows": draw.choice([1, 2, 8]), "margin": draw.choice([0, 256])}
        simulation = Simulation(callers, draw.choice([ascend, processor])(), pools, **options).run().check()
        cut += sum(answer.limits[THINKER] < min(answer.caller.text, UNNAMED[0]) for answer in simulation.answers.values())
        for answer in simulation.answers.values():  # a named limit is kept
            if answer.caller.named:
                assert answer.limits == (answer.caller.text, answer.caller.frames or 0)
    assert cut


def test_answers_without_limits_fill_all_and_harm_nobody():
    """Two that would never end, in text and in speech, and three that say how long they are."""
    endless = [Caller(0.0, (index, *range(99)), 5000, 9000, named=False) for index in range(2)]
    short = [Caller(0.01 * index, (9, index), 40, 50) for index in range(3)]
    simulation = Simulation([*endless, *short], ascend(), (7, 9)).run().check()
    assert [answer.limits for answer in simulation.answers.values()] == [(668, 959)] * 2 + [(40, 50)] * 3
    assert any(answer.preempted for answer in simulation.answers.values())
