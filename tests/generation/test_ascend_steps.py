"""Steps as graphs over the emulated kernels of Ascend."""

import numpy as np
import pytest

from ms_omni.modeling.steps import Graph


@pytest.mark.slow
def test_graphs_of_ascend_answer_as_the_cells_do(ascend, tiny_checkpoint, tiny_model, ask, monkeypatch):
    from ms_omni import Qwen3OmniMoeForConditionalGeneration

    graphs, call = set(), Graph.__call__
    monkeypatch.setattr(Graph, "__call__", lambda graph, *arguments: graphs.add(graph) or call(graph, *arguments))
    model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(tiny_checkpoint, progress=False)
    model.compile_after = 2
    options = dict(
        max_new_tokens=6, talker_max_new_tokens=5, eos_token_id=[], talker_eos_token_id=[], talker_do_sample=False
    )
    ids, wave = model.generate(**ask("hello"), **options)
    kinds = sorted(type(graph).__name__ for graph in graphs)
    assert kinds == ["FrameGraph", "_PoolGraph", "_PoolGraph"]  # thinker and talker
    expected_ids, expected_wave = tiny_model.generate(**ask("hello"), **options)
    assert (ids == expected_ids).all() and np.abs(wave - expected_wave).max() < 1e-5
