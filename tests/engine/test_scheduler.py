"""Plans, tick by tick."""

import ast
import sys
from array import array
from dataclasses import fields
from pathlib import Path

import pytest

import ms_omni.engine.scheduler as module
from ms_omni.engine.blocks import BlockPool
from ms_omni.engine.plan import BUFFERED_S, FRAME_S, TALKER, THINKER, Facts, Job, Plan, Speech
from ms_omni.engine.scheduler import Scheduler
from ms_omni.errors import InputError

from .simulated import keys_of


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def scheduler(clock):
    return Scheduler(BlockPool(101), BlockPool(101), clock=clock)


def tick(scheduler, **facts):
    """A plan that is done at once."""
    plan = scheduler.plan()
    scheduler.done(plan, Facts(**{name: frozenset(ids) for name, ids in facts.items()}))
    return plan


def filled(plan):
    return {part.name: getattr(plan, part.name) for part in fields(plan) if getattr(plan, part.name)}


def speak(scheduler, sent, **job):
    """A row that has made so many frames of sound."""
    id = scheduler.add(Job(1, 500, speech=Speech(1, 1000, (1, 1)), **job))
    while scheduler.rows[id].sent < sent:
        tick(scheduler)
    return id


def test_it_needs_the_standard_library_only():
    for path in Path(module.__file__).parent.glob("[!_]*.py"):
        if path.stem in ("blocks", "plan", "rows", "scheduler"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
                assert {name.split(".")[0] for name in names} <= set(sys.stdlib_module_names)


def test_a_plan_is_one_array():
    plan = Plan(removed=[(3,)], blocks=[(4, 1, 17), (4, 0, 18)], read=[(4, 0, 512, 700)], sound=[(2, 25)])
    numbers = plan.to_array()
    assert len(numbers) == 9 + 1 + 6 + 4 + 2 and Plan.from_array(array("i", [*numbers, 0, 0, 7])) == plan
    assert plan and not Plan() and Plan.from_array(Plan().to_array()) == Plan()


def test_text(scheduler):
    id = scheduler.add(Job(600, 100))
    assert filled(tick(scheduler)) == {
        "scheduled": [(id, 0)],
        "blocks": [(id, THINKER, block) for block in (1, 2, 3, 4, 5)],
        "read": [(id, THINKER, 0, 512)],
    }
    assert filled(tick(scheduler)) == {"read": [(id, THINKER, 512, 600)]}
    for _ in range(40):
        assert filled(tick(scheduler)) == {"decode": [(id,)]}
    assert filled(tick(scheduler)) == {"blocks": [(id, THINKER, 6)], "decode": [(id,)]}  # position 640
    plan = scheduler.plan()
    assert scheduler.done(plan, Facts(text_ended=frozenset([id]))) == [id]
    assert scheduler.pools[THINKER].used == 0 and filled(scheduler.plan()) == {"removed": [(id,)]}
    assert not scheduler.plan()


def test_speech(scheduler):
    """A frame needs a token, and no token is written before a frame needs it; pieces grow."""
    id = scheduler.add(Job(100, 50, speech=Speech(100, 50, (2, 3))))
    assert tick(scheduler).read == [(id, THINKER, 0, 100)]
    assert filled(tick(scheduler)) == {"read": [(id, TALKER, 0, 99)], "frames": [(id,)]}
    assert filled(tick(scheduler)) == {"decode": [(id,)], "frames": [(id,)], "sound": [(id, 2)]}
    tick(scheduler), tick(scheduler)
    assert tick(scheduler, text_ended=[id]).sound == [(id, 3)]
    assert scheduler.pools[THINKER].used == 0 and scheduler.pools[TALKER].used == 1
    assert filled(tick(scheduler)) == {"frames": [(id,)]}
    assert tick(scheduler, speech_ended=[id]).frames == [(id,)]
    plan = scheduler.plan()
    assert filled(plan) == {"sound": [(id, 1)]} and scheduler.done(plan) == [id]
    assert scheduler.pools[TALKER].used == 0


def test_the_end_may_come_where_a_piece_was_expected(scheduler):
    id = scheduler.add(Job(10, 50, speech=Speech(1, 50, (2,))))
    tick(scheduler), tick(scheduler)
    plan = scheduler.plan()
    assert plan.sound == [(id, 2)]
    assert scheduler.done(plan, Facts(frozenset([id]), frozenset([id]))) == [id]


def test_nothing_to_say(scheduler):
    id = scheduler.add(Job(10, 50, speech=Speech(20, 50)))
    plan = scheduler.plan()
    assert scheduler.done(plan, Facts(frozenset([id]), frozenset([id]))) == [id] and not scheduler.rows


def test_what_would_not_fit_alone_is_refused():
    scheduler = Scheduler(BlockPool(11), BlockPool(3))
    with pytest.raises(InputError, match="the answer needs 1281 tokens"):
        scheduler.add(Job(1000, 281))
    with pytest.raises(InputError, match="its speech needs 257 tokens"):
        scheduler.add(Job(10, 10, speech=Speech(57, 200)))
    scheduler.add(Job(1000, 280))
    assert tick(scheduler).scheduled == [(0, 0)]  # though there is no margin


def test_admission_waits_for_room_in_the_order_of_calls():
    scheduler = Scheduler(BlockPool(11), max_rows=3, margin=256)
    ids = [scheduler.add(Job(prompt, 256)) for prompt in (300, 900, 10, 10, 10)]
    assert tick(scheduler).scheduled == [(ids[0], 0)]  # the second has no room, and nobody passes it
    scheduler.cancel(ids[0])
    assert tick(scheduler).scheduled == [(ids[1], 0)]
    scheduler.cancel(ids[1])
    assert tick(scheduler).scheduled == [(id, 0) for id in ids[2:]]
    assert tick(scheduler).removed == [] and scheduler.pools[THINKER].used == 3


def test_cancelled_and_failed_rows_give_back_at_once(scheduler):
    ids = [scheduler.add(Job(100, 100)) for _ in range(3)]
    plan = scheduler.plan()
    scheduler.cancel(ids[0])
    assert scheduler.pools[THINKER].used == 2
    assert scheduler.done(plan, Facts(failed=frozenset([ids[1]]))) == [] and scheduler.pools[THINKER].used == 1
    assert filled(tick(scheduler)) == {"removed": [(ids[0],), (ids[1],)], "decode": [(ids[2],)]}
    scheduler.cancel(ids[0])
    scheduler.cancel(99)


def test_the_newest_row_is_dropped_and_rebuilt():
    """Its prompt is read again in chunks, what it wrote in steps that draw nothing."""
    scheduler = Scheduler(BlockPool(4), margin=0)
    old, new = (scheduler.add(Job(100, 284)) for _ in range(2))
    tick(scheduler)
    for _ in range(28):
        assert tick(scheduler).decode == [(old,), (new,)]
    plan = tick(scheduler)
    assert plan.blocks == [(old, THINKER, 3)] and plan.preempted == [(new,)] and plan.decode == [(old,)]
    for _ in range(10):
        assert filled(tick(scheduler)) == {"decode": [(old,)]}
    tick(scheduler, text_ended=[old])
    text = scheduler.rows[new].text
    assert (text.read, text.drawn) == (0, 29)
    assert filled(tick(scheduler)) == {
        "removed": [(old,)],
        "scheduled": [(new, 0)],
        "blocks": [(new, THINKER, block) for block in text.blocks],
        "read": [(new, THINKER, 0, 100)],
    }
    made = []
    while text.drawn < 31:
        assert tick(scheduler).decode == [(new,)]
        made.append(text.drawn)
    assert made == [29] * 28 + [30, 31]


def test_growing_for_speech_may_drop_a_row_that_has_just_grown():
    """What it was given in this tick is not told to anybody."""
    scheduler = Scheduler(BlockPool(101), BlockPool(3), margin=0)
    old = scheduler.add(Job(1, 500, speech=Speech(127, 100)))
    new = scheduler.add(Job(127, 500, speech=Speech(1, 100)))
    while (plan := tick(scheduler)) and not plan.preempted:
        assert len(scheduler.running) == 2
    assert plan.preempted == [(new,)] and plan.frames == [(old,)] and new not in {entry[0] for entry in plan.blocks}


def test_a_second_question_reads_what_is_new(scheduler):
    ids = list(range(1500))
    keys = keys_of(ids)
    media = ((900, 300), (1400, 300))
    first = scheduler.add(Job(1500, 10, keys, media))
    assert [tick(scheduler).encode for _ in range(3)] == [[(first, 0)], [(first, 1)], []]
    for payload in ("a", "b"):
        plan = scheduler.plan()
        scheduler.done(plan, Facts(payloads={first: payload}))
    second = scheduler.add(Job(1500, 10, keys, media))
    plan = tick(scheduler)
    assert plan.scheduled == [(second, 1024)] and plan.encode == [(second, 1)] and len(plan.blocks) == 12
    assert scheduler.rows[second].payloads == [None, "a"]
    exact = scheduler.add(Job(1024, 10, keys_of(ids[:1024])))
    assert tick(scheduler).scheduled == [(exact, 512)]  # its last chunk is read, to draw from


def test_of_a_burst_one_reads_what_all_share(scheduler):
    """The others come in when they can find it; who shares nothing does not wait."""
    ids = list(range(1500))
    rows = [scheduler.add(Job(1500, 10, keys_of(ids[:1100] + [row] * 400))) for row in range(3)]
    other = scheduler.add(Job(600, 10, keys_of(ids[1:601])))
    read, scheduled = [], {}
    while len(read) < 7:
        plan = tick(scheduler)
        scheduled |= dict(plan.scheduled)
        read += [(row, start) for row, _, start, _ in plan.read]
    assert scheduled == {rows[0]: 0, other: 0, rows[1]: 1024, rows[2]: 1024}
    assert sorted(read) == [
        (rows[0], 0),
        (rows[0], 512),
        (rows[0], 1024),
        (rows[1], 1024),
        (rows[2], 1024),
        (other, 0),
        (other, 512),
    ]


def test_who_would_have_read_what_others_wait_for_may_go(scheduler):
    keys = keys_of(range(1500))
    first, second = (scheduler.add(Job(1500, 10, keys)) for _ in range(2))
    assert tick(scheduler).scheduled == [(first, 0)]
    scheduler.cancel(first)
    assert tick(scheduler).scheduled == [(second, 512)]


def test_calm_rows_wait_while_somebody_is_in_need(scheduler, clock):
    row = speak(scheduler, 1 + round(BUFFERED_S / FRAME_S))
    assert tick(scheduler).frames == [(row,)]
    other = scheduler.add(Job(1500, 10))
    tick(scheduler)  # admits it
    assert tick(scheduler).frames == []
    assert scheduler.rows[other].awaits_first_output
    clock.now += 10 * FRAME_S
    assert tick(scheduler).frames == [(row,)]


def test_nothing_is_read_while_somebody_would_run_dry_first(scheduler, clock):
    speak(scheduler, 1)
    scheduler.add(Job(5000, 10))
    reads = []
    for _ in range(13):
        clock.now += FRAME_S
        reads.append(bool(tick(scheduler).read))
    assert reads.count(True) == 3  # it is not starved either


def test_a_row_gives_what_it_has_before_it_runs_dry(scheduler, clock):
    row = scheduler.add(Job(1, 500, speech=Speech(1, 500, (2, 8))))
    while not tick(scheduler).sound:
        pass
    for _ in range(3):
        assert tick(scheduler).sound == []  # alone, pieces are as they are
    scheduler.add(Job(1, 500))
    assert tick(scheduler).sound == [(row, 2)]
    clock.now += 2.0  # too late: it makes a whole piece
    sound = [tick(scheduler).sound for _ in range(6)]
    assert sound == [[], [], [], [], [], [(row, 8)]]


def test_text_that_is_written_elsewhere(clock):
    scheduler = Scheduler(BlockPool(1), BlockPool(11), clock=clock)
    row = scheduler.add(Job(0, 0, speech=Speech(10, 50, (2,))))
    assert filled(tick(scheduler)) == {"scheduled": [(row, 0)], "blocks": [(row, TALKER, 1)]}
    assert not scheduler.plan()
    scheduler.add_text(row, 2, False)
    assert filled(tick(scheduler)) == {"read": [(row, TALKER, 0, 9)], "frames": [(row,)]}
    assert tick(scheduler).sound == [(row, 2)] and not scheduler.plan()
    scheduler.add_text(row, 0, True)
    plan = tick(scheduler, speech_ended=[row])
    assert plan.frames == [(row,)] and not scheduler.rows


def test_short_prompts_pass_a_long_one_every_second_time(scheduler):
    long = scheduler.add(Job(5000, 10))
    short = scheduler.add(Job(500, 10))
    reads = [tick(scheduler).read[0][0] for _ in range(3)]
    assert sorted(reads[:2]) == [long, short] and reads[2] == long


def test_a_chunk_that_failed_is_not_found(scheduler):
    """What is in its blocks nobody knows."""
    job = Job(1500, 10, keys_of(range(1500)))
    first = scheduler.add(job)
    tick(scheduler)
    assert tick(scheduler, failed=[first]).read == [(first, THINKER, 512, 1024)]
    second = scheduler.add(job)
    assert tick(scheduler).scheduled == [(second, 512)]


def test_who_reads_ahead_waits_for_who_asks():
    """For a place, and at its work; but not where somebody waits for that."""
    scheduler = Scheduler(BlockPool(101), max_rows=3)
    ahead, other = (scheduler.add(Job(2000, 0, keys_of(range(n, n + 2000)), prefill_only=True)) for n in (0, 5))
    assert scheduler.plan().scheduled == [(ahead, 0), (other, 0)]
    one = scheduler.add(Job(1500, 10))
    plan = tick(scheduler)
    assert plan.scheduled == [(one, 0)] and plan.read == [(one, THINKER, 0, 512)]
    late, two = scheduler.add(Job(600, 0, prefill_only=True)), scheduler.add(Job(1500, 10))
    assert {id for id, *_ in tick(scheduler).read + tick(scheduler).read} >= {ahead}  # a place is waited for
    scheduler.cancel(other)
    assert tick(scheduler).scheduled == [(two, 0)] and late in scheduler.rows
    assert scheduler.cached_tokens == 0 and scheduler.prompt_tokens == 3000
