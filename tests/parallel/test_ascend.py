"""Two ranks over packed weights on emulated kernels of Ascend answer as one process on CPU does."""

import json

import numpy as np
import pytest

from tests.generation import small
from tests.parallel.engine_worker import engine_of, run
from tests.parallel.launching import ROOT, msrun

WORKER = ROOT / "tests/parallel/ascend_worker.py"
HEADS, LAYERS, WIDTH = 4, 2, 64  # of the thinker; the talker is whole on each rank and has as many heads


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small.write(tmp_path_factory.mktemp("small") / "checkpoint")


@pytest.fixture(scope="module")
def expected(folder):
    from ms_omni import Qwen3OmniMoeForConditionalGeneration

    model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(folder, compile_steps=False, progress=False)
    return run(engine_of(model, max_rows=4), small.requests_of(folder))


@pytest.mark.parametrize(
    "split_heads, compile_after, rows, callers",
    [
        pytest.param(True, None, 4, 3, marks=pytest.mark.short),
        pytest.param(True, None, 4, len(small.CALLERS), marks=pytest.mark.slow),
        pytest.param(False, None, 4, len(small.CALLERS), marks=pytest.mark.slow),
        pytest.param(True, 0, 1, 2, marks=pytest.mark.slow),
    ],
)
def test_ranks_answer_as_one_process_on_cpu(split_heads, compile_after, rows, callers, folder, expected, tmp_path):
    """All ranks are asked, then rank 0 alone, by one thread and by several, then `generate`."""
    wanted = {"split_heads": split_heads, "compile_after": compile_after, "rows": rows, "callers": callers}
    job = msrun(2, tmp_path, WORKER, folder, tmp_path, json.dumps(wanted), environment={"MS_OMNI_OPS": "ascend-emulated"})
    assert job.code == 0, job.explain()
    expected = expected[:callers]
    for rank in range(2):
        facts = json.loads((tmp_path / f"rank{rank}.json").read_text())
        heads, sums = (HEADS // 2, 2 * LAYERS) if split_heads else (HEADS, LAYERS)
        assert facts["steps"] == [[heads, sums], [HEADS, 0]]
        assert facts["token"] == [sums, sums * WIDTH * 4]
        assert all(facts["generate"]) and all(facts.get("followed", []))
        # Of thinker, talker and frames for a row at least; `generate` has buffers of its own.
        started, answered, generated = facts["graphs"]
        assert started == answered and ((started >= 3 and generated >= 2) if compile_after == 0 else started == 0)
        with np.load(tmp_path / f"rank{rank}.npz") as arrays:
            found = [{key: arrays[f"{n}.{key}"] for key in expected[n]} for n in range(len(expected))]
        small.check_sure(found, expected)
