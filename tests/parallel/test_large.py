"""What only shows on a larger checkpoint, on request: `MS_OMNI_TEST_LARGE=DIR pytest tests/parallel/test_large.py -s`, where
`ms-omni tiny DIR --geometry mid` made DIR (2 GB). Two processes take 7 GB of memory and some minutes."""

import json
import os

import pytest

from ms_omni.checkpoint.shapes import parameter_shapes
from ms_omni.config import Qwen3OmniMoeConfig
from ms_omni.parallel.predict import predict
from tests.parallel.launching import ROOT, STRATEGIES, msrun

FOLDER = os.environ.get("MS_OMNI_TEST_LARGE")
WORKERS = 2
MB = 1e6

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not FOLDER, reason="MS_OMNI_TEST_LARGE names no checkpoint")]


def test_memory_traffic_and_speed(tmp_path):
    job = msrun(WORKERS, tmp_path, ROOT / "tests/parallel/large_worker.py", FOLDER, tmp_path, *STRATEGIES, limit_s=900)
    assert job.code == 0, job.explain()
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(WORKERS)]
    print(*(json.dumps(rank) for rank in ranks), sep="\n")
    config = Qwen3OmniMoeConfig.from_pretrained(FOLDER)
    for strategy in STRATEGIES:
        expected = predict(config, parameter_shapes(config), strategy, WORKERS, 256, 4)
        for rank in ranks:
            found = rank[strategy]
            assert found["peak"] <= found["held"] + 300 * MB
            assert found["held"] == pytest.approx(expected.held, rel=0.02)
            assert found["sent"] == expected.traffic.total_bytes
    if "zero3" in STRATEGIES:
        total = predict(config, parameter_shapes(config), "ep", 1, 256, 4).held
        for rank in ranks:
            assert rank["zero3"]["held"] * WORKERS == pytest.approx(total, rel=0.05)
            assert rank["zero3"]["sent"] >= 1000 * rank["ep"]["sent"]
            assert rank["zero3"]["seconds"] >= 3 * rank["ep"]["seconds"]
