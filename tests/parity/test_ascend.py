"""The whole model along the path that it takes on Ascend, its kernels emulated, against the reference.

Some cases run here; `test_all_of_it` (slow) runs the tests of the model's numbers that way.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ms_omni.modeling.ops.ascend_attention import packed_attention_by_runs
from ms_omni.modeling.ops.reference import Reference
from tests.ascend_emulation.kernel import Kernel
from tests.parity import test_speech as speech
from tests.parity import test_thinker as thinker

ROOT = Path(__file__).resolve().parents[2]
THINKER = {
    *(
        "FusedInferAttentionScore",
        "FlashAttentionScore",
        "RmsNorm",
        "LayerNormExt",
        "GeluExt",
        "Swiglu",
        "Dense",
        "Conv2DExt",
    ),
    *("RotaryPositionEmbedding", "TopkExt", "MoeInitRoutingV2", "GroupedMatmulV4", "MoeTokenUnpermute"),
}
"""Primitives that reading all media takes."""


@pytest.fixture
def called(ascend, monkeypatch):
    """Names of the primitives that have been called."""
    names, call = set(), Kernel.__call__

    def counting(kernel, *tensors):
        names.add(kernel.called[0])
        return call(kernel, *tensors)

    monkeypatch.setattr(Kernel, "__call__", counting)
    return names


def test_thinker(called, model, thinker_values, build, close):
    """All media in one prompt; `test_speech` continues on caches."""
    thinker.test_forward(model, thinker_values, build, close, "image_audio_video")
    assert called >= THINKER


def test_encoders_where_packed_sequences_have_no_kernel(ascend, called, model, thinker_values, build, close, use_operators):
    class ByRuns(ascend):
        packed_attention = staticmethod(packed_attention_by_runs)

    use_operators(ByRuns)
    thinker.test_forward(model, thinker_values, build, close, "two_audios")
    assert "FlashAttentionScore" not in called


def test_speech(ascend, model, speech_values, build, config, close):
    """A padded batch with all media: tokens and codes are equal, talker, predictor and code2wav within their tolerances."""
    key = "batch"
    spoken = speech.Spoken(model, build(speech_values, key), speech_values.notes[f"{key}/arguments"], config)
    speech.test_speech(spoken, speech_values, config, key, close)


def test_greedy_answers_equal_those_of_the_reference_operators(ascend, tiny_model, use_operators):
    config = tiny_model.config
    prompt = [
        config.im_start_token_id,
        config.user_token_id,
        31,
        32,
        33,
        config.im_end_token_id,
        config.im_start_token_id,
        config.assistant_token_id,
        31,
    ]
    options = dict(
        input_ids=np.array([prompt]),
        max_new_tokens=12,
        eos_token_id=[],
        talker_max_new_tokens=6,
        talker_eos_token_id=[],
        talker_do_sample=False,
    )
    ids, wave = tiny_model.generate(**options)
    use_operators(Reference)
    expected_ids, expected_wave = tiny_model.generate(**options)
    assert (ids == expected_ids).all() and ids.shape == (1, len(prompt) + 12)
    np.testing.assert_allclose(wave, expected_wave, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_all_of_it():
    """Parity, generation on caches, and the cells, in a process of their own; `test_ascend_steps.py` has compiled steps."""
    tests = [
        "tests/parity",
        "tests/generation/test_speech.py",
        "tests/modeling/test_code2wav.py",
        "tests/modeling/test_prefill.py",
        "tests/modeling/test_thinker_inputs.py",
        "--ignore=tests/parity/test_ascend.py",
        "-k",
        "not memory",  # numpy's functions settle at other sizes
    ]
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "not slow", *tests],
        cwd=ROOT,
        text=True,
        env={**os.environ, "MS_OMNI_OPS": "ascend-emulated"},
        capture_output=True,
    )
    assert run.returncode == 0, run.stdout[-3000:]
