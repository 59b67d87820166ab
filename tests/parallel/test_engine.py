"""The engine in real msrun jobs: the answers of one process on every rank, and bit for bit those of a lone run on these ranks."""

import json

import numpy as np
import pytest

from tests.parallel.engine_worker import one_by_one, requests_of
from tests.parallel.launching import ROOT, STRATEGIES, msrun

WORKER = ROOT / "tests/parallel/engine_worker.py"
NAMES = ["text", "image_audio_video", "text"]
# A collective that waits for 7 s fails, as does a job that does nothing for 6 s; idle ranks wait for longer.
LIMITS = {"MS_NODE_TIMEOUT": "7", "MS_OMNI_HANG_S": "6"}
QUICK = [
    "together",
    "cancelled",
    "different",
    "traffic",
    "failing",
    "followed",
    "full",
    "told",
    "ahead",
    "interrupted",
    "interrupted early",
]
MORE = [*(name for name in QUICK if name != "full"), "dropped", "again"]  # caches fill in the same way for any geometry
JOBS = [
    ("ep", "tiny", 2, {"names": NAMES, "idle_s": 8, "work": QUICK}),
    pytest.param("ep", "odd", 3, {"names": [*NAMES, "audio_in_video"], "idle_s": 0, "work": MORE}, marks=pytest.mark.slow),
    pytest.param("zero3", "odd", 2, {"names": ["text"] * 2, "idle_s": 0, "work": ["interrupted"]}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("strategy, geometry, workers, wanted", JOBS)
def test_every_rank_answers_as_one_process_does(strategy, geometry, workers, wanted, checkpoint_of, model_of, tmp_path):
    if strategy not in STRATEGIES:
        pytest.skip("ZeRO-3 needs mindone: pip install -e .[parallel]")
    folder = checkpoint_of(geometry)
    limits = LIMITS if wanted["idle_s"] else {}
    job = msrun(workers, tmp_path, WORKER, folder, tmp_path, strategy, json.dumps(wanted), limit_s=900, environment=limits)
    assert job.code == 0, job.explain()
    expected = one_by_one(model_of(geometry), requests_of(folder, wanted["names"]))
    for rank in range(workers):
        with np.load(tmp_path / f"rank{rank}.npz") as found:
            check_answers(found, expected)
        check_facts(json.loads((tmp_path / f"rank{rank}.json").read_text()), workers)


@pytest.mark.slow
def test_ranks_find_the_likeliest_ids_on_their_devices(checkpoint_of, model_of, tmp_path):
    """Numpy stands for the devices. Ids are those of one process, greedy and sampled; codes where they are not drawn."""
    folder, wanted = checkpoint_of("tiny"), {"names": NAMES[:2], "idle_s": 0, "work": []}
    environment = {"MS_OMNI_OPS": "ascend-emulated", "PYTHONPATH": str(ROOT)}
    job = msrun(2, tmp_path, WORKER, folder, tmp_path, "ep", json.dumps(wanted), limit_s=900, environment=environment)
    assert job.code == 0, job.explain()
    expected = one_by_one(model_of("tiny"), requests_of(folder, wanted["names"]))
    for rank in range(2):
        with np.load(tmp_path / f"rank{rank}.npz") as found:
            assert all(np.array_equal(found[f"{index}.ids"], one["ids"]) for index, one in enumerate(expected))
            assert np.array_equal(found["0.codes"], expected[0]["codes"]) and found["1.codes"].size


@pytest.mark.slow
def test_keys_and_values_in_8_bits(checkpoint_of, model_of, tmp_path):
    folder, options = checkpoint_of("odd"), {"kv_cache_dtype": "int8"}
    work = ["together", "cancelled", "followed", "ahead"]
    wanted = {"names": [*NAMES, "audio_in_video"], "idle_s": 0, "work": work, "engine": options}
    job = msrun(2, tmp_path, WORKER, folder, tmp_path, "ep", json.dumps(wanted))
    assert job.code == 0, job.explain()
    expected = one_by_one(model_of("odd"), requests_of(folder, wanted["names"]), **options)
    for rank in range(2):
        with np.load(tmp_path / f"rank{rank}.npz") as found:
            check_answers(found, expected)
        facts = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert all(map(all, facts.values())) and facts.keys() == set(work), facts


def check_answers(found, expected):
    """Ids and codes are equal, samples nearly so."""
    for index, one in enumerate(expected):
        for key in ("ids", "codes"):
            assert np.array_equal(found[f"{index}.{key}"], one[key]), (index, key)
        np.testing.assert_allclose(found[f"{index}.samples"], one["samples"], rtol=0, atol=1e-5)


def check_facts(facts, workers):
    for name in facts.keys() - {"interrupted", "different", "traffic"}:
        assert all(facts[name]), (name, facts[name])
    assert facts["interrupted"] == "interrupted"
    if "traffic" in facts:
        assert f"ranks {list(range(1, workers))} were asked something else than rank 0" in facts["different"]
        check_traffic(*facts["traffic"])


def check_traffic(text, speech):
    # The last tick tells the end as well. Between them are nothing but one message of 2 KB each; where frames are made, this tick's
    # word and code 0 go at once: a second message, and one of 8 bytes per row.
    assert {(calls, nbytes) for calls, nbytes in text[:-1]} == {(1, 2048)}
    assert max(calls for calls, _ in speech[:-1]) == 3 and max(nbytes for _, nbytes in speech[:-1]) == 2 * 2048 + 8
