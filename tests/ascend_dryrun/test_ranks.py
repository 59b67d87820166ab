"""What `ms-omni plan` says of a card, beside what MindSpore gives out on a rank of that many."""

import pytest


@pytest.mark.slow
@pytest.mark.parametrize(
    "part, plan, cards, rank",
    [
        ("prefill", "ep", 1, 0),
        ("prefill", "ep", 8, 7),
        ("thinker", "ep", 2, 1),  # the same run as in test_budgets.py
        ("prefill", "zero3", 8, 0),
        ("prefill", "zero3", 4, 3),
    ],
)
def test_weights_and_cache_per_card(dry, part, plan, cards, rank):
    """Packed weights, which stand for those that they are made of, included; pictures have zeros in theirs, 32 MB."""
    found = dry(part, plan, cards, rank)
    assert not found["raised"] and found["memory"]["packed"] == [plan == "ep"] * 3
    for kind in ("weights", "cache"):
        held, planned = found["memory"][kind]["held"], found["memory"][kind]["plan"]
        assert -0.02 * planned <= held - planned <= 0.002 * planned, kind


@pytest.mark.slow
@pytest.mark.parametrize("cards, rank, storage", [(2, 1, "int4"), (2, 1, "int8")])
def test_weights_as_codes_per_card(dry, cards, rank, storage):
    """Of few layers, which the host lays out; what stands for missing zero points is small. Nothing that is stored as codes is there twice."""
    found = dry("thinker", "ep", cards, rank, storage=storage)
    assert not found["raised"] and found["memory"]["packed"] == [True] * 3
    held, planned = found["memory"]["weights"]["held"], found["memory"]["weights"]["plan"]
    assert -0.02 * planned <= held - planned <= 0.01 * planned
