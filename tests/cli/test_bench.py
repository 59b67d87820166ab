"""`ms-omni bench`: arguments that cannot be, and one small run beside a fake reference."""

import json
import sys
from pathlib import Path

import pytest

from ms_omni.bench import session

FAKE = Path(__file__).resolve().parents[1] / "bench" / "fake_side.py"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--geometry", "huge"], "--geometry huge: this is neither a folder with a config.json nor one of"),
        (["--only", "talking"], "there is no scenario 'talking'"),
        (["--threads", "4096"], "--threads 4096: this process may use"),
        (["--rows", "2"], "--rows is for 'ms-omni bench serve'"),
        (["--speech", "process"], "--speech is for 'ms-omni bench serve'"),
        (["--rate", "0.5"], "--rate is for 'ms-omni bench serve'"),
        (["serve", "--only", "prefill"], "there is no scenario 'prefill'"),
        (["--beside", "/no/such"], "--beside /no/such: there is no ms_omni/bench/worker.py"),
        (["--beside", str(Path(session.__file__).resolve().parents[2])], "that is the version which runs"),
        (["--beside", "/x", "--reference"], "--beside and --reference are two benchmarks"),
        (["--reference"], "--reference needs --reference-python PATH"),
        (["--reference-python", "/no/such/python"], "/no/such/python cannot be run"),
        (["--reference-python", sys.executable], "cannot run the reference: ModuleNotFoundError"),
    ],
)
def test_mistakes_are_one_line_before_any_measurement(cli, tmp_path, arguments, message, tiny_checkpoint):
    arguments = [*([] if "--geometry" in arguments else ["--geometry", tiny_checkpoint]), *arguments]
    if "--reference-python" in arguments and not Path(session.REFERENCE_SCRIPT).exists():
        message = "which comes with a checkout of the repository"  # ms_omni is installed from a wheel
    code, out, err = cli("bench", "--out", tmp_path / "out", *arguments)
    assert code == 1 and not out and message in err and "Traceback" not in err
    assert not list(tmp_path.glob("out/benchmark.*"))


@pytest.mark.parametrize("number", ["0", "-1", "many"])
def test_numbers(cli, number):
    code, _, err = cli("bench", "--repetitions", number)
    assert code == 2 and "is not a whole number of at least 1" in err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--rows", "1,0"], "'0' is not a whole number of at least 1"),
        (["--rows", ""], "'' is not a whole number of at least 1"),
        (["--callers", "0"], "'0' is not a whole number of at least 1"),
        (["--rate", "0"], "'0' is not a number above 0"),
        (["--rate", "often"], "'often' is not a number above 0"),
        (["--rate", "nan"], "'nan' is not a number above 0"),
        (["--spoken", "2"], "'2' is not a number from 0 to 1"),
    ],
)
def test_numbers_of_serve(cli, arguments, message):
    code, _, err = cli("bench", "serve", *arguments)
    assert code == 2 and message in err


def test_nothing_else_is_served(cli):
    code, _, err = cli("bench", "sell")
    assert code == 2 and "invalid choice: 'sell'" in err


def test_callers_are_served(cli, tmp_path, tiny_checkpoint):
    arguments = ("--geometry", tiny_checkpoint, "--rows", "2", "--callers", 2, "--rate", 100, "--only", "serve")
    code, out, err = cli("bench", "serve", *arguments, "--out", tmp_path)
    assert code == 0, err
    data = json.loads((tmp_path / "serve.json").read_text())
    found = {result["metric"]: result["ours"]["median"] for result in data["results"]}
    assert {result["scenario"] for result in data["results"]} == {"serve/2"} and found["failed"] == 0
    wanted = {f"{what}_{which}_s" for what in ("first_token", "first_sound", "token") for which in ("p50", "p95", "max")}
    wanted |= {"real_time_factor", "under_runs", "requests_per_s", "tokens_per_s", "sound_per_s", "scheduling_percent"}
    assert wanted <= found.keys()
    assert b"## Serving 2 callers, 100 per second, 50 % of them to be answered in speech" in out
    assert {"serve.json", "serve.md", "serve.png"} <= {path.name for path in tmp_path.iterdir()}


def test_another_version_takes_turns_with_its_own_code(tmp_path):
    """A checkout whose worker is a fake that says which ms_omni it stands in."""
    worker = tmp_path / "e4c8b14" / "ms_omni" / "bench" / "worker.py"
    worker.parent.mkdir(parents=True)
    for folder in (worker.parent, worker.parent.parent):
        (folder / "__init__.py").write_text("")
    worker.write_text("import json, sys\nfor line in sys.stdin: print(json.dumps({'done': {'at': __file__}}), flush=True)\n")
    root = session.check_other(tmp_path / "e4c8b14")
    side = session.ChildSide(root.name, session.WORKER, tmp_path / "log", root=root)
    assert side.name == "e4c8b14" and side.load(model="m")["at"] == str(worker)
    side.close()


def test_a_run_beside_a_reference(cli, tmp_path, tiny_checkpoint, monkeypatch):
    monkeypatch.setattr(session, "REFERENCE_SCRIPT", FAKE)
    monkeypatch.setattr(session, "check_reference", lambda python: None)
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
    assert data["parameters"].endswith(" million")
    assert result["reference"]["runs"] == [1.0, 1.0] and len(result["ours"]["runs"]) == 2
    assert result["ratio"] == 1.0 / result["ours"]["median"]
    assert b"| thinker decode | decode at 100 cached tokens: per token |" in out
    assert {"benchmark.json", "benchmark.md", "benchmark.png"} <= {path.name for path in tmp_path.iterdir()}
