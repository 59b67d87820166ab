import json
import platform
import shutil
import sys

import pytest

from . import run, stub


@pytest.mark.parametrize(
    "pretend, word",
    [
        (lambda patch: patch.setattr(platform, "machine", lambda: "aarch64"), "aarch64"),
        (lambda patch: patch.setattr(platform, "system", lambda: "Darwin"), "Darwin"),
        (lambda patch: patch.setattr(shutil, "which", lambda name: None), "g++"),
    ],
)
def test_elsewhere_one_line_says_why(monkeypatch, capsys, pretend, word):
    pretend(monkeypatch)
    for options in ([], ["--json"]):
        monkeypatch.setattr(sys, "argv", ["run.py", "--what", "forms", *options])
        assert run.main() == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 1 and word in lines[0]
    assert set(json.loads(lines[0])) == {"left_out"}


@pytest.mark.parametrize(
    "options",
    [["--plan", "ep"], ["--cards", "2"], ["--plan", "ep", "--cards", "2", "--rank", "2"]],
)
def test_options_that_do_not_go_together(monkeypatch, capsys, options):
    monkeypatch.setattr(sys, "argv", ["run.py", "--what", "thinker", *options])
    with pytest.raises(SystemExit):
        run.main()
    assert "--plan" in capsys.readouterr().err or "--rank" in options


def test_a_plan_is_for_the_parts_that_it_spreads(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run.py", "--what", "vocoder", "--plan", "ep", "--cards", "2"])
    with pytest.raises(SystemExit):
        run.main()
    assert "thinker or prefill" in capsys.readouterr().err


def test_a_folder_that_mindspore_would_take_for_the_real_libraries(tmp_path):
    with pytest.raises(ValueError, match="scanned"):
        stub.build(tmp_path / "scanned")
