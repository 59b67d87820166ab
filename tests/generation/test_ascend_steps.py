"""Steps as graphs over the emulated kernels of Ascend; where they are marked for captured launches as well."""

import mindspore as ms
import numpy as np
import pytest

from ms_omni import runtime
from ms_omni.modeling import steps


@pytest.mark.parametrize("capture", [False, True])
def test_graphs_of_ascend_answer_as_the_cells_do(capture, ascend, tiny_checkpoint, tiny_model, ask, monkeypatch):
    from ms_omni import Qwen3OmniMoeForConditionalGeneration

    monkeypatch.setattr(steps, "CAPTURE", capture)
    model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(tiny_checkpoint, progress=False)
    model.steps.compile_after = model.thinker.steps.compile_after = 2
    options = dict(
        max_new_tokens=6, talker_max_new_tokens=5, eos_token_id=[], talker_eos_token_id=[], talker_do_sample=False
    )
    ids, wave = model.generate(**ask("hello"), **options)
    expected_ids, expected_wave = tiny_model.generate(**ask("hello"), **options)
    assert (ids == expected_ids).all() and np.abs(wave - expected_wave).max() < 1e-5
    graphs = [step.graph for pool in (model.steps, model.thinker.steps) for _, step in pool.free]
    assert len(graphs) == 3 and {graph.phase == "increment" for graph in graphs} == {capture}


def test_capture_is_switched_on_for_ascend_if_it_is_asked_for(monkeypatch):
    switched = []
    monkeypatch.setattr(ms.runtime, "set_kernel_launch_capture", switched.append)
    monkeypatch.setattr(ms, "get_context", lambda name: "Ascend")
    runtime.setup()
    monkeypatch.setenv("MS_OMNI_CAPTURE", "1")
    runtime.setup()
    assert switched == [True]
