import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from .server import Hub

ROOT = Path(__file__).resolve().parents[2]
NAME = "Someone/Tiny-Omni.v2"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
CODE = """
import sys
from ms_omni.errors import OmniError
from ms_omni import hub
hub.PAUSE_S = 0
for name, options in {calls!r}:
    hub.TRIES = options.pop("tries", 5)
    try:
        print(hub.resolve(name, progress=False, **options))
    except OmniError as error:
        print(f"{{type(error).__name__}}: {{error}}".replace("\\n", " "))
assert not {{"mindspore", "transformers"}} & set(sys.modules)
"""


def write_checkpoint(folder):
    """Files by the names of a checkpoint in two shards, beside some that nobody needs. Returns the folder."""
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "configs/tiny.json", folder / "config.json")
    for file in ("tokenizer_config.json", "tokenizer.json", "preprocessor_config.json", "chat_template.json"):
        (folder / file).write_text(json.dumps({"file": file}))
    for index, file in enumerate(SHARDS):
        save_file({f"w{index}": np.arange(200_000, dtype=np.float32) + index}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w0": SHARDS[0], "w1": SHARDS[1]}}))
    (folder / "original").mkdir()
    for file in ("pytorch_model.bin", "training.pt", "README.md", "merges.txt", "original/old.safetensors"):
        (folder / file).write_text(file)
    return folder


@pytest.fixture(scope="session")
def repository(tmp_path_factory):
    """The folder that the hub serves as `NAME`."""
    return write_checkpoint(tmp_path_factory.mktemp("repository") / "tiny")


@pytest.fixture
def hub(repository):
    """A `Hub` on loopback with one model."""
    served = Hub({NAME: repository})
    yield served
    served.close()


@pytest.fixture
def environment(tmp_path, hub):
    """Environment variables of a machine whose caches are empty and whose hub is ours."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "MODELSCOPE", "MS_OMNI", "XDG_"))}
    places = {"HOME": tmp_path, "HF_HOME": tmp_path / "hf", "MODELSCOPE_CACHE": tmp_path / "ms", "PYTHONPATH": ROOT}
    return {**kept, **{key: str(value) for key, value in places.items()}, "HF_ENDPOINT": hub.address}


@pytest.fixture
def start(environment, tmp_path):
    """`start(*calls, variables={})`: a process that calls `resolve(name, **options)` for each `(name, options)`."""

    def run(*calls, variables=()):
        command = [sys.executable, "-c", CODE.format(calls=calls)]
        env = {**environment, **dict(variables)}
        return subprocess.Popen(command, env=env, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    return run


@pytest.fixture
def resolved(start):
    """As `start`, but waits: one line of output for each call."""

    def run(*calls, variables=()):
        return lines(start(*calls, variables=variables))

    return run


def lines(process):
    """What a process of `start` printed when it has ended."""
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    return out.splitlines()


@pytest.fixture
def ms_omni(environment, tmp_path):
    """`ms_omni("download", ...)`: the finished command in a process of its own."""

    def run(*arguments):
        command = [sys.executable, "-m", "ms_omni.cli", *map(str, arguments)]
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=100)

    return run


@pytest.fixture
def empty_caches(monkeypatch, tmp_path):
    """This process sees caches below tmp_path: hf and ms."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HUB_OFFLINE", "XDG_CACHE_HOME", "MS_OMNI_HUB"):
        monkeypatch.delenv(variable, raising=False)
    for variable, place in (("HOME", ""), ("HF_HOME", "hf"), ("MODELSCOPE_CACHE", "ms")):
        monkeypatch.setenv(variable, str(tmp_path / place))
