"""A vocabulary in parts: the tokens that one process would choose from all logits."""

import numpy as np
import pytest

from ms_omni.generation.sampling import Sampler, SamplingParams
from ms_omni.parallel.vocabulary import SplitVocabulary
from tests.parallel.ranks import Ranks

VOCABULARY, BATCH, STEPS = 41, 3, 6


def bounds(size):
    return [VOCABULARY * rank // size for rank in range(size + 1)]


def logits_of(kind):
    rng = np.random.default_rng(5)
    logits = rng.normal(size=(STEPS, BATCH, VOCABULARY)).astype(np.float32) * 3
    if kind == "ties":
        logits = np.round(logits / 3)
    if kind == "all equal":
        logits[:] = 1
    if kind == "few possible":
        logits[:, :, 7:39] = -np.inf
    return logits


def tokens_of_one(params, logits):
    sampler = Sampler(params, BATCH, VOCABULARY)
    return np.stack([sampler(row) for row in logits])


PARAMS = [
    {},
    {"repetition_penalty": 1.3, "suppress_tokens": (0, 20, 40), "eos_token_id": (3, 30), "min_new_tokens": 4},
    {"do_sample": True, "top_k": 5, "seed": 4, "temperature": 1.7},
    {"do_sample": True, "top_k": 30, "top_p": 0.8, "seed": 4, "repetition_penalty": 1.2},
    {"do_sample": True, "top_p": 0.9, "seed": 4},
    {"do_sample": True, "top_k": 9, "top_h": 0.5, "seed": 4},
    {"do_sample": True, "top_k": 9, "min_p": 0.05, "typical_p": 0.9, "seed": 4, "no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 1, "bad_words_ids": [[1], [2, 3]], "sequence_bias": {(4,): 3.0}, "presence_penalty": 1.0},
]
NAMES = ["greedy", "greedy with rules", "top-k", "top-k and top-p", "top-p", "top-h", "filters after top-k", "sequences"]


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("kind", ["any", "ties", "all equal", "few possible"])
@pytest.mark.parametrize("wanted", PARAMS, ids=NAMES)
def test_tokens_are_those_of_one_process(wanted, kind, size):
    params, logits = SamplingParams(**wanted), logits_of(kind)

    def work(comm):
        vocabulary, sampler = SplitVocabulary(comm, bounds(size)), Sampler(params, BATCH, VOCABULARY)
        own, found = slice(*bounds(size)[comm.rank : comm.rank + 2]), []
        for row in logits:
            found.append(sampler.choose(sampler.filter(vocabulary.scores(sampler, row[:, own]))))
            sampler.note(found[-1])
        return np.stack(found)

    expected = tokens_of_one(params, logits)
    for tokens in Ranks(size).run(work):
        np.testing.assert_array_equal(tokens, expected)


def test_logits_that_are_whole_already_are_chosen_from_as_they_are():
    params, logits = SamplingParams(), logits_of("any")

    def work(comm):
        vocabulary = SplitVocabulary(comm, bounds(2))
        return vocabulary.scores(Sampler(params, BATCH, VOCABULARY), logits[0]), comm.gathers

    for scores, gathers in Ranks(2).run(work):
        assert (scores == logits[0]).all() and gathers == 0


def test_all_logits_come_back_in_order():
    logits = logits_of("any")[0]

    def work(comm):
        own = slice(*bounds(3)[comm.rank : comm.rank + 2])
        return SplitVocabulary(comm, bounds(3)).whole(logits[:, own])

    assert all((whole == logits).all() for whole in Ranks(3).run(work))
