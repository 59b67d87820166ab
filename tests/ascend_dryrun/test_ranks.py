"""What `ms-omni plan` says of a card, beside what MindSpore gives out on a rank of that many."""

import pytest


@pytest.mark.slow
@pytest.mark.parametrize(
    "plan, cards, rank",
    [
        ("ep", 1, 0),
        ("ep", 8, 7),
        ("ep", 2, 1),
        ("zero3", 8, 0),
        ("zero3", 4, 3),
    ],
)
def test_weights_and_cache_per_card(dry, plan, cards, rank):
    """Packed weights, which stand for those that they are made of, included; pictures have zeros in theirs, 32 MB."""
    found = dry("prefill", plan, cards, rank)
    assert not found["raised"] and found["memory"]["packed"] == [plan == "ep"] * 3
    for kind in ("weights", "cache"):
        held, planned = found["memory"][kind]["held"], found["memory"][kind]["plan"]
        assert -0.02 * planned <= held - planned <= 0.002 * planned, kind
