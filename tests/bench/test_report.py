"""Medians, ratios and what is derived from them; JSON, Markdown and PNG of invented results."""

import json

import pytest
from PIL import Image

from ms_omni.bench.report import METRICS, Outcome, combine, derived, digits, write_reports
from ms_omni.errors import InputError
from ms_omni.files import output_folder

HEAD = {
    "model": "mini geometry",
    "weights": "/w",
    "parameters": "18 million",
    "seed": 0,
    "repetitions": 2,
    "cards": 1,
    "threads": "2",
    "machine": {"processor": "P", "cores": "2", "memory": "8 GB", "system": "Linux"},
    "when": "2026-01-01 00:00",
    "busy": None,
}


def outcome(reference):
    other = [{"tokens_per_s": 20.0, "peak_gb": 2.0}] if reference else []
    made = Outcome(counts={"steps/text": {"reads_per_token": 1.0, "compiled": 0}}, failures=["speech: it broke"])
    made.results = combine("decode/4", "thinker decode", [{"tokens_per_s": 30.0}, {"tokens_per_s": 50.0}], other)
    made.results += combine("load", "load", [{"load_s": 0.25, "peak_gb": 1.0}], other)
    made.results += combine("memory", "machine", [{"memory_gb_per_s": 19.0}, {"memory_gb_per_s": 20.0}])
    made.results += combine("decode/1", "thinker decode", [{"weights_gb_per_s": 12.0}])
    made.about = {"ms_omni": {"software": "MindSpore 2.7.1", "precision": "float32", "attention": "cpu", "device": "CPU"}}
    made.about["ms_omni"] |= {"vectors": "AVX2, 8 floats", "storage": "int4 0.51 GB, bfloat16 0.31 GB"}
    made.about |= {"reference": {"software": "PyTorch"}} if reference else {}
    return made


@pytest.mark.parametrize("reference", [False, True])
def test_the_three_files(tmp_path, reference):
    made = outcome(reference)
    paths = write_reports(tmp_path, HEAD, made)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in paths)
    data = json.loads((tmp_path / "benchmark.json").read_text())
    first = data["results"][0]
    assert first["ours"] == {"median": 40.0, "low": 30.0, "high": 50.0, "runs": [30.0, 50.0]}
    assert (first["ratio"], data["results"][2]["ratio"]) == ((2.0, 0.5) if reference else (None, None))
    page = (tmp_path / "benchmark.md").read_text()
    assert "| model | mindspore version | precision | cards | part | attention type | tokens/s | vectors | storage |" in page
    how = "| AVX2, 8 floats | int4 0.51 GB, bfloat16 0.31 GB |"
    assert f"| mini geometry | 2.7.1 | float32 | 1 | decode, batch 4 | cpu | 40.0 {how}" in page
    figures = [line for line in page.split("## All figures")[1].split("##")[0].splitlines() if line.startswith("| ")][1:]
    assert len(figures) == len(made.results) and all(line.endswith(how) for line in figures)  # beside every one
    assert all(row["vectors"] == "AVX2, 8 floats" and row["storage"] for row in data["results"])
    assert "- decode, batch 1: weights read, share of the machine's memory bandwidth: 60.0 %" in page
    assert "- reads per token: 1" in page and "- speech: it broke" in page
    assert ("0.50 of its memory" in page) == reference
    assert "| load | load | 250 |" in page  # milliseconds
    picture = Image.open(tmp_path / "benchmark.png")
    assert picture.width == 1200 and len(set(picture.convert("RGB").resize((120, 60)).getdata())) > 10


def test_a_busy_machine_is_said(tmp_path):
    write_reports(tmp_path, {**HEAD, "busy": "The machine was busy"}, outcome(False))
    assert "**The machine was busy**" in (tmp_path / "benchmark.md").read_text()


def test_nothing_measured_still_gives_readable_files(tmp_path):
    write_reports(tmp_path, HEAD, Outcome(failures=["ms_omni: loading failed"]))
    assert "loading failed" in (tmp_path / "benchmark.md").read_text()


@pytest.mark.parametrize(
    "value, text",
    [(None, "-"), (0, "0"), (1234, "1,234"), (12345.6, "12,346"), (99.94, "99.9"), (1.234, "1.23"), (0.01234, "0.0123")],
)
def test_digits(value, text):
    assert digits(value) == text


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write to the folder .*file/out.*--out"):
        output_folder(tmp_path / "file" / "out")


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
