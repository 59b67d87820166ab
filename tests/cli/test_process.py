"""What only a process of its own can show: imports, a broken installation, signals and pipes."""

import signal
import subprocess
import sys
import time
import wave

import pytest


def test_import_is_quick_and_loads_nothing_heavy(python):
    code = "import time; start = time.process_time(); import ms_omni; spent = time.process_time() - start; import sys; "
    code += "print(spent, *[n for n in ('mindspore', 'transformers', 'numpy', 'av', 'PIL') if n in sys.modules])"
    spent, *heavy = python("-c", code).stdout.split()
    assert float(spent) < 1 and not heavy


def test_public_names_are_listed_and_unknown_ones_refused(python):
    code = "import ms_omni; assert set(ms_omni.__all__) <= set(dir(ms_omni)); ms_omni.Qwen4"
    assert "module 'ms_omni' has no attribute 'Qwen4'" in python("-c", code).stderr


SAID = "ms_omni needs MindSpore 2.7.1 or newer, and importing it failed: OSError: libmindspore_core.so"


@pytest.mark.parametrize("command", ["generate --model {model} hi", "say --model {model} hi", "tiny {out}"])
def test_a_broken_mindspore_is_one_clear_line(command, python, broken_mindspore, tiny_checkpoint, tmp_path):
    arguments = command.format(model=tiny_checkpoint, out=tmp_path / "out").split()
    run = python("-m", "ms_omni.cli", *arguments, ahead_on_path=broken_mindspore)
    assert run.returncode == 1 and not run.stdout
    assert len(run.stderr.splitlines()) == 1
    assert run.stderr.startswith(f"ms-omni: error: {SAID}") and "pip install mindspore==2.7.1" in run.stderr
    assert not (tmp_path / "out").exists()


def test_what_needs_no_mindspore_works_without(python, broken_mindspore, tiny_checkpoint):
    for arguments in (["--version"], ["--help"], ["inspect", tiny_checkpoint]):
        assert python("-m", "ms_omni.cli", *arguments, ahead_on_path=broken_mindspore).returncode == 0
    code = f"import ms_omni; ms_omni.Qwen3OmniMoeProcessor.from_pretrained({str(tiny_checkpoint)!r})"
    assert python("-c", code, ahead_on_path=broken_mindspore).returncode == 0


def test_the_model_class_says_it_too(python, broken_mindspore):
    run = python("-c", "import ms_omni; ms_omni.Qwen3OmniMoeForConditionalGeneration", ahead_on_path=broken_mindspore)
    assert run.stderr.splitlines()[-1].startswith(f"ImportError: {SAID}")


def test_on_windows_the_model_says_where_it_runs(python):
    code = "import sys; from ms_omni import runtime; sys.platform = 'win32'; runtime.require_mindspore()"
    assert (
        python("-c", code)
        .stderr.splitlines()[-1]
        .startswith("ImportError: the model does not run on Windows itself; install")
    )


def test_without_what_only_linux_has_it_answers(python, tiny_checkpoint):
    """As near to macOS as Linux comes: no affinity, no compiler."""
    code = "import os; del os.sched_getaffinity; os.environ['CXX'] = 'none'; from ms_omni.cli import main; main({})"
    command = ["generate", "--model", str(tiny_checkpoint), "--max-new-tokens", "2", "hi"]
    run = python("-c", code.format(command))
    assert run.returncode == 0 and run.stdout and "slower reference operators" in run.stderr


def wait_until(condition, process, seconds=90):
    start = time.monotonic()
    while not condition():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() - start < seconds
        time.sleep(0.05)


def test_ctrl_c_leaves_a_valid_file(environment, tiny_checkpoint, tmp_path):
    target = tmp_path / "said.wav"
    arguments = ["generate", "--model", tiny_checkpoint, "--max-new-tokens", "1000", "--speech", target, "--seed", "7", "hi"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ms_omni.cli", *map(str, arguments)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: target.exists() and target.stat().st_size > 44, process)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert err.strip() == "ms-omni: interrupted"
    with wave.open(str(target), "rb") as file:
        assert file.getnframes() >= 4 * 1920 - 555
        assert len(file.readframes(file.getnframes())) == 2 * file.getnframes() == target.stat().st_size - 44


def test_a_reader_who_goes_away_is_no_error_message(environment, tiny_checkpoint):
    arguments = ["generate", "--model", tiny_checkpoint, "--max-new-tokens", "500", "--seed", "1", "hi"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ms_omni.cli", *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()
    try:
        assert process.wait(timeout=90) == 141
        assert process.stderr.read() == ""
    finally:
        process.kill()
        process.stderr.close()
