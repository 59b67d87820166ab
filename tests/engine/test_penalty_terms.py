"""Penalties as two numbers per id are those of the host, from token to token."""

import numpy as np
import pytest

from ms_omni.engine.choice import PenaltyTerms, expressible
from ms_omni.generation.sampling import RowSampler, SamplingParams

SIZE = 40
PARAMS = [
    {"repetition_penalty": 1.3},
    {"presence_penalty": 0.7, "frequency_penalty": 0.4},
    {"repetition_penalty": 1.1, "presence_penalty": -0.7, "suppress_tokens": (5, 6)},
    {"suppress_tokens": (0, 20), "begin_suppress_tokens": (7, 8), "bad_words_ids": [[5], [3]]},
    {"eos_token_id": (3, 30), "min_new_tokens": 4, "bad_words_ids": [[3], [6]], "frequency_penalty": 0.5},
]


@pytest.mark.parametrize("params", PARAMS, ids=["repetition", "said", "both", "banned", "ends"])
def test_penalties_are_those_of_the_host(params):
    sampler, terms = RowSampler(SamplingParams(**params), None, (9, 9, 11, 30)), PenaltyTerms()
    rng, (factor, bias) = np.random.default_rng(3), np.repeat(np.float32([[1], [0]]), SIZE, 1)
    for token in (5, 6, 5, 5, 30, 7, 9, 5):
        assert expressible(sampler)
        for id, term in terms.update(sampler).items():
            factor[id], bias[id] = term
        assert not terms.update(sampler)
        logits = rng.normal(size=SIZE).astype(np.float32)
        found = np.minimum(logits * factor, logits / factor) + bias
        assert (found == sampler.adjusted(logits)).all()
        sampler.note(token)
