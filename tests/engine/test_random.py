"""Random callers, of whom each is answered as if alone; many more of them by hand: `schedules.py` and `soak.py`."""

import pytest

from tests.engine.schedules import CONTAINED, run_schedules
from tests.engine.soak import Soak

SCHEDULES, REQUESTS, GROWTH_MIB = 20, 100, 4


@pytest.mark.short
@pytest.mark.parametrize("seed", range(3))
def test_a_schedule(world, seed):
    faults, _ = run_schedules(world, [seed])
    assert not faults


@pytest.mark.slow
def test_schedules_in_which_everything_happens(world):
    faults, counts = run_schedules(world, range(SCHEDULES))
    assert not faults, "\n".join(faults)
    assert all(counts[name] for name in CONTAINED), counts


@pytest.mark.slow
def test_an_engine_stays_as_it_was(world):
    """Whoever leaves or fails; what memory does behind so few requests says little, see `soak.py`."""
    soak = Soak(world).run(REQUESTS)
    assert not soak.faults, "\n".join(soak.faults)
    assert all(soak.counts[name] for name in ("answers", "cancelled", "refused", "failed")), soak.counts
    (_, half), (_, end) = soak.memory[len(soak.memory) // 2], soak.memory[-1]
    assert end - half < GROWTH_MIB * 2**10
