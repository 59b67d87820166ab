"""Whatever is damaged: one clear error or an answer that means something, and no crash, hang or memory without end."""

import pytest

from tests.damage.runner import run_cases

CASES, FIRST = 300, 20_000


@pytest.mark.slow
def test_cases_from_seeds():
    faults, counts = run_cases(range(FIRST, FIRST + CASES))
    assert sum(counts.values()) == CASES
    assert not faults, "\n".join(f"python -m tests.damage --only {found['seed']}: {found['fault']}" for found in faults)
