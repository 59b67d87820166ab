"""Downloads from a hub on loopback: what is fetched, what breaks off, who waits, and what is said when nothing can be had."""

import filecmp
import json
import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from packaging.version import Version
from safetensors.numpy import save_file

from ms_omni.errors import CheckpointError, InputError
from ms_omni.hub import is_wanted, resolve

from .conftest import NAME, SHARDS, lines, write_checkpoint

UNNEEDED = ("pytorch_model.bin", "training.pt", "README.md", "old.safetensors")


def assert_same(folder, repository):
    """All that a checkpoint needs is there, and nothing else is."""
    names = {item.name for item in Path(folder).iterdir() if not item.name.startswith(".")}
    assert names == {item.name for item in repository.iterdir() if item.is_file()} - set(UNNEEDED)
    assert not filecmp.cmpfiles(folder, repository, names, shallow=False)[1]


def test_what_is_needed_is_downloaded_once(hub, resolved, repository):
    settings, whole, again = resolved((NAME, {"weights": False}), (NAME, {}), (NAME, {}))
    assert settings == whole == again
    assert_same(whole, repository)
    fetched = hub.downloaded()
    assert sorted(fetched) == sorted(set(fetched)) and fetched.index(SHARDS[0]) > fetched.index("config.json")
    hub.asked.clear()
    assert resolved((NAME, {}), (NAME, {"weights": False})) == [whole, whole] and not hub.asked


def test_forced_and_revised(hub, resolved):
    first, other = resolved((NAME, {"revision": "v1", "weights": False}), (NAME, {"revision": "v9"}))
    assert Path(first).is_dir() and other == f"CheckpointError: {NAME} has no revision 'v9' (a branch, a tag or a commit)."
    hub.asked.clear()
    assert resolved((NAME, {"revision": "v1", "weights": False, "force_download": True})) == [first]
    assert "config.json" in hub.downloaded()


def test_a_download_that_broke_off_is_continued(hub, resolved, tmp_path):
    large = write_checkpoint(tmp_path / "repository")
    save_file({"w0": np.arange(6_000_000, dtype=np.float32)}, large / SHARDS[0])
    hub.models[NAME] = large
    hub.drops[SHARDS[0]] = [22_000_000, *[0] * 19]  # newer clients ask for the rest by themselves as long as any comes
    (said,) = resolved((NAME, {"tries": 1}))
    assert (
        said.startswith(f"CheckpointError: the download of {NAME} broke off")
        and "the same call goes on with the others" in said
    )
    hub.drops.clear()
    hub.asked.clear()
    (folder,) = resolved((NAME, {}))
    assert_same(folder, large)
    ranges = [part for method, path, part in hub.asked if method == "GET" and path.endswith(SHARDS[0])]
    begins_anew = Version(huggingface_hub.__version__) >= Version("2.4")  # the file that broke off, though no other
    assert ranges and (ranges[0] is None) == begins_anew
    assert "config.json" not in hub.downloaded()


def test_a_connection_that_drops_once_is_not_even_noticed(hub, resolved, repository):
    hub.drops[SHARDS[1]] = [1000, 300_000]
    (folder,) = resolved((NAME, {}))
    assert_same(folder, repository)


def test_of_several_processes_one_downloads(hub, start):
    processes = [start((NAME, {})) for _ in range(3)]
    assert len({lines(process)[0] for process in processes}) == 1
    fetched = hub.downloaded()
    assert sorted(fetched) == sorted(set(fetched))


def test_proxies_are_used(hub, resolved):
    beyond = {"HF_ENDPOINT": "http://hub.invalid", "NO_PROXY": "", "no_proxy": ""}
    (folder,) = resolved((NAME, {"weights": False, "proxies": {"http": hub.address}}), variables=beyond)
    assert Path(folder, "config.json").is_file()


def test_what_cannot_be_had(hub, resolved, tmp_path):
    pickled = write_checkpoint(tmp_path / "pickled")
    for file in (*SHARDS, "model.safetensors.index.json"):
        (pickled / file).unlink()
    hub.models["Someone/pickled"] = pickled
    hub.free["model-00001-of-00002.safetensors"] = 10**17
    unknown, old, large = resolved(("Qwen/Qwen3-Omni-30B-A3B-Instuct", {}), ("Someone/pickled", {}), (NAME, {}))
    assert "neither a folder on this machine nor a model on the hub" in unknown
    assert "Did you mean Qwen/Qwen3-Omni-30B-A3B-Instruct?" in unknown
    assert "Someone/pickled holds no safetensors but pytorch_model.bin" in old
    assert f"{NAME} takes 100000000.0 GB more" in large and "GB free" in large


def test_another_model_is_told_before_its_weights_come(hub, environment, tmp_path, ms_omni):
    other = write_checkpoint(tmp_path / "other")
    (other / "config.json").write_text(json.dumps({"model_type": "qwen2", "thinker_config": {}}))
    hub.models["Someone/other"] = other
    done = ms_omni("download", "Someone/other")
    assert done.returncode == 1 and "model_type 'qwen2'" in done.stderr
    assert not any(file.endswith(".safetensors") for file in hub.downloaded())


def test_the_command(hub, repository, tmp_path, ms_omni):
    done = ms_omni("download", NAME, "--local-dir", tmp_path / "here", "--revision", "v1")
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == tmp_path / "here"
    assert_same(tmp_path / "here", repository)


# -- without a network ---------------------------------------------------------------------------------------------------


def assert_has_both_commands(said):
    assert said.startswith("CheckpointError: ") and NAME in said
    assert f"hf download {NAME}" in said and f"modelscope download --model {NAME}" in said


@pytest.mark.parametrize(
    "variables, reason",
    [({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"), ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "refused")],
)
def test_without_a_network(resolved, hub, variables, reason):
    (said,) = resolved((NAME, {}), variables=variables)
    assert_has_both_commands(said)
    assert reason in said and "it is in no cache of this machine" in said and not hub.asked
    (settings,) = resolved((NAME, {"weights": False}))
    again, part = resolved((NAME, {"weights": False}), (NAME, {"revision": "main"}), variables=variables)
    assert again == settings
    assert_has_both_commands(part)
    assert f"holds a part of it only ({SHARDS[0]} is missing)" in part


def test_local_files_only(empty_caches):
    with pytest.raises(CheckpointError, match=r"local_files_only=True(.|\n)*hf download S/M --revision r"):
        resolve("S/M", local_files_only=True, revision="r")


# -- ModelScope ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def model_scope(monkeypatch, repository, tmp_path):
    """The calls of a `modelscope` that copies the repository."""
    calls = []

    def snapshot_download(model_id, **options):
        calls.append((model_id, options))
        return str(shutil.copytree(repository, tmp_path / "from_model_scope", dirs_exist_ok=True))

    module = type(shutil)("modelscope")
    module.snapshot_download = snapshot_download
    monkeypatch.setitem(__import__("sys").modules, "modelscope", module)
    monkeypatch.setenv("MS_OMNI_HUB", "modelscope")
    return calls


def test_model_scope(empty_caches, model_scope, repository):
    checked = []
    folder = resolve(NAME, revision="v2", check=lambda folder: checked.append(len(model_scope)))
    assert folder.name == "from_model_scope" and checked == [1]
    (name, settings), (_, whole) = model_scope
    assert name == NAME and settings["revision"] == "v2"
    assert "*.json" in settings["allow_patterns"] and "*.safetensors" not in settings["allow_patterns"]
    assert "*.safetensors" in whole["allow_patterns"]


def test_model_scope_is_not_installed(empty_caches, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "modelscope", None)
    monkeypatch.setenv("MS_OMNI_HUB", "modelscope")
    with pytest.raises(InputError, match="pip install modelscope"):
        resolve(NAME)
    monkeypatch.setenv("MS_OMNI_HUB", "elsewhere")
    with pytest.raises(InputError, match="expected one of huggingface, modelscope"):
        resolve(NAME)


@pytest.mark.parametrize(
    "file, subfolder, wanted",
    [
        ("config.json", "", "settings"),
        ("qwen.tiktoken", "", "settings"),
        ("additional_chat_templates/tools.jinja", "", "settings"),
        ("model.safetensors", "", "weights"),
        ("part/model.safetensors", "part", "weights"),
        ("part/config.json", "", None),
        ("config.json", "part", None),
        ("pytorch_model.bin", "", None),
        ("optimizer.pt", "", None),
        ("README.md", "", None),
    ],
)
def test_wanted_files(file, subfolder, wanted):
    assert is_wanted(file, subfolder, weights=True) == (wanted is not None)
    assert is_wanted(file, subfolder, weights=False) == (wanted == "settings")
