"""ZeRO-3 in real msrun jobs: every rank says what one process says, and holds its share of everything."""

import importlib.util
import json

import numpy as np
import pytest
import soundfile

from tests.parallel.answers import answers, compare
from tests.parallel.launching import ROOT, msrun

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("mindone") is None, reason="ZeRO-3 needs mindone: pip install -e .[parallel]"
)
WORKER = ROOT / "tests/parallel/zero3_worker.py"
JOBS = {
    "pretrained": ("odd", 2, {"names": ["text", "image_audio_video", "batch"], "spoken": ["batch"], "sampled": ["text"]}),
    "parts": ("tiny", 2, {"names": ["text"], "spoken": ["audio_in_video"]}),
    "network": ("odd", 4, {"names": ["image_audio_video"], "spoken": ["text"]}),
}


@pytest.mark.slow
@pytest.mark.parametrize("how", JOBS)
def test_every_rank_answers_as_one_process_does(how, checkpoint_of, model_of, tmp_path):
    geometry, workers, wanted = JOBS[how]
    folder, model = checkpoint_of(geometry), model_of(geometry)
    job = msrun(workers, tmp_path, WORKER, folder, tmp_path, how, json.dumps(wanted))
    assert job.code == 0, job.explain()
    expected = answers(model, folder, **wanted)
    total = sum(parameter.nbytes for parameter in model.get_parameters())
    for rank in range(workers):
        with np.load(tmp_path / f"rank{rank}.npz") as found:
            compare(dict(found), expected)
        facts = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert facts["size"] == workers
        assert abs(facts["held"] * workers / total - 1) < 0.05


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_script_written_for_mindone(whole, tiny_checkpoint, tmp_path):
    """bfloat16 and hccl are what Ascend has: on CPU it says so and runs all the same, with one answer on all ranks."""
    media = ["--image", ROOT / "examples/picture.jpg", "--audio", ROOT / "examples/speech.wav"]
    script = ROOT / "tests/parallel/mindone_script.py"
    job = msrun(2, tmp_path, script, "--model_name", tiny_checkpoint, *media, *(["--whole"] if whole else []))
    assert job.code == 0, job.explain()
    said = {line for log in job.logs for line in log.splitlines() if line.startswith("answer ")}
    assert len(said) == 1
    assert all("no bfloat16 kernels on CPU" in log and "'hccl' is not this device's" in log for log in job.logs)
    wave, rate = soundfile.read(tmp_path / "output.wav")
    assert rate == 24000 and len(wave) > 0
