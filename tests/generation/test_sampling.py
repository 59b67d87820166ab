"""Choosing tokens: against plain implementations, and against the probabilities themselves."""

import math

import numpy as np
import pytest

from ms_omni.errors import InputError
from ms_omni.generation.logits import softmax
from ms_omni.generation.sampling import Sampler, SamplingParams, draw

VOCABULARY = 12


@pytest.fixture
def logits():
    return np.random.default_rng(5).normal(0, 2, (3, VOCABULARY)).astype(np.float32)


def sampler(batch=1, vocabulary=VOCABULARY, prompt=None, valid=None, **params):
    return Sampler(SamplingParams(**params), batch, vocabulary, prompt, valid)


def kept(scores, **params):
    """Scores `[B, V]` after the filters of sampling."""
    return sampler(len(scores), scores.shape[1], do_sample=True, **params).filter(scores)


# -- plain implementations -------------------------------------------------------------------------------------------


def plain_top_k(row, k):
    allowed = sorted(row, reverse=True)[:k]
    return [x if x >= allowed[-1] else -math.inf for x in row]


def plain_top_p(row, p):
    """The likeliest tokens, one after the other, until their probabilities reach p."""
    weights = [math.exp(x - max(row)) for x in row]
    kept, total = set(), 0.0
    for index in sorted(range(len(row)), key=lambda i: -row[i]):
        if total >= p:
            break
        kept.add(index)
        total += weights[index] / sum(weights)
    return [x if i in kept else -math.inf for i, x in enumerate(row)]


@pytest.mark.parametrize("k", [1, 2, 7, 11])
def test_top_k(k, logits):
    assert kept(logits, top_k=k).tolist() == [plain_top_k(row, k) for row in logits.tolist()]


def test_top_k_keeps_ties():
    assert kept(np.array([[1.0, 3.0, 2.0, 2.0]]), top_k=2).tolist() == [[-math.inf, 3, 2, 2]]


@pytest.mark.parametrize("p", [1e-6, 0.3, 0.8, 0.95, 0.9999])
def test_top_p(p, logits):
    assert kept(logits, top_p=p).tolist() == [plain_top_p(row, p) for row in logits.tolist()]


def test_top_p_keeps_the_likeliest_token_in_any_case():
    assert np.isfinite(kept(np.zeros((1, 5), np.float32), top_p=1e-9)).sum() == 1


def test_top_k_comes_before_top_p():
    """Of 0.4, 0.3, 0.2, 0.1 the two largest are 4/7 and 3/7, and the first alone reaches 0.5."""
    left = kept(np.log([[0.4, 0.3, 0.2, 0.1]]), top_k=2, top_p=0.5)
    assert np.isfinite(left).tolist() == [[True, False, False, False]]


def test_temperature_comes_before_top_p():
    """At temperature 0.5 the probabilities 0.6, 0.4 become 0.69, 0.31, so 0.65 is reached by one token, not by two."""
    scores = np.log(np.array([[0.6, 0.4]]))
    assert np.isfinite(kept(scores, top_p=0.65)).tolist() == [[True, True]]
    assert np.isfinite(kept(scores, top_p=0.65, temperature=0.5)).tolist() == [[True, False]]


def test_temperature_divides_the_logits(logits):
    assert np.array_equal(kept(logits, temperature=0.25), logits * 4)


def test_top_k_beyond_the_vocabulary_and_zero_mean_no_limit(logits):
    for k in (0, None, VOCABULARY, 1000):
        assert np.array_equal(kept(logits, top_k=k), logits)


# -- penalties -------------------------------------------------------------------------------------------------------


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits():
    chosen = sampler(repetition_penalty=2.0, vocabulary=4, prompt=np.array([[0, 1]]))
    scores = np.array([[3.0, -1.0, 2.0, -2.0]], np.float32)
    assert chosen.adjust(scores).tolist() == [[1.5, -2, 2, -2]]
    assert chosen(scores).tolist() == [2]  # the penalty decides: 2 > 1.5
    assert chosen.adjust(scores).tolist() == [[1.5, -2, 1, -2]]  # token 2 counts as seen now
    assert scores.tolist() == [[3, -1, 2, -2]]  # the caller's logits stay


def test_repetition_penalty_applies_once_per_token_and_ignores_padding():
    prompt = np.array([[3, 1, 1, 1], [0, 0, 2, 2]])
    valid = np.array([[False, True, True, True], [True] * 4])
    chosen = sampler(batch=2, repetition_penalty=4.0, vocabulary=4, prompt=prompt, valid=valid)
    assert chosen.adjust(np.full((2, 4), 8, np.float32)).tolist() == [[8, 2, 8, 8], [2, 8, 2, 8]]


def test_a_penalty_cannot_bring_back_what_is_suppressed():
    chosen = sampler(repetition_penalty=0.5, suppress_tokens=[1], vocabulary=3, prompt=np.array([[1]]))
    assert chosen.adjust(np.array([[1.0, 9.0, 2.0]], np.float32)).tolist() == [[1, -math.inf, 2]]


@pytest.mark.parametrize("do_sample", [False, True])
def test_suppressed_tokens_are_never_chosen(do_sample, logits):
    best = np.argsort(-logits[0])[:4].tolist()
    chosen = sampler(do_sample=do_sample, suppress_tokens=best, seed=0)
    drawn = {int(chosen(logits[:1])[0]) for _ in range(200)}
    assert not drawn & set(best)
    assert len(drawn) == (8 if do_sample else 1)


def test_min_new_tokens_bans_every_end_token_for_so_many_steps():
    scores = np.array([[9.0, 8.0, 1.0]], np.float32)
    chosen = sampler(min_new_tokens=2, eos_token_id=[0, 1], vocabulary=3)
    assert [int(chosen(scores)[0]) for _ in range(4)] == [2, 2, 0, 0]


# -- drawing ---------------------------------------------------------------------------------------------------------


def chi_square_limit(freedom):
    """The value that chi-square exceeds with probability 0.001 (Wilson & Hilferty 1931)."""
    spread = 2 / (9 * freedom)
    return freedom * (1 - spread + 3.0902 * math.sqrt(spread)) ** 3


def assert_follows(counts, probabilities):
    expected = counts.sum() * probabilities
    assert not counts[probabilities == 0].any()
    kept = probabilities > 0
    statistic = ((counts - expected)[kept] ** 2 / expected[kept]).sum()
    assert statistic < chi_square_limit(kept.sum() - 1)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.9, "top_k": 6},
        {"top_p": 0.8},
        {"temperature": 1.7, "suppress_tokens": [0, 3]},
    ],
    ids=str,
)
def test_draws_follow_the_probabilities(params, logits):
    """2,000 draws along one row, and one draw in each of 2,000 rows."""
    along = sampler(do_sample=True, seed=11, **params)
    expected = softmax(along.filter(along.adjust(logits[:1] / 2)))[0]
    drawn = [int(along(logits[:1] / 2)[0]) for _ in range(2000)]
    assert_follows(np.bincount(drawn, minlength=VOCABULARY), expected)
    across = sampler(2000, do_sample=True, seed=12, **params)(np.repeat(logits[:1] / 2, 2000, axis=0))
    assert_follows(np.bincount(across, minlength=VOCABULARY), expected)


def test_the_chi_square_test_can_fail():
    expected = np.array([0.25, 0.25, 0.5])
    with pytest.raises(AssertionError):
        assert_follows(np.array([430, 570, 1000]), expected)
    assert abs(chi_square_limit(10) - 29.588) < 0.2  # the tabulated value


def test_draw_never_takes_a_token_of_probability_zero():
    class Stream:
        def __init__(self, value):
            self.value = value

        def random(self):
            return self.value

    probabilities = np.array([0, 0.5, 0, 0.5, 0])
    assert draw(probabilities, Stream(0.0)) == 1
    assert draw(probabilities, Stream(0.5)) == 3
    assert draw(probabilities, Stream(np.nextafter(1, 0))) == 3


def rows(count, batch, logits, **params):
    chosen = sampler(batch, do_sample=True, **params)
    return np.stack([chosen(np.resize(logits, (batch, VOCABULARY))) for _ in range(count)])


def test_same_seed_same_draws_other_seed_others(logits):
    first = rows(40, 3, logits, seed=4)
    assert np.array_equal(first, rows(40, 3, logits, seed=4))
    assert not np.array_equal(first, rows(40, 3, logits, seed=5))


def test_without_a_seed_draws_differ(logits):
    assert not np.array_equal(rows(40, 3, logits), rows(40, 3, logits))


def test_a_row_does_not_depend_on_the_size_of_the_batch(logits):
    alone, together = rows(40, 1, logits[:1], seed=4), rows(40, 3, logits[:1], seed=4)
    assert np.array_equal(alone[:, 0], together[:, 0])
    assert not np.array_equal(together[:, 0], together[:, 1])  # equal logits, own streams


def test_the_global_random_state_has_no_influence_and_is_not_touched(logits):
    np.random.seed(0)
    first, state = rows(5, 2, logits, seed=1), np.random.get_state()[1].copy()
    np.random.seed(0)
    assert np.array_equal(state, np.random.get_state()[1])
    np.random.seed(99)
    assert np.array_equal(first, rows(5, 2, logits, seed=1))


def test_greedy_takes_the_first_of_equals_and_int64():
    token = sampler(vocabulary=4)(np.array([[1, 7, 7, 0]], np.float32))
    assert token.tolist() == [1] and token.dtype == np.int64


# -- parameters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, value, said",
    [
        ("max_new_tokens", 0, "integer of at least 1"),
        ("max_new_tokens", 2.5, "integer of at least 1"),
        ("max_new_tokens", True, "integer of at least 1"),
        ("min_new_tokens", -1, "integer of at least 0"),
        ("temperature", -1, "at least 0 .0: greedy"),
        ("temperature", math.nan, "at least 0"),
        ("temperature", math.inf, "at least 0"),
        ("temperature", True, "at least 0"),
        ("repetition_penalty", 1e-320, "above 0"),  # 0 in float32
        ("frequency_penalty", 1e300, "a number"),
        ("sequence_bias", np.array([1, 2]), "a list of"),
        ("exponential_decay_length_penalty", np.array([1.5, 2]), "factor above 0"),
        ("temperature", "hot", "at least 0"),
        ("do_sample", "yes", "True or False"),
        ("do_sample", 2, "True or False"),
        ("min_p", 1.5, r"\[0, 1\]"),
        ("min_p", "some", r"\[0, 1\]"),
        ("top_h", 0, r"\(0, 1\]"),
        ("typical_p", 0, r"\(0, 1\]"),
        ("epsilon_cutoff", 1, r"\[0, 1\)"),
        ("eta_cutoff", -0.1, r"\[0, 1\)"),
        ("presence_penalty", math.inf, "0: none"),
        ("frequency_penalty", "much", "0: none"),
        ("no_repeat_ngram_size", -1, "any may repeat"),
        ("no_repeat_ngram_size", 1.5, "any may repeat"),
        ("exponential_decay_length_penalty", (1, 2, 3), "from which it counts"),
        ("exponential_decay_length_penalty", 3, "from which it counts"),
        ("remove_invalid_values", "no", "True or False"),
        ("bad_words_ids", 5, "list of lists"),
        ("suppress_tokens", [[1, 2], [3]], "a token id or a list"),
        ("top_k", -1, "0: no limit"),
        ("top_k", 1.5, "0: no limit"),
        ("top_p", 0, r"\(0, 1\]"),
        ("top_p", 1.01, r"\(0, 1\]"),
        ("top_p", "most", r"\(0, 1\]"),
        ("repetition_penalty", 0, "1: none"),
        ("repetition_penalty", math.inf, "1: none"),
        ("eos_token_id", "end", "a token id or a list"),
        ("eos_token_id", [1, -2], "a token id or a list"),
        ("eos_token_id", 1.5, "a token id or a list"),
        ("suppress_tokens", [None], "a token id or a list"),
        ("seed", -1, "integer of at least 0"),
        ("seed", "x", "integer of at least 0"),
        ("seed", 1.5, "integer of at least 0"),
        ("pad_token_id", -2, "a token id"),
        ("pad_token_id", "pad", "a token id"),
    ],
)
def test_a_wrong_value_is_named(name, value, said):
    with pytest.raises(InputError, match=f"{name} is .*{said}"):
        SamplingParams(**{name: value})


def test_ids_come_in_many_forms():
    for given in (7, [7], (7,), np.int64(7), np.array([7])):
        assert SamplingParams(eos_token_id=given).eos_token_id == (7,)
    for none in (None, [], -1, [-1]):  # transformers' tests write -1
        assert SamplingParams(eos_token_id=none).eos_token_id == ()
    assert SamplingParams(eos_token_id=np.array([3, 4])).eos_token_id == (3, 4)


def test_padding_id():
    assert SamplingParams(pad_token_id=5, eos_token_id=[7, 8]).pad_id == 5
    assert SamplingParams(eos_token_id=[7, 8]).pad_id == 7
    assert SamplingParams().pad_id == 0


@pytest.mark.parametrize("name", ["eos_token_id", "suppress_tokens", "pad_token_id"])
def test_an_id_beyond_the_vocabulary_is_an_error(name):
    with pytest.raises(InputError, match=f"{name} holds \\[12\\], but the vocabulary has 12 tokens"):
        sampler(**{name: 12 if name == "pad_token_id" else [3, 12]})
