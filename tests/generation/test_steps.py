"""The steps of generation: compiled and not, fused and not, and how many graphs there are."""

import numpy as np
import pytest

from ms_omni.modeling import ops
from ms_omni.modeling.steps import Graph, Step

FRAMES = 6


@pytest.fixture
def cells_only(monkeypatch):
    """No fused operators, as where there is no compiler, on other devices and under a parallel plan."""
    monkeypatch.setattr(ops, "prepare", lambda weights, kept=None: None)


@pytest.fixture
def graphs(monkeypatch):
    """What ran as a graph, in order: each cell, and the shapes of its inputs."""
    called, call = [], Graph.__call__

    def counted(graph, *arguments):
        called.append((graph, tuple(x.shape for x in arguments)))
        return call(graph, *arguments)

    monkeypatch.setattr(Graph, "__call__", counted)
    return called


@pytest.fixture
def model_after(tiny_checkpoint):
    """`model_after(n)`: whose steps are compiled after so many calls of a shape; its engine is made at the first answer."""
    from ms_omni import Qwen3OmniMoeForConditionalGeneration

    def load(compile_after):
        model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(tiny_checkpoint, progress=False)
        model.compile_after = compile_after
        return model

    return load


def speaking(greedy):
    return dict(
        max_new_tokens=6,
        talker_max_new_tokens=FRAMES,
        eos_token_id=[],
        talker_eos_token_id=[],
        seed=5,
        talker_do_sample=not greedy,
        do_sample=not greedy,
        top_k=20,
    )


@pytest.mark.parametrize("greedy", [pytest.param(True, marks=pytest.mark.slow), False])
def test_compiled_steps_give_the_same_answer(greedy, cells_only, graphs, model_after, ask):
    """Compiled in the middle of the first answer; the second finds its graphs again, on blocks that the first has used."""
    inputs, options, model = ask("hello"), speaking(greedy), model_after(2)
    ids, wave = model_after(None).generate(**inputs, **options)
    assert not graphs
    same_ids, same_wave = model.generate(**inputs, **options)
    assert (ids == same_ids).all()
    assert np.abs(wave - same_wave).max() < 1e-5
    cells = {graph for graph, _ in graphs}
    assert sorted(type(cell).__name__ for cell in cells) == ["FrameGraph", "_PoolGraph", "_PoolGraph"]
    first, count = set(graphs), len(graphs)
    again_ids, again_wave = model.generate(**inputs, **options)
    assert (again_ids == ids).all() and np.abs(again_wave - same_wave).max() < 1e-5
    assert set(graphs) == first and len(graphs) > 2 * count  # from its first token on


@pytest.mark.skipif(not hasattr(ops.implementation(), "decoder_step"), reason="no C++ compiler, so no fused steps")
@pytest.mark.parametrize("greedy", [True, False])
def test_fused_steps_give_the_same_answer_and_need_no_graph(greedy, graphs, model_after, ask, request):
    inputs, options = ask("hello"), speaking(greedy)
    fused, cells = model_after(0), model_after(None)
    ids, wave = fused.generate(**inputs, **options)
    assert not graphs
    request.getfixturevalue("cells_only")
    same_ids, same_wave = cells.generate(**inputs, **options)
    assert (ids == same_ids).all()
    assert np.abs(wave - same_wave).max() < 1e-5


def test_two_streams_at_once_run_in_the_same_graphs(cells_only, graphs, model_after, ask):
    inputs, options, model = ask("hello"), dict(max_new_tokens=5, eos_token_id=[], return_audio=False), model_after(2)
    alone = [event.token.tolist() for event in model.stream(**inputs, **options) if hasattr(event, "token")]
    first, second = (model.stream(**inputs, **options) for _ in range(2))
    pairs = [(a.token.tolist(), b.token.tolist()) for a, b in zip(first, second) if hasattr(a, "token")]
    assert pairs == [(token, token) for token in alone]
    assert len({graph for graph, _ in graphs}) == 1 and len(set(graphs)) <= 2  # of one row and of two


def test_calls_are_counted_by_shape():
    step, never = Step(compile_after=2), Step(compile_after=None)
    assert [step.due((1, 4)) for _ in range(4)] == [False, False, True, True]
    assert [step.due(shape) for shape in ((2, 4), (1, 8), (1, 4))] == [False, False, True]
    assert not any(never.due() for _ in range(100))
    assert Step(compile_after=0).due()
