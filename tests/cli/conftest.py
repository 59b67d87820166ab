"""`cli(...)` runs a command inside this process; `python(...)` starts another one."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def cli(capsysbinary):
    """`cli("say", "--model", DIR, ...)` -> (exit code, standard output as bytes, standard error as text)."""
    from ms_omni.cli import main

    def run(*arguments):
        capsysbinary.readouterr()
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as left:  # argparse
            code = left.code
        out, err = capsysbinary.readouterr()
        return code, out, err.decode()

    return run


@pytest.fixture
def environment():
    """Environment variables of a child process that finds ms_omni."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path}


@pytest.fixture
def python(environment):
    """`python("-c", code)`: the finished child process."""

    def run(*arguments, ahead_on_path=None, cwd=None):
        env = dict(environment)
        if ahead_on_path is not None:
            env["PYTHONPATH"] = os.pathsep.join([str(ahead_on_path), env["PYTHONPATH"]])
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, env=env, cwd=cwd, capture_output=True, text=True, timeout=120)

    return run


@pytest.fixture
def broken_mindspore(tmp_path):
    """A folder with a `mindspore` that cannot be imported, as after an installation for another machine."""
    package = tmp_path / "broken" / "mindspore"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise OSError('libmindspore_core.so: cannot open shared object file')\n")
    return package.parent


@pytest.fixture(scope="session")
def media(tmp_path_factory):
    """Two small pictures and two short sounds: {"red": Path, "blue": Path, "low": Path, "high": Path}."""
    folder, files = tmp_path_factory.mktemp("media"), {}
    for name, colour, size in (("red", (200, 30, 30), (64, 64)), ("blue", (30, 30, 200), (96, 64))):
        files[name] = folder / f"{name}.png"
        Image.new("RGB", size, colour).save(files[name])
    for name, hertz, seconds in (("low", 110, 0.2), ("high", 880, 0.4)):
        files[name] = folder / f"{name}.wav"
        times_s = np.arange(int(16_000 * seconds)) / 16_000
        soundfile.write(files[name], 0.3 * np.sin(2 * np.pi * hertz * times_s), 16_000)
    return files
