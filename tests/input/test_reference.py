"""Our processor against values recorded with transformers 5.x (tests/reference/record_processor.py).

Where the reference is wrong ours is the fixed behaviour: it gives one frame rate to all videos of a call, so each case
has one rate; 4.57 cut sound at 30 s, 5.x does not (case audio_35s).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from tests.reference.processor_cases import cases

DATA = Path(__file__).resolve().parent.parent / "reference" / "data" / "processor"
CASES = cases()
KEPT_VALUES = 1500
ONE_GREY_LEVEL = 2 / 255 * 1.01  # of pixels normalised to -1..1


@pytest.fixture(scope="module")
def recorded():
    with np.load(DATA / "sampled.npz") as sampled:
        return json.loads((DATA / "exact.json").read_text()), dict(sampled)


def our_outputs(processor, case):
    arguments = {key: value for key, value in case.items() if key != "sound_of_video"}
    if "sound_of_video" in case:
        arguments |= {"use_audio_in_video": True, "audio_from_video_indices": case["sound_of_video"]}
    return processor(**arguments)


@pytest.mark.parametrize("name", CASES)
def test_equals_reference(processor, recorded, name):
    exact, sampled = recorded
    outputs = our_outputs(processor, CASES[name])
    assert set(outputs) == set(exact[name])
    for key, entry in exact[name].items():
        value = outputs[key]
        assert list(value.shape) == entry["shape"], key
        if "values" in entry:
            np.testing.assert_array_equal(value, np.array(entry["values"]), err_msg=key)
        elif "sha256" in entry:
            assert hashlib.sha256(value.astype(np.int64).tobytes()).hexdigest() == entry["sha256"], key
        else:
            places = np.unique(np.linspace(0, value.size - 1, min(value.size, KEPT_VALUES)).astype(np.int64))
            difference = np.abs(value.reshape(-1)[places] - sampled[f"{name}.{key}"])
            if key == "input_features":
                assert difference.max() < 1e-4
            else:
                assert difference.max() <= ONE_GREY_LEVEL and difference.mean() < 1e-3
