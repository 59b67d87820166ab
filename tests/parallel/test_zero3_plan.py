"""The table of ZeRO-3: every parameter is placed once, the weights are shared out evenly, blocks are cells."""

import pytest

from ms_omni.errors import InputError
from ms_omni.parallel.mesh import Mesh
from ms_omni.parallel.plan import block_of, zero3_plan
from ms_omni.parallel.zero3 import prepare_network, runs_of


@pytest.fixture(params=["tiny", "odd"])
def model(request, model_of):
    return model_of(request.param)


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
def test_every_rank_holds_its_share_of_each_component(model, ranks):
    for prefix in ("thinker.", "talker.", "code2wav."):
        part = getattr(model, prefix[:-1])
        runs = runs_of(part, prefix, Mesh(ranks - 1, ranks))
        assert {name.removeprefix(prefix) for name in runs} == {name for name, _ in part.parameters_and_names()}
        held, total = sum(run.length for run in runs.values()), sum(run.elements for run in runs.values())
        assert total <= held * ranks <= 1.05 * total


def test_blocks_are_cells_of_the_model_and_tables_are_embeddings(model):
    cells = dict(model.cells_and_names())
    tables = set()
    for name, _ in model.parameters_and_names():
        block = block_of(name)
        assert block is None or (name.startswith(block + ".") and block in cells)
        tables |= {type(cells[name.rpartition(".")[0]]).__name__} if block is None else set()
    assert tables == {"Embedding"}


def test_a_parameter_that_no_row_places_is_an_error():
    shapes = {"code2wav.code_embedding.weight": (8, 4), "code2wav.newcomer.weight": (2, 2)}
    with pytest.raises(InputError, match=r"code2wav\.newcomer\.weight: placed by no rows"):
        zero3_plan(shapes).slices(shapes, 0, 2)


def test_only_the_model_and_its_components_can_be_prepared(monkeypatch, tiny_model):
    monkeypatch.setattr("ms_omni.parallel.zero3.network_group", lambda: object())
    with pytest.raises(InputError, match="got a Qwen3OmniMoeVisionEncoder; expected the model, or its thinker"):
        prepare_network(tiny_model.thinker.visual, zero_stage=3)
