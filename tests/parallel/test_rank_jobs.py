"""Real msrun jobs that start from a checkpoint cut for their ranks: the answers of one process with the whole checkpoint."""

import json

import numpy as np
import pytest

from ms_omni.parallel.export import convert_for_ranks
from tests.parallel.answers import answers, compare
from tests.parallel.launching import ROOT, STRATEGIES, msrun

WANTED = {"names": ["image_audio_video"], "spoken": ["text"]}


@pytest.mark.slow
@pytest.mark.parametrize("geometry, workers", [("odd", 2), ("tiny", 4)])
def test_ranks_start_from_files_of_their_own(geometry, workers, checkpoint_of, model_of, tmp_path):
    folder, model = checkpoint_of(geometry), model_of(geometry)
    for strategy in STRATEGIES:
        convert_for_ranks(folder, tmp_path / strategy, workers, strategy, progress=False)
    convert_for_ranks(folder, tmp_path / "other", workers + 1, "ep", progress=False)
    cut = [tmp_path / strategy for strategy in STRATEGIES]
    job = msrun(
        workers, tmp_path, ROOT / "tests/parallel/rank_worker.py", tmp_path, tmp_path / "other", json.dumps(WANTED), *cut
    )
    assert job.code == 0, job.explain()
    expected = answers(model, folder, **WANTED)
    for rank in range(workers):
        facts = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert f"is cut for {workers + 1} ranks with the plan 'ep', but {workers} were started" in facts["refused"]
        for strategy in STRATEGIES:
            with np.load(tmp_path / f"{strategy}-rank{rank}.npz") as found:
                compare(dict(found), expected)
            whole, vocoder, alone = facts[strategy]["held"]
            assert facts[strategy]["strategy"] == strategy and vocoder == alone
            stored = (tmp_path / strategy / f"rank-{rank:05d}-of-{workers:05d}.safetensors").stat().st_size
            assert whole < stored < whole + 500_000  # the rest is its header
