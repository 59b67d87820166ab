"""Medians, spreads and ratios."""

import pytest

from ms_omni.bench.report import METRICS, combine, derived


def result(scenario, metric, ours, reference=None):
    return combine(scenario, "part", [{metric: n} for n in ours], [{metric: n} for n in reference or ()])[0]


def test_a_summary():
    assert result("x", "total_s", [4.0, 1.0, 2.0]).ours == (2.0, 1.0, 4.0, (4.0, 1.0, 2.0))
    assert result("x", "total_s", [1.0, 2.0]).ours.median == 1.5


@pytest.mark.parametrize(
    "metric, ratio", [("tokens_per_s", 0.5), ("total_s", 2.0), ("real_time_factor", 2.0), ("peak_gb", 0.5)]
)
def test_a_ratio_says_how_many_times_better_and_of_memory_which_share(metric, ratio):
    assert result("x", metric, [1.0, 2.0, 3.0], [3.0, 4.0, 9.0]).ratio == ratio


def test_without_a_reference_there_is_no_ratio():
    assert result("x", "total_s", [1.0]).ratio is None
    assert result("x", "total_s", [1.0], [0.0]).ratio is None


def test_what_only_one_side_knows():
    ours = [{"token_s": 1.0, "talker_s": 2.0, "compiled": 3}]
    found = combine("x", "part", ours, [{"token_s": 4.0, "other": 5.0}])
    assert [(item.metric, item.reference is None) for item in found] == [("token_s", False), ("talker_s", True)]
    assert combine("x", "part", [], []) == []


def test_figures_that_compare_two_results():
    results = [
        result("cached/100", "token_s", [2.0]),
        result("cached/1000", "token_s", [2.5]),
        result("decode/1", "tokens_per_s", [10.0]),
        result("decode/16", "tokens_per_s", [40.0]),
        result("answer", "first_sound_s", [1.0], [8.0]),
        result("answer", "total_s", [4.0], [8.0]),
    ]
    assert [(round(value, 6), unit) for _, value, unit in derived(results)] == [(25.0, "%"), (4.0, "x"), (0.125, "x")]
    assert derived(results[:1]) == []


NAMED = {
    "failed": "times",
    "under_runs": "times",
    "load": "s/s",
    "real_time_factor": "s/s",
    "peak_gb": "GB",
    "same_ids": "of 1",
}


def test_every_metric_has_a_unit_that_its_name_says():
    ends = {"_gb_per_s": "GB/s", "_percent": "%", "_share": "x", "_tokens": "tokens", "_s": "s"}
    for metric, (unit, _, more) in METRICS.items():
        named = metric.replace("_per_", "/") if "_per_" in metric and "_gb_" not in metric else NAMED.get(metric)
        assert unit == (named or next(ends[end] for end in ends if metric.endswith(end))), metric
        assert more == ("_per_s" in metric or metric == "same_ids")
