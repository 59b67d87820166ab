"""`ms-omni doctor`: the whole report, its exit code, and what follows from a fault."""

import json


def test_what_rests_on_a_fault_is_not_tried(cli, broken_mindspore, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(broken_mindspore))
    code, out, _ = cli("doctor", "--only", "python,mindspore,operators,msrun,selfcheck")
    lines = out.decode().splitlines()
    assert code == 1 and lines[-1] == "This machine cannot run the model: see MindSpore above."
    assert sum("XX" in line for line in lines) == 1
    assert sum("not tried, because of what is said under" in line for line in lines) == 3
    assert any("-> pip install --force-reinstall mindspore" in line for line in lines)


def test_json(cli):
    code, out, _ = cli("doctor", "--only", "python,disk", "--json")
    report = json.loads(out)
    assert code == 0 and report["runs"] is True and list(report["checks"]) == ["python", "disk"]
    assert report["checks"]["python"][0].keys() == {"level", "what", "do"}


def test_an_unknown_check(cli):
    code, _, err = cli("doctor", "--only", "luck")
    assert code == 1 and "there is no check 'luck'; expected some of python, packages" in err


def test_a_report_is_written_beside_the_lines(cli, tmp_path):
    file = tmp_path / "report.txt"
    code, out, _ = cli("doctor", "--only", "python,disk", "--report", file)
    text = file.read_text(encoding="utf-8")
    assert code == 0 and b"disk" in out and "[disk]" in text and str(tmp_path) not in text
    code, _, err = cli("doctor", "--only", "python", "--report", tmp_path / "no" / "report.txt")
    assert code == 1 and "No such file" in err
