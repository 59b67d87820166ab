"""Steps as graphs over the emulated kernels of Ascend."""

import numpy as np
import pytest


@pytest.mark.slow
def test_graphs_of_ascend_answer_as_the_cells_do(ascend, tiny_checkpoint, tiny_model, ask):
    from ms_omni import Qwen3OmniMoeForConditionalGeneration

    model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(tiny_checkpoint, progress=False)
    model.steps.compile_after = model.thinker.steps.compile_after = 2
    options = dict(
        max_new_tokens=6, talker_max_new_tokens=5, eos_token_id=[], talker_eos_token_id=[], talker_do_sample=False
    )
    ids, wave = model.generate(**ask("hello"), **options)
    expected_ids, expected_wave = tiny_model.generate(**ask("hello"), **options)
    assert (ids == expected_ids).all() and np.abs(wave - expected_wave).max() < 1e-5
    graphs = [step.graph for pool in (model.steps, model.thinker.steps) for _, step in pool.free]
    assert len(graphs) == 3 and None not in graphs
