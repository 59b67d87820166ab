"""`ms-omni demo`: what it prints and writes, and what it refuses."""

import json

import numpy as np
import pytest
import soundfile
from PIL import Image

from ms_omni import cli
from ms_omni.demo import samples as demo_samples
from ms_omni.demo.samples import load_samples


@pytest.fixture(scope="module")
def shown(model, tmp_path_factory):
    """The folder and the printed lines of one demo."""
    import contextlib
    import io

    out, printed = tmp_path_factory.mktemp("demo") / "results", io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(type(model), "from_pretrained", lambda *_, **__: model)  # loaded already
        patch.setenv("COLUMNS", "120")
        assert cli.main(["demo", "--out", str(out)]) == 0
    return out, printed.getvalue()


def test_every_answer_is_right(shown):
    rows = json.loads((shown[0] / "demo.json").read_text(encoding="utf-8"))
    assert [(row["question"], row["answer"]) for row in rows if not row["right"]] == []
    assert {row["speaker"] for row in rows} == {"Ethan", "Chelsie"}
    numbers = [row for row in rows if row["answer"].isdigit()]
    assert [row["heard"] for row in numbers] == [row["answer"] for row in numbers]


def test_question_and_answer_stand_side_by_side(shown, miniature):
    _out, printed = shown
    for sample in load_samples(miniature / "samples"):
        assert sample.question.split()[0] in printed and sample.answer.split()[0] in printed
    assert max(map(len, printed.split("\n\n")[0].splitlines())) <= 120
    assert "10 of 10 answers as expected" in printed


def test_speech_and_picture_are_written(shown):
    out, _ = shown
    for row in json.loads((out / "demo.json").read_text(encoding="utf-8")):
        sound, rate_hz = soundfile.read(out / row["speech"])
        assert rate_hz == 24_000 and len(sound) > 0.3 * rate_hz and 0.02 < np.abs(sound).max() <= 1
    with Image.open(out / "demo.png") as picture:
        colours = len(picture.convert("RGB").getcolors(1 << 24))
        assert picture.width > 1200 and picture.height > 1200 and colours > 1000
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]


def test_files_of_others_are_left_alone(tmp_path, capsys):
    (tmp_path / "sum.wav").write_text("mine")
    assert cli.main(["demo", "--out", str(tmp_path)]) == 1
    assert "choose another folder with --out" in capsys.readouterr().err
    assert (tmp_path / "sum.wav").read_text() == "mine"


def test_without_the_miniature_it_says_what_to_do(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo_samples, "_folders", lambda: [tmp_path / "examples/miniature"])
    assert cli.main(["demo", "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "install ms_omni again" in error and "--model" in error and len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_missing_sample_files_are_named(tmp_path, miniature):
    (tmp_path / "samples.json").write_bytes((miniature / "samples/samples.json").read_bytes())
    with pytest.raises(ValueError, match="star.jpg.*git checkout"):
        load_samples(tmp_path)
