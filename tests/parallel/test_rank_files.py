"""Checkpoints cut for ranks: every file holds what its rank loads, together they are the checkpoint, and what does not
fit is said. Loading them in a job: `test_rank_jobs.py`."""

import json
from functools import partial

import ml_dtypes
import numpy as np
import pytest

from ms_omni.checkpoint import CheckpointReader, convert, read_rank_index
from ms_omni.checkpoint.convert import prepared
from ms_omni.checkpoint.matching import plan_loading
from ms_omni.checkpoint.parameters import read_slice
from ms_omni.checkpoint.rank_files import Cuttable, RankFile
from ms_omni.checkpoint.reader import RANKS_INDEX
from ms_omni.cli import main
from ms_omni.config import Qwen3OmniMoeConfig
from ms_omni.errors import CheckpointError, InputError
from ms_omni.parallel import group
from ms_omni.parallel.export import convert_for_ranks, convert_from_ranks
from ms_omni.parallel.mesh import Mesh
from ms_omni.parallel.plan import make_plan
from ms_omni.tiny import write_tiny_checkpoint
from tests.checkpoint.conftest import rewrite, tensors_of
from tests.checkpoint.test_convert import assert_same_tensors


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Published, in bfloat16 as the real one is, several shards. Tests must not change it."""
    folder = tmp_path_factory.mktemp("published") / "odd"
    write_tiny_checkpoint(folder, geometry="odd", seed=3, shards=3)
    return folder


def expected(folder, index, rank):
    """The parts of a rank, read from the whole checkpoint with the plan."""
    shapes = {name: tuple(shape) for name, shape in index.parameters.items()}
    config = Qwen3OmniMoeConfig.from_pretrained(folder)
    parts = make_plan(index.plan, config, shapes, index.ranks).slices(shapes, rank, index.ranks)
    reader = CheckpointReader(folder)
    return {
        fill.parameter: read_slice(reader, fill, np.dtype(np.float32), parts[fill.parameter])
        for fill in plan_loading(shapes, reader)[0]
    }


@pytest.mark.parametrize("plan, ranks", [("ep", 2), ("ep", 3), ("zero3", 2), ("zero3", 4)])
def test_each_file_is_what_its_rank_reads_and_all_are_the_checkpoint(plan, ranks, checkpoint, tmp_path):
    report = convert_for_ranks(checkpoint, tmp_path / "cut", ranks, plan, progress=False)
    index = read_rank_index(tmp_path / "cut")
    assert (index.plan, index.ranks, index.dtype, len(report.files)) == (plan, ranks, "F32", ranks)
    for rank in range(ranks):
        file = RankFile(tmp_path / "cut", index, rank)
        wanted = expected(checkpoint, index, rank)
        assert file.entries.keys() - set(index.whole) == wanted.keys()
        for name, value in wanted.items():
            assert (file.array(name) == value).all() and file.array(name).shape == value.shape, name
    convert_from_ranks(tmp_path / "cut", tmp_path / "back", progress=False)
    assert_same_tensors(checkpoint, tmp_path / "back")
    copied = {path.name for path in checkpoint.iterdir() if not path.name.startswith("model")}
    assert copied <= {path.name for path in (tmp_path / "cut").iterdir()}


@pytest.mark.parametrize("plan", ["ep", "zero3"])
def test_mixed_dtypes_and_constants_come_back_from_either_form(plan, tmp_path):
    write_tiny_checkpoint(tmp_path / "start", geometry="tiny")
    kinds = [ml_dtypes.bfloat16, np.float16, np.float32]
    tensors = {name: value.astype(kinds[at % 3]) for at, (name, value) in enumerate(tensors_of(tmp_path / "start").items())}
    tensors["code2wav.code_offset"] = np.arange(16, dtype=np.int64).reshape(1, 16, 1)
    rewrite(tmp_path / "start", tensors, shards=2)
    convert(tmp_path / "start", tmp_path / "stacked", progress=False)
    for form in ("start", "stacked"):
        convert_for_ranks(tmp_path / form, tmp_path / f"cut {form}", 2, plan, progress=False)
        convert_from_ranks(tmp_path / f"cut {form}", tmp_path / f"back {form}", progress=False)
        assert_same_tensors(tmp_path / "start", tmp_path / f"back {form}")


def test_a_thinker_alone(checkpoint, tmp_path):
    tensors = tensors_of(checkpoint)
    content = json.loads((checkpoint / "config.json").read_text())["thinker_config"]
    alone = tmp_path / "thinker"
    alone.mkdir()
    (alone / "config.json").write_text(json.dumps(content))
    rewrite(alone, {name.removeprefix("thinker."): tensors[name] for name in tensors if name.startswith("thinker.")})
    convert_for_ranks(alone, tmp_path / "cut", 2, "ep", progress=False)
    convert_from_ranks(tmp_path / "cut", tmp_path / "back", progress=False)
    assert_same_tensors(alone, tmp_path / "back")


def test_writing_to_a_mapped_tensor_leaves_the_file_alone(checkpoint, tmp_path):
    convert_for_ranks(checkpoint, tmp_path / "cut", 2, "ep", progress=False)
    index = read_rank_index(tmp_path / "cut")
    path = tmp_path / "cut" / index.file(0)
    before = path.read_bytes()
    RankFile(tmp_path / "cut", index, 0).array("thinker.model.norm.weight")[:] = 7
    assert path.read_bytes() == before


def test_from_the_command_line(checkpoint, tmp_path, capsys):
    cut, back = str(tmp_path / "cut"), str(tmp_path / "back")
    assert main(["convert", str(checkpoint), cut, "--shards", "2", "--plan", "zero3"]) == 0
    assert "in zero3 for 2 ranks form to" in capsys.readouterr().out
    assert main(["convert", cut, back]) == 0
    assert_same_tensors(checkpoint, back)


@pytest.fixture
def cut(checkpoint, tmp_path):
    convert_for_ranks(checkpoint, tmp_path / "cut", 2, "ep", progress=False)
    return tmp_path / "cut"


def test_a_process_or_a_wish_that_does_not_fit(cut, monkeypatch):
    """Said before anything is loaded."""
    with pytest.raises(
        InputError, match="cut for 2 ranks with the plan 'ep', and this process is to hold a model of its own"
    ):
        group.choose_strategy(cut, group.AUTO, {})
    monkeypatch.setattr(group, "under_msrun", lambda: True)
    monkeypatch.setattr(group, "start", lambda: Mesh(0, 3))
    with pytest.raises(InputError, match="cut for 2 ranks .* but 3 were started; start 2, or convert it back"):
        group.choose_strategy(cut, group.AUTO, {})
    for strategy, options, said in (("zero3", {}, "'zero3'"), ("ep", {"split_heads": False}, "'ep' split_heads=False")):
        with pytest.raises(InputError, match=f"but parallel is {said}; leave it out"):
            group.choose_strategy(cut, strategy, options)
    monkeypatch.setattr(group, "start", lambda: Mesh(0, 2))
    assert group.choose_strategy(cut, group.AUTO, {})[:2] == ("ep", {})


@pytest.mark.parametrize(
    "ranks, plan, said",
    [
        (1, "ep", "got 1 ranks, expected at least 2"),
        (2, "tp", "the plan is 'tp', expected one of 'ep', 'zero3'"),
        (99, "ep", "experts cannot be shared by 99 ranks"),
    ],
)
def test_what_cannot_be_cut(ranks, plan, said, checkpoint, tmp_path):
    with pytest.raises(InputError, match=said):
        convert_for_ranks(checkpoint, tmp_path / "cut", ranks, plan, progress=False)
    assert not (tmp_path / "cut").exists()


def test_files_that_are_damaged_missing_or_anothers(checkpoint, cut, tmp_path):
    with pytest.raises(CheckpointError, match="is cut for ranks already"):
        Cuttable(cut)
    index = read_rank_index(cut)
    convert_for_ranks(checkpoint, tmp_path / "other", 2, "zero3", progress=False)
    second = cut / index.file(1)
    second.write_bytes((tmp_path / "other" / index.file(1)).read_bytes())
    with pytest.raises(CheckpointError, match="belongs to another conversion than the index"):
        convert_from_ranks(cut, tmp_path / "back", progress=False)
    second.write_bytes((cut / index.file(0)).read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="damaged or incomplete"):
        RankFile(cut, index, 1)
    second.unlink()
    with pytest.raises(CheckpointError, match="is missing; .* was cut for 2 ranks"):
        RankFile(cut, index, 1)
    (cut / RANKS_INDEX).write_text("{}")
    with pytest.raises(CheckpointError, match="is not an index of rank files"):
        read_rank_index(cut)


def test_numbers_that_were_rounded_do_not_come_back(tmp_path):
    write_tiny_checkpoint(tmp_path / "start", dtype="float32")
    index_of = convert_for_ranks(tmp_path / "start", tmp_path / "cut", 2, "ep", progress=False)
    assert index_of.form == "ep for 2 ranks"
    index = read_rank_index(tmp_path / "cut")
    (tmp_path / "cut" / RANKS_INDEX).unlink()
    object.__setattr__(index, "exact", False)
    index.write(tmp_path / "cut")
    with pytest.raises(CheckpointError, match="was rounded to F32 when it was cut"):
        convert_from_ranks(tmp_path / "cut", tmp_path / "back", progress=False)


def test_a_checkpoint_rounded_while_it_is_cut_is_the_one_rounded_whole(tmp_path):
    write_tiny_checkpoint(tmp_path / "source", shards=1)
    prepare = partial(prepared, quantize="int4", group=32)
    convert_for_ranks(tmp_path / "source", tmp_path / "cut", 2, "ep", prepare=prepare, progress=False)
    convert_from_ranks(tmp_path / "cut", tmp_path / "back", progress=False)
    convert(tmp_path / "source", tmp_path / "small", quantize="int4", group=32, progress=False)
    convert(tmp_path / "small", tmp_path / "wanted", progress=False)
    assert_same_tensors(tmp_path / "wanted", tmp_path / "back")
