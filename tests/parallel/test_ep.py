"""Expert parallelism in real msrun jobs: every rank says what one process says, holds its share, and agrees with rank 0."""

import json
import math

import numpy as np
import pytest

from ms_omni.config import Qwen3OmniMoeConfig
from ms_omni.engine.ranks import MESSAGE_INTS
from ms_omni.parallel.plan import expert_parallel_plan, splits_heads
from tests.parallel.answers import answers, compare
from tests.parallel.launching import ROOT, msrun

WORKER = ROOT / "tests/parallel/ep_worker.py"
# tiny on 4 ranks has fewer kv heads than ranks; odd has tied embeddings, dense layers, experts that do not divide, and
# attention heads that do not divide on 2 ranks and do on 3.
JOBS = [
    ("tiny", 2, {"names": ["text", "image_audio_video", "batch"], "spoken": ["audio_in_video"], "sampled": ["two_images"]}),
    pytest.param("odd", 2, {"names": ["image_audio_video"], "spoken": ["batch_audio_in_video"]}, marks=pytest.mark.slow),
    pytest.param("odd", 3, {"names": ["batch", "two_audios"], "spoken": ["text"]}, marks=pytest.mark.slow),
    pytest.param("tiny", 4, {"names": ["text", "video", "batch"], "sampled": ["audio_11s"]}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("geometry, workers, wanted", JOBS)
def test_every_rank_answers_as_one_process_does(geometry, workers, wanted, checkpoint_of, model_of, tmp_path):
    folder, model = checkpoint_of(geometry), model_of(geometry)
    other = checkpoint_of("odd" if geometry == "tiny" else "tiny")
    job = msrun(workers, tmp_path, WORKER, folder, other, tmp_path, json.dumps(wanted))
    assert job.code == 0, job.explain()
    expected = answers(model, folder, **wanted)
    facts = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(workers)]
    for rank in range(workers):
        with np.load(tmp_path / f"rank{rank}.npz") as found:
            compare(dict(found), expected)
    assert [fact["held"] for fact in facts] == planned_bytes(model, folder, workers)
    assert all(fact["token"] == token_traffic(model, workers) for fact in facts)
    check_refusals(facts)
    check_agreement(facts)


def planned_bytes(model, folder, workers):
    """What the table says that each rank holds, in float32."""
    shapes = {name: tuple(parameter.shape) for name, parameter in model.parameters_and_names()}
    plan = expert_parallel_plan(Qwen3OmniMoeConfig.from_pretrained(folder), workers)
    return [
        4 * sum(math.prod(part.local_shape) for part in plan.slices(shapes, rank, workers).values())
        for rank in range(workers)
    ]


def token_traffic(model, workers):
    """Collectives of one token, from the configuration: what `ProcessGroup.traffic` must count."""
    text = model.config.thinker_config.text_config
    blocks = sum(text.is_sparse_layer(layer) for layer in range(text.num_hidden_layers))
    if splits_heads(text, workers):
        blocks += text.num_hidden_layers
    gathers = 0 if text.tie_word_embeddings else 1
    calls = {"all_reduce": blocks, "all_gather": gathers, "broadcast": 1}
    nbytes = {
        "all_reduce": 4 * blocks * text.hidden_size,
        "all_gather": 8 * gathers * workers,
        "broadcast": 4 * MESSAGE_INTS,
    }
    return [calls, nbytes]


def check_refusals(facts):
    for fact in facts:
        said = fact["refused"]
        assert "weights: rank 0 has" in said["other weights"] and "configuration: " in said["other weights"]
        assert "rank 1: " in said["no folder"] and "is not a folder" in said["no folder"]
        assert "arguments: rank 0 has" in said["other arguments"]
        assert "[1" in fact["agreed"]["other requests"]


def check_agreement(facts):
    first = facts[0]
    for fact in facts:
        for what in ("drawn", "spoken"):
            assert fact["agreed"][what] == first["agreed"][what]
        assert fact["agreed"]["rank 0 stops"] == first["agreed"]["rank 0 stops"]
        assert fact["interrupted"] == ["interrupted", first["interrupted"][1]]
    assert len(first["agreed"]["rank 0 stops"]) == 3
    assert first["agreed"]["rank 1 stops"][-1] == "StreamEnd" and len(facts[1]["agreed"]["rank 1 stops"]) == 3
