"""Ranks that generate together stop together, draw the same, and notice when they are asked different things."""

import os
import signal

import numpy as np
import pytest

from ms_omni.errors import InputError
from ms_omni.generation.sampling import SamplingParams
from ms_omni.parallel.accord import Accord, Interrupts, digest
from tests.parallel.ranks import Comm, Ranks

SIZE = 3


def turns(accord, stop_after=None, interrupt_after=None, length=6):
    """What a loop sees that stops after some items, or is interrupted in the middle of one."""
    seen, closed = [], []

    def source():
        try:
            for item in range(length):
                accord.comm.gather_array(np.zeros(1))  # every rank takes part in every item
                if item == interrupt_after:
                    accord.interrupts.pending = True
                yield item
        finally:
            closed.append(True)

    items = accord.turns(source())
    try:
        for item in items:
            seen.append(item)
            if len(seen) == stop_after:
                break
        ending = "end"
    except KeyboardInterrupt:
        ending = "interrupted"
    items.close()
    assert closed == [True]
    return seen, ending


def test_a_source_ends_by_itself():
    assert Ranks(SIZE).run(lambda comm: turns(Accord(comm))) == [([0, 1, 2, 3, 4, 5], "end")] * SIZE


def test_when_rank_0_stops_all_do():
    found = Ranks(SIZE).run(lambda comm: turns(Accord(comm), stop_after=None if comm.rank else 2))
    assert found == [([0, 1], "end")] * SIZE


def test_another_rank_that_stops_keeps_the_others_company():
    found = Ranks(SIZE).run(lambda comm: turns(Accord(comm), stop_after=2 if comm.rank == 1 else None))
    assert [len(seen) for seen, _ in found] == [6, 2, 6]


@pytest.mark.parametrize("who", [(0,), (0, 1, 2)])
def test_an_interruption_of_rank_0_ends_all_at_the_same_item(who):
    found = Ranks(SIZE).run(lambda comm: turns(Accord(comm), interrupt_after=2 if comm.rank in who else None))
    assert found == [([0, 1, 2], "interrupted")] * SIZE


def test_an_interruption_of_another_rank_waits_for_the_end():
    found = Ranks(SIZE).run(lambda comm: turns(Accord(comm), interrupt_after=2 if comm.rank == 1 else None))
    assert found == [([0, 1, 2, 3, 4, 5], "interrupted" if rank == 1 else "end") for rank in range(SIZE)]


def test_an_interruption_before_the_beginning_is_everybodys():
    def work(comm):
        accord = Accord(comm)
        accord.interrupts.pending = comm.rank == 0
        accord.begin("same")

    assert [type(error) for error in Ranks(SIZE).run(work)] == [KeyboardInterrupt] * SIZE


def test_different_requests_are_an_error_on_every_rank():
    def work(comm):
        accord = Accord(comm)
        accord.begin("same")
        accord.begin({"input_ids": np.arange(4) + (comm.rank == 2)})

    for error in Ranks(SIZE).run(work):
        assert isinstance(error, InputError) and "ranks [2] were asked something else" in str(error)


def test_one_seed_for_all_where_none_was_given():
    greedy, drawn = SamplingParams(), SamplingParams(do_sample=True)
    found = Ranks(SIZE).run(lambda comm: [Accord(comm).params(params).seed for params in (greedy, drawn)])
    assert found == [found[0]] * SIZE and found[0][0] is None and found[0][1] >= 0


@pytest.mark.parametrize("array", [np.arange(5), np.array([True, False]), np.ones((2, 3), np.float32), np.int64(-3)])
def test_what_rank_0_says_holds(array):
    found = Ranks(2).run(lambda comm: Accord(comm).agree(array if comm.rank == 0 else np.zeros_like(array)))
    assert all(result.dtype == array.dtype and (result == array).all() for result in found)


def test_a_digest_sees_every_difference():
    array = np.arange(6, dtype=np.int32)
    requests = [
        None,
        (),
        (None,),
        [array],
        [array.reshape(2, 3)],
        [array.astype(np.int64)],
        [array, None],
        {"a": array},
        {"b": array},
        {"a": 1, "b": 2},
        {"a": 1},
        "1",
        1,
        1.0,
        SamplingParams(),
        SamplingParams(seed=1),
    ]
    assert len({digest(request) for request in requests}) == len(requests)
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) and digest([array[::2]]) == digest([array[::2].copy()])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_is_noted_while_held_and_raised_afterwards(number):
    """SIGTERM is what MindSpore makes of SIGINT."""
    interrupts, before = Interrupts(), (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    with interrupts.held():
        with interrupts.held():
            os.kill(os.getpid(), number)
        assert interrupts.pending
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    with pytest.raises(KeyboardInterrupt):
        interrupts.act()
    assert not interrupts.pending


def test_sigint_while_ranks_compare_their_requests_waits_for_the_next_turn():
    ranks = Ranks(1)

    class Interrupted(Comm):
        def gather_array(self, array):
            os.kill(os.getpid(), signal.SIGINT)
            return super().gather_array(array)

    accord = Accord(Interrupted(ranks, 0))
    accord.begin("anything")
    with pytest.raises(KeyboardInterrupt):
        next(accord.turns(item for item in ()))
