"""The distributions that sampled speech is drawn from, with default arguments, against the reference's."""

import numpy as np
import pytest

from ms_omni.generation.logits import softmax
from ms_omni.generation.request import parse_request
from ms_omni.generation.sampling import Sampler
from tests.reference.cases import build_case


@pytest.mark.parametrize("stage", ["talker", "predictor"])
def test_default_sampling(model, config, speech_values, stage):
    """Suppressed ids, temperature, top-k and top-p of code 0; top-k and top-p of the other codes."""
    inputs = build_case(config, "text", 0).inputs
    params = getattr(parse_request(model, dict(inputs, speaker="Ethan")).speech, stage)
    assert params.do_sample
    logits = speech_values[f"sampling/{stage}_logits"][None]
    sampler = Sampler(params, 1, logits.shape[-1])
    probabilities = softmax(sampler.filter(sampler.adjust(logits)))[0]
    expected = speech_values[f"sampling/{stage}_probabilities"]
    np.testing.assert_array_equal(probabilities > 0, expected > 0)
    np.testing.assert_allclose(probabilities, expected, rtol=1e-4, atol=1e-7)
