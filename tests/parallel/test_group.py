"""Who holds a model together, decided before anything is loaded."""

import numpy as np
import pytest

from ms_omni import Qwen3OmniMoeForConditionalGeneration
from ms_omni.errors import CheckpointError, InputError
from ms_omni.parallel import group
from ms_omni.parallel.group import ProcessGroup, fingerprint, join
from ms_omni.parallel.mesh import Mesh
from tests.checkpoint.published_folders import MODULES, N, numbers, scales, write


def test_a_process_of_its_own():
    assert join() is None and join(None) is None


@pytest.mark.parametrize(
    "strategy, said",
    [
        ("ep", "parallel is 'ep', but this process was started alone; start several with `ms-omni launch` or msrun"),
        ("zero3", "parallel is 'zero3', but this process was started alone"),
        ("tp", "parallel is 'tp', expected one of 'ep', 'zero3', None or 'auto'"),
    ],
)
def test_what_one_process_cannot_be_is_said_before_loading(strategy, said, tmp_path):
    with pytest.raises(InputError, match=said):
        Qwen3OmniMoeForConditionalGeneration.from_pretrained(tmp_path, parallel=strategy)


def test_under_msrun_experts_are_shared_unless_something_else_is_wanted(monkeypatch):
    monkeypatch.setattr(group, "under_msrun", lambda: True)
    monkeypatch.setattr(group, "start", lambda: Mesh(0, 1))
    assert join() is None and join("zero3") is None  # one process that msrun started
    monkeypatch.setattr(group, "start", lambda: Mesh(1, 2))
    monkeypatch.setattr(group, "ProcessGroup", lambda mesh, strategy, options: (mesh.rank, strategy, options))
    assert join(split_heads=False) == (1, "ep", {"split_heads": False}) and join("zero3") == (1, "zero3", {})
    monkeypatch.setattr(group, "_is_data_parallel", lambda: True)
    assert join() is None and join("ep") == (1, "ep", {}) and join(None) is None


class Said:
    """A comm through which the others have said the same as this rank, but for what `change` does."""

    rank, size = 0, 3

    def __init__(self, change):
        self.change = change

    def gather_bytes(self, data):
        return [data, data, self.change(data)]


def group_of(change):
    found = object.__new__(ProcessGroup)
    found.strategy, found.options, found.comm = "ep", {}, Said(change)
    return found


def test_all_ranks_must_mean_the_same_model(tiny_checkpoint):
    assert group_of(lambda data: data).check(tiny_checkpoint, "x", lambda: "config") == "config"
    version = fingerprint(tiny_checkpoint)["MindSpore"].encode()
    with pytest.raises(InputError, match=r"MindSpore: rank 0 has .*, rank 1 has .*, rank 2 has 9\.9"):
        group_of(lambda data: data.replace(b'"MindSpore": "' + version, b'"MindSpore": "9.9')).check(
            tiny_checkpoint, "x", int
        )
    with pytest.raises(CheckpointError, match="rank 2: CheckpointError: gone"):
        group_of(lambda data: b'{"error": "CheckpointError: gone"}').check(tiny_checkpoint, "x", int)


@pytest.mark.filterwarnings("ignore:.*quantised")
def test_a_checkpoint_whose_files_have_other_names_is_told_apart(tmp_path):
    """msModelSlim calls its files `quant_model_weight_*.safetensors`."""
    found = []
    for seed in (1, 2):
        parts = {"weight": numbers(7, seed=seed).astype(np.int8), "weight_scale": scales((N, 1), np.float32)}
        files = {"quant_model_description.json": {f"{MODULES[0]}.{word}": "W8A8_DYNAMIC" for word in parts}}
        file = "quant_model_weight_w8a8.safetensors"
        found.append(fingerprint(write(tmp_path / str(seed), {MODULES[0]: parts}, {}, files, file=file)))
    assert found[0]["configuration"] == found[1]["configuration"] and found[0]["weights"] != found[1]["weights"]
