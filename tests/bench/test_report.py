"""JSON, Markdown and PNG of invented results."""

import json

import pytest
from PIL import Image

from ms_omni.bench.report import Outcome, combine, digits, write_reports
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
