"""`ms-omni bench`: arguments that cannot be, and one small run beside a fake reference."""

import json
import sys
from pathlib import Path

import pytest

from ms_omni.bench import parties

PARTY = Path(__file__).resolve().parents[1] / "bench" / "party.py"


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--geometry", "huge"], "--geometry huge: this is neither a folder with a config.json nor one of"),
        (["--only", "talking"], "there is no scenario 'talking'"),
        (["--threads", "4096"], "--threads 4096: this process may use"),
        (["--reference"], "--reference needs --reference-python PATH"),
        (["--reference-python", "/no/such/python"], "/no/such/python cannot be run"),
        (["--reference-python", sys.executable], "cannot run the reference: ModuleNotFoundError"),
    ],
)
def test_mistakes_are_one_line_before_any_measurement(cli, tmp_path, arguments, said, tiny_checkpoint):
    arguments = [*([] if "--geometry" in arguments else ["--geometry", tiny_checkpoint]), *arguments]
    if "--reference-python" in arguments and not Path(parties.REFERENCE_SCRIPT).exists():
        said = "which comes with a checkout of the repository"  # ms_omni is installed from a wheel
    code, out, err = cli("bench", "--out", tmp_path / "out", *arguments)
    assert code == 1 and not out and said in err and "Traceback" not in err
    assert not list(tmp_path.glob("out/benchmark.*"))


@pytest.mark.parametrize("number", ["0", "-1", "many"])
def test_numbers(cli, number):
    code, _, err = cli("bench", "--repetitions", number)
    assert code == 2 and "is not a whole number of at least 1" in err


def test_a_run_beside_a_reference(cli, tmp_path, tiny_checkpoint, monkeypatch):
    monkeypatch.setattr(parties, "REFERENCE_SCRIPT", PARTY)
    monkeypatch.setattr(parties, "check_reference", lambda python: None)
    code, out, err = cli(
        "bench",
        "--geometry",
        tiny_checkpoint,
        "--only",
        "cached/100",
        "--repetitions",
        2,
        "--out",
        tmp_path,
        "--reference-python",
        sys.executable,
    )
    assert code == 0, err
    data = json.loads((tmp_path / "benchmark.json").read_text())
    (result,) = data["results"]
    assert result["reference"]["runs"] == [1.0, 1.0] and len(result["ours"]["runs"]) == 2
    assert result["ratio"] == 1.0 / result["ours"]["median"]
    assert b"| thinker decode | decode at 100 cached tokens: per token |" in out
    assert {"benchmark.json", "benchmark.md", "benchmark.png"} <= {path.name for path in tmp_path.iterdir()}
