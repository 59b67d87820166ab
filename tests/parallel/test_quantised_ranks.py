"""Quantised checkpoints spread over ranks: codes, scales and offsets are cut where their matrix is, or as arrays (zero3)."""

import json

import numpy as np
import pytest

from ms_omni import Qwen3OmniMoeForConditionalGeneration
from ms_omni.checkpoint import convert, read_rank_index
from ms_omni.checkpoint.matching import plan_loading
from ms_omni.checkpoint.open import open_checkpoint
from ms_omni.checkpoint.parameters import arrays_of, read_codes
from ms_omni.checkpoint.rank_files import RankFile
from ms_omni.cli import main
from ms_omni.errors import InputError
from ms_omni.loading import Request
from ms_omni.modeling import ops
from ms_omni.parallel.export import convert_for_ranks, convert_from_ranks
from ms_omni.parallel.plan import split
from ms_omni.quantised import Storage
from ms_omni.tiny import write_tiny_checkpoint
from tests.checkpoint.conftest import tensors_of
from tests.parallel.answers import answers, compare
from tests.parallel.launching import ROOT, msrun

WANTED = {"names": ["text"], "spoken": ["text"]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{"int8", "int4": a quantised folder}, of odd sizes and of sizes that groups divide."""
    place = tmp_path_factory.mktemp("quantised")
    found = {}
    for quantize, geometry in (("int8", "odd"), ("int4", "tiny")):
        write_tiny_checkpoint(place / geometry, geometry=geometry, seed=4)
        convert(place / geometry, place / quantize, quantize=quantize, progress=False)
        found[quantize] = place / quantize
    return found


@pytest.mark.parametrize("plan", ["ep", "zero3"])
@pytest.mark.parametrize("quantize, ranks", [("int8", 3), ("int4", 2)])
def test_files_of_ranks_hold_codes_and_together_they_are_the_folder(plan, quantize, ranks, folders, tmp_path):
    convert_for_ranks(folders[quantize], tmp_path / "cut", ranks, plan, progress=False)
    index = read_rank_index(tmp_path / "cut")
    files = [RankFile(tmp_path / "cut", index, rank) for rank in range(ranks)]
    assert index.dtype == "BF16"  # what is no codes stays as it was
    assert (tmp_path / "cut" / "config.json").read_text() == (folders[quantize] / "config.json").read_text()
    if ops.keeps_bfloat16():
        config = Qwen3OmniMoeForConditionalGeneration.config_class.from_pretrained(tmp_path / "cut")
        request = Request(tmp_path / "cut", {}, {})
        planned = Qwen3OmniMoeForConditionalGeneration._plan(config, tmp_path / "cut", request, index)
        assert "thinker.model.embed_tokens.weight" in planned.bfloat16
    whole = open_checkpoint(folders[quantize])
    shapes = {name: tuple(shape) for name, shape in index.parameters.items()}
    held = dict.fromkeys(index.storages, 0)
    for fill in plan_loading(shapes, whole)[0]:
        if fill.parameter in held:
            codes = read_codes(whole, fill, Storage(**index.storages[fill.parameter])).codes
            parts = [file.array(fill.parameter) for file in files]
            assert {part.dtype for part in parts} == {codes.dtype}
            held[fill.parameter] = sum(part.size for part in parts) / codes.size
    assert held and min(held.values()) >= 1
    assert max(size for name, size in held.items() if ".experts." in name and name.startswith("thinker")) < 1.3
    convert_from_ranks(tmp_path / "cut", tmp_path / "back", progress=False)
    convert(folders[quantize], tmp_path / "published", progress=False)
    back, published = tensors_of(tmp_path / "back"), tensors_of(tmp_path / "published")
    assert back.keys() == published.keys()
    assert all(back[name].tobytes() == value.tobytes() for name, value in published.items())


def test_what_is_planned_for_files_of_ranks_is_what_is_planned_for_the_folder(folders, tmp_path, capsys):
    convert_for_ranks(folders["int4"], tmp_path / "cut", 2, "ep", progress=False)
    found = []
    for folder in (folders["int4"], tmp_path / "cut"):
        assert main(["plan", "--model", str(folder), "--context", "64"]) == 0
        found.append(capsys.readouterr().out.replace(str(folder), ""))
    assert found[0] == found[1] and "as stored: int4, int4 in groups of 64, int8" in found[0]


def test_a_group_is_never_cut():
    part = split(1, 16).slice((8, 96), 1, 3)
    assert arrays_of("o_proj.weight", (8, 96), Storage(8), part) == {"o_proj.weight": (8, 32), "o_proj.weight_scale": (8, 1)}
    assert arrays_of("o_proj.weight", (8, 96), Storage(4, 32), part)["o_proj.weight"] == (8, 16)
    for storage in (Storage(8, 48), Storage(4, 96)):
        with pytest.raises(InputError, match=r"inputs 32 to 64 of 96 do not begin and end with groups"):
            arrays_of("o_proj.weight", (8, 96), storage, part)
    rows = split(0, 2).slice((8, 96), 1, 2)
    assert arrays_of("q_proj.weight", (8, 96), Storage(4, 96), rows) == {
        "q_proj.weight": (4, 48),
        "q_proj.weight_scale": (4, 1),
    }
    experts = split(0).slice((5, 96, 64), 1, 2)
    assert arrays_of("mlp.experts.gate_up", (5, 96, 64), Storage(4, 32, offset="float32"), experts) == {
        "mlp.experts.gate_up": (3, 64, 48),
        "mlp.experts.gate_up_scale": (3, 64, 3),
        "mlp.experts.gate_up_offset": (3, 64, 3),
    }


@pytest.mark.slow
def test_ranks_answer_as_one_process_does(folders, tmp_path):
    """From the whole folder, which each rank reads its part of, and from files of its own."""
    for quantize, folder in folders.items():
        place = tmp_path / quantize
        for plan in ("ep", "zero3"):
            convert_for_ranks(folder, place / plan, 2, plan, progress=False)
        convert_for_ranks(folder, place / "other", 3, "ep", progress=False)
        (place / "whole").symlink_to(folder)
        names = ("whole", "ep", "zero3")
        job = msrun(
            2,
            place,
            ROOT / "tests/parallel/rank_worker.py",
            place,
            place / "other",
            json.dumps(WANTED),
            *(place / name for name in names),
        )
        assert job.code == 0, job.explain()
        expected = answers(Qwen3OmniMoeForConditionalGeneration.from_pretrained(folder), folder, **WANTED)
        for rank in range(2):
            for name in names:
                with np.load(place / f"{name}-rank{rank}.npz") as found:
                    compare(dict(found), expected)
