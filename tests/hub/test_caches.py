"""Names that a cache answers, and paths with a typing error: no client of a hub is imported, no network is used."""

import json
import shutil
import sys

import pytest

from ms_omni.errors import CheckpointError, InputError
from ms_omni.hub import resolve
from ms_omni.hub.names import INDEX_FILE, find_cached

from .conftest import NAME, SHARDS

COMMIT = "89abcdef" * 5
HF = f"hf/hub/models--{NAME.replace('/', '--')}"
MASKED = NAME.replace(".", "___")


@pytest.fixture(autouse=True)
def no_client(empty_caches, monkeypatch):
    """Importing a client of a hub is an error."""
    for module in ("huggingface_hub", "modelscope"):
        monkeypatch.setitem(sys.modules, module, None)


@pytest.fixture
def put(tmp_path, repository):
    """`put(place)`: a copy of the checkpoint at that place of the machine's home."""
    return lambda place: shutil.copytree(repository, tmp_path / place)


def refer(tmp_path, revision, commit=COMMIT):
    reference = tmp_path / HF / "refs" / revision
    reference.parent.mkdir(parents=True, exist_ok=True)
    reference.write_text(commit)


def offline(name=NAME, **options):
    with pytest.raises(CheckpointError, match="nothing can be downloaded") as caught:
        resolve(name, local_files_only=True, **options)
    return str(caught.value)


def test_hugging_face(put, tmp_path):
    folder = put(f"{HF}/snapshots/{COMMIT}")
    offline()  # nothing says that this commit is main
    assert resolve(NAME, revision=COMMIT) == folder
    refer(tmp_path, "main")
    refer(tmp_path, "refs/pr/3")
    assert resolve(NAME) == resolve(NAME, revision="refs/pr/3") == resolve(NAME, weights=False) == folder
    offline(revision="v1")


@pytest.mark.parametrize(
    "variable, value", [("HF_HUB_CACHE", "elsewhere"), ("HUGGINGFACE_HUB_CACHE", "elsewhere"), ("cache_dir", "elsewhere")]
)
def test_where_hugging_face_keeps_it(put, tmp_path, monkeypatch, variable, value):
    folder = put(f"elsewhere/models--{NAME.replace('/', '--')}/snapshots/main")
    options = {"cache_dir": tmp_path / value} if variable == "cache_dir" else {}
    monkeypatch.setenv(variable, str(tmp_path / value))
    assert resolve(NAME, **options) == folder


@pytest.mark.parametrize("missing", [SHARDS[1], "config.json"])
def test_only_a_complete_copy_counts(put, tmp_path, missing):
    folder = put(f"{HF}/snapshots/{COMMIT}")
    refer(tmp_path, "main")
    (folder / missing).unlink()
    assert f"{missing} is missing" in offline()
    second = put(f"ms/models/{MASKED}")
    assert resolve(NAME) == second


@pytest.mark.parametrize("sharded", [True, False])
def test_files_of_modelslim(put, tmp_path, sharded):
    """It has names of its own for the weights and their index."""
    folder = put(f"{HF}/snapshots/{COMMIT}")
    refer(tmp_path, "main")
    (folder / INDEX_FILE).unlink()
    for name in SHARDS:
        (folder / name).unlink()
    offline()
    names = ["quant_model_weights-00001-of-00002.safetensors", "quant_model_weights-00002-of-00002.safetensors"]
    names = names if sharded else ["quant_model_weight_w8a8.safetensors"]
    if sharded:
        index = {"weight_map": {f"{number}.weight": name for number, name in enumerate(names)}}
        (folder / "quant_model_weights.safetensors.index.json").write_text(json.dumps(index))
        offline()
    for name in names:
        (folder / name).touch()
    assert resolve(NAME) == folder


def test_a_dangling_link_is_no_file(put, tmp_path):
    folder = put(f"{HF}/snapshots/{COMMIT}")
    refer(tmp_path, "main")
    (folder / SHARDS[0]).unlink()
    (folder / SHARDS[0]).symlink_to(tmp_path / "blob")
    offline()


@pytest.mark.parametrize("index", ["{", "[]", '{"weight_map": 3}'])
def test_a_damaged_index_is_incomplete(put, index):
    folder = put(f"ms/models/{NAME}")
    (folder / INDEX_FILE).write_text(index)
    offline()


@pytest.mark.parametrize(
    "place",
    [
        f"ms/models/{MASKED}",
        f"ms/models/{NAME}",
        f"ms/{NAME}",
        f"ms/hub/{NAME}",
        f"ms/hub/models/{MASKED}",
        f"ms/models/{NAME.replace('/', '--')}/snapshots/master",
    ],
)
def test_model_scope(put, place):
    folder = put(place)
    assert resolve(NAME) == folder


@pytest.mark.parametrize("place", ["models/", ""])
def test_model_scope_where_nobody_set_anything(put, monkeypatch, place):
    monkeypatch.delenv("MODELSCOPE_CACHE")
    folder = put(f".cache/modelscope/hub/{place}{MASKED}")
    assert resolve(NAME) == folder


def test_model_scope_into_a_folder_of_ones_own(put, tmp_path):
    folder = put(f"mine/{NAME}")
    assert resolve(NAME, cache_dir=tmp_path / "mine") == folder


def test_revisions_of_model_scope(put):
    folder = put(f"ms/models/{MASKED}")
    assert resolve(NAME, revision="master") == folder
    offline(revision="v2")
    (folder / ".mv").write_text("Revision:v2,CreatedAt:1758000000")
    assert resolve(NAME, revision="v2") == folder


def test_one_file_of_weights_and_a_subfolder(tmp_path):
    folder = tmp_path / f"ms/models/{NAME}"
    (folder / "part").mkdir(parents=True)
    (folder / "part/config.json").write_text("{}")
    offline(subfolder="part")
    (folder / "part/model.safetensors").write_bytes(b"")
    assert resolve(NAME, subfolder="part") == folder / "part"
    assert resolve(folder, subfolder="part") == folder / "part"
    with pytest.raises(CheckpointError, match="has no subfolder 'other'"):
        resolve(folder, subfolder="other")


# -- paths ---------------------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with examples/miniature and a file."""
    (tmp_path / "work/examples/miniature").mkdir(parents=True)
    (tmp_path / "work/weights.safetensors").write_bytes(b"")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def test_a_folder_wins_over_a_name(here, put):
    put(f"ms/models/{NAME}")
    folder = here / NAME
    folder.mkdir(parents=True)
    assert resolve(NAME).resolve() == folder
    assert resolve("examples/miniature").resolve() == resolve(str(here / "examples/miniature"))


@pytest.mark.parametrize(
    "path, near",
    [
        ("examples/miniatur", "examples/miniature"),
        ("example/miniature", "examples/miniature"),
        ("./examples/Miniture", "examples/miniature"),
        ("~/work/exampels/miniature", "examples/miniature"),
        ("a/b/c", None),
        ("nowhere", None),
        ("/nowhere/at/all", None),
        ("~nosuchuser/x", None),
        ("..", None),
        ("Qwen3-Omni-30B-A3B-Instruct", "Qwen/Qwen3-Omni-30B-A3B-Instruct"),
        ("qwen3-omni-30b-a3b-thinking", "Qwen/Qwen3-Omni-30B-A3B-Thinking"),
    ],
)
def test_a_typing_error_in_a_path_is_told(here, path, near):
    if path == "..":
        assert resolve(path).is_dir()
        return
    with pytest.raises(CheckpointError, match="is not a folder on this machine") as caught:
        resolve(path)
    assert (near or "Did you mean") in str(caught.value) if near else "Did you mean" not in str(caught.value)


def test_the_publisher_is_no_folder(here):
    (here / "Qwen/Qwen3-Omni-30B-A3B-Instruct").mkdir(parents=True)
    assert "hf download Qwen/Qwen3-Omni-30B-A3B-Thinking" in offline("Qwen/Qwen3-Omni-30B-A3B-Thinking")


def test_a_file_is_no_checkpoint(here):
    with pytest.raises(CheckpointError, match="is a file; expected the checkpoint's folder"):
        resolve("weights.safetensors")


@pytest.mark.parametrize("wrong", [None, "", "  ", 3, ["a"], "a\0b"])
def test_neither_name_nor_path(wrong):
    with pytest.raises(InputError):
        resolve(wrong)


@pytest.mark.parametrize(
    "address",
    ["https://huggingface.co/Qwen/X-1", "https://www.modelscope.cn/models/Qwen/X-1/summary", "http://h/Qwen/X-1/tree/main"],
)
def test_an_address_names_the_model(address):
    with pytest.raises(InputError, match=r"give the model's name alone: Qwen/X-1$"):
        resolve(address)


def test_settings_are_enough_for_a_processor(put, tmp_path):
    folder = put(f"ms/models/{NAME}")
    for shard in SHARDS:
        (folder / shard).unlink()
    offline()
    assert resolve(NAME, weights=False) == folder
    (folder / "tokenizer.json").unlink()
    assert find_cached(NAME, weights=False) is None
    assert resolve(NAME, weights=False, local_files_only=True) == folder  # better than nothing: what lacks is told later
    assert json.loads((folder / "config.json").read_text())["thinker_config"]
