"""The README's commands and its Python do what it says, in a copy of the repository."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from ms_omni.cli import main

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """The files that a clone would have, and an environment in which ms_omni is this copy."""
    target = tmp_path_factory.mktemp("clone")
    for name in ("configs", "examples", "launch", "ms_omni", "README.md", "setup.py", "pyproject.toml"):
        source = ROOT / name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target / name)
    return target


@pytest.fixture(scope="module")
def environment(clone, tmp_path_factory):
    """Variables under which launch/ scripts find an environment that is ready: this interpreter's, with this copy."""
    venv = tmp_path_factory.mktemp("venv")
    (venv / "bin").mkdir()
    for extras in ("", "[dev,parallel]"):
        (venv / f".ms_omni-installed{extras}").touch()
    for name, arguments in (("python", ""), ("ms-omni", " -m ms_omni.cli")):
        script = venv / "bin" / name
        script.write_text(f'#!/bin/sh\nPYTHONPATH="{clone}" exec "{sys.executable}"{arguments} "$@"\n')
        script.chmod(0o755)
    return {**os.environ, "MS_OMNI_VENV": str(venv), "PATH": f"{venv / 'bin'}:{os.environ['PATH']}"}


def run(command, clone, environment):
    return subprocess.run(["bash", "-c", command], cwd=clone, env=environment, capture_output=True, text=True, timeout=300)


def test_commands(clone, environment):
    commands = [line for kind, block in BLOCKS if kind == "bash" for line in block.splitlines()]
    assert commands[0] == "bash launch/quickstart.sh" and commands[1] == "bash launch/test.sh"
    commands[1] = "bash launch/test.sh --version"  # the tests themselves are running now
    commands = [f"{line} --only image --repetitions 1" if "ms-omni bench" in line else line for line in commands]
    commands = [f"{line} --only python,packages,disk" if line == "ms-omni doctor" else line for line in commands]
    for command in commands:
        result = run(command, clone, environment)
        assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
        assert "Traceback" not in result.stderr
    assert soundfile.info(clone / "build/demo/picture.wav").samplerate == 24000
    assert (clone / "build/demo/demo.png").is_file()
    assert soundfile.info(clone / "build/hello.wav").duration > 0.5
    assert soundfile.info(clone / "build/two.wav").samplerate == 24000


def test_python(clone, environment):
    (source,) = [block for kind, block in BLOCKS if kind == "python"]
    (clone / "readme_example.py").write_text(source, encoding="utf-8")
    result = run("python readme_example.py", clone, environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "an orange star"


def test_tree_names_what_is_there():
    (tree,) = re.findall(r"```\n(ms_omni/.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    folder = Path()
    for line in tree.splitlines():
        name = line.split()[0]
        path = folder / name if line.startswith("  ") else Path(name)
        if not line.startswith("  "):
            folder = path
        assert (ROOT / path).exists(), f"README names {path}"


@pytest.mark.parametrize("strategy", ["ep", "zero3"])
def test_tables_are_what_plan_prints(strategy, capsys):
    assert main(["plan", "--config", "instruct", "--cards", "1,2,4,8", "--strategy", strategy]) == 0
    assert capsys.readouterr().out in (ROOT / "README.md").read_text(encoding="utf-8")
