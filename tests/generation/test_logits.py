"""The steps between logits and choice, against transformers' own on the same texts, and what that does not have."""

import numpy as np
import pytest

from ms_omni.errors import InputError
from ms_omni.generation.sampling import Sampler, SamplingParams
from tests.reference import sampling_cases
from tests.reference.store import DATA, Reference

PROMPT = sampling_cases.PROMPT


@pytest.fixture(scope="module")
def reference():
    return Reference(DATA / "sampling.npz")


def sampler(first=0, rows=3, **options):
    params = SamplingParams(**{"do_sample": True, "seed": 0, "eos_token_id": sampling_cases.EOS, **options})
    texts, valid = sampling_cases.texts(), np.ones((3, PROMPT), bool)
    valid[0, 0] = False
    chosen = Sampler(params, rows, sampling_cases.VOCABULARY, texts[first:, :PROMPT][:rows], valid[first:][:rows])
    return chosen, texts[first:, PROMPT:][:rows]


def processed(**options):
    """Scores `[steps, 3, V]` while the texts of the cases are written."""
    chosen, new = sampler(**options)
    found = []
    for n, logits in enumerate(sampling_cases.logits()):
        found.append(chosen.filter(chosen.adjust(logits)))
        chosen.note(new[:, n] if n < new.shape[1] else new[:, 0])
    return np.stack(found)


@pytest.mark.parametrize("case", sampling_cases.CASES)
def test_scores_are_those_of_transformers(case, reference):
    found, expected = processed(**sampling_cases.CASES[case]), reference[case]
    assert found.dtype == np.float32
    if case == "ngram 1":  # transformers takes the padding, 1, for text
        assert np.isneginf(expected[:, 0, 1]).all() and np.isfinite(found[:, 0, 1]).all()
        expected[:, 0, 1] = found[:, 0, 1]
    np.testing.assert_array_equal(np.isneginf(found), np.isneginf(expected))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    if case != "nothing":
        assert not np.array_equal(expected, reference["nothing"])


def test_a_part_of_the_vocabulary_is_adjusted_as_the_whole():
    """What ranks that split the vocabulary rely on."""
    options = {
        **sampling_cases.CASES["many"],
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
        "suppress_tokens": [0, 28],
    }
    for n in range(3):
        chosen, new = sampler(**options)
        for token in new[:, :n].T:
            chosen.note(token)
        logits = sampling_cases.logits()[n]
        parts = [chosen.adjust(np.ascontiguousarray(logits[:, a:b]), a) for a, b in ((0, 9), (9, 10), (10, 29))]
        assert np.array_equal(np.concatenate(parts, axis=1), chosen.adjust(logits))


def test_presence_and_frequency_count_what_was_said_and_not_the_prompt():
    chosen, _ = sampler(first=2, rows=1, presence_penalty=0.5, frequency_penalty=0.25)
    logits = np.zeros((1, sampling_cases.VOCABULARY), np.float32)
    for token in (6, 6, 11):
        chosen.note(np.array([token]))
    scores = chosen.adjust(logits)[0]
    assert scores[[6, 11]].tolist() == [-1.0, -0.75] and np.count_nonzero(scores) == 2


def test_a_tiny_temperature_neither_overflows_nor_divides_by_zero():
    logits = sampling_cases.logits()[0]
    for temperature in (1e-320, 1e-45, 1e-38):
        chosen, _ = sampler(temperature=temperature)
        assert chosen(logits).tolist() == logits.argmax(-1).tolist()


def test_where_nothing_is_left_to_choose():
    vocabulary = list(range(sampling_cases.VOCABULARY))
    with pytest.raises(InputError, match="suppress_tokens holds all 29 tokens"):
        sampler(suppress_tokens=vocabulary)
    for do_sample in (True, False):
        chosen, _ = sampler(do_sample=do_sample, bad_words_ids=[[token] for token in vocabulary], eos_token_id=[])
        with pytest.raises(InputError, match="every token of the vocabulary is banned"):
            chosen(sampling_cases.logits()[0])


@pytest.mark.parametrize("number", [np.nan, np.inf])
@pytest.mark.parametrize("options", [{}, {"do_sample": True, "top_k": 3, "top_p": 0.5}], ids=["greedy", "drawn"])
def test_one_number_that_is_none_is_an_error_wherever_it_stands(number, options):
    logits = sampling_cases.logits()[0]
    logits[1, 17] = number
    with pytest.raises(InputError, match="the thinker's logits hold NaN or infinite numbers.*load the checkpoint again"):
        sampler(**options)[0](logits)
    assert sampler(**options, remove_invalid_values=True)[0](logits).shape == (len(logits),)


def test_logits_are_never_changed_in_place():
    logits = sampling_cases.logits()[0]
    before = logits.copy()
    chosen, _ = sampler(**sampling_cases.CASES["many"])
    chosen(logits)
    assert np.array_equal(logits, before)
