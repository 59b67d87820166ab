"""The text of one answer: which token is chosen, when it ends, and what is said of it."""

import numpy as np
import pytest

from ms_omni.engine.sequence import Text
from ms_omni.errors import InputError
from ms_omni.generation.options import TextOptions
from ms_omni.generation.sampling import Sampler, SamplingParams

VOCABULARY, END = 30, 29


class Letters:
    """A tokenizer whose token n is the nth letter."""

    def decode(self, ids, skip_special_tokens):
        return "".join(chr(97 + token) for token in ids)


def text(prompt=(3, 9), clock=None, row=0, options=None, **params):
    params = SamplingParams(**{"max_new_tokens": 100, "eos_token_id": END, **params})
    more = {} if clock is None else {"clock": clock}
    return Text(np.array(prompt), params, TextOptions(**(options or {})), row, **more)


def likely(token):
    """Logits that say this token."""
    return np.eye(VOCABULARY, dtype=np.float32)[token] * 9


def written(found, tokens):
    """The tokens that are taken, said one after another, until it ends."""
    for token in tokens:
        if not found.active:
            break
        found.choose(likely(token))
    return found.tokens


def test_it_ends_with_its_end_token_which_is_no_word():
    found = text()
    assert written(found, [5, 6, END, 7]) == [5, 6, END]
    assert found.spoken_ids == [5, 6] and not found.active and found.ids().tolist() == [[3, 9, 5, 6, END]]


def test_it_ends_with_its_limit_and_the_last_word_is_said():
    found = text(max_new_tokens=2)
    assert written(found, [5, 6, 7]) == found.spoken_ids == [5, 6]


@pytest.mark.parametrize("strings, expected", [(("cd",), "abcd"), (("d", "b"), "ab"), (("xyz",), "abcde")])
def test_it_ends_with_a_string_that_may_lie_across_tokens(strings, expected):
    found = text(options={"stop_strings": strings, "tokenizer": Letters()})
    assert written(found, range(5)) == [ord(letter) - 97 for letter in expected]


def test_what_the_caller_says():
    criterion = lambda ids, scores: ids.shape == (1, 5) and scores is None  # noqa: E731
    assert written(text(options={"stopping_criteria": (criterion,)}), range(9)) == [0, 1, 2]
    now = iter([0.0, 0.5, 1.5, 9])
    assert written(text(clock=lambda: next(now), options={"max_time": 1.0}), range(9)) == [0, 1]
    banned = lambda ids, scores: np.where(np.arange(VOCABULARY) == ids[0, -1], -np.inf, scores)  # noqa: E731
    assert written(text(prompt=[4], options={"logits_processor": (banned,)}), [4])[0] != 4


@pytest.mark.parametrize(
    "options, words",
    [
        ({"logits_processor": (lambda ids, scores: scores[:, :3],)}, "expected scores of shape"),
        ({"stopping_criteria": (lambda ids, scores: np.zeros(2),)}, "expected one truth value"),
    ],
)
def test_what_the_caller_says_wrongly(options, words):
    with pytest.raises(InputError, match=words):
        text(options=options).choose(likely(3))


@pytest.mark.parametrize("params", [{}, {"do_sample": True, "seed": 3, "top_k": 5}, {"repetition_penalty": 1.7}])
def test_every_row_chooses_as_the_same_row_of_a_batch(params):
    rng, settings = np.random.default_rng(0), SamplingParams(**params)
    prompt, batch = rng.integers(0, VOCABULARY, (3, 4)), None
    batch = Sampler(settings, 3, VOCABULARY, prompt)
    rows = [text(prompt[row], row=row, eos_token_id=[], **params) for row in range(3)]
    for _ in range(20):
        logits = rng.standard_normal((3, VOCABULARY)).astype(np.float32)
        expected = batch(logits).tolist()
        assert [int(row.choose(line).token[0]) for row, line in zip(rows, logits)] == expected


def test_pieces_of_text_join_and_nothing_is_held_back_at_the_end(processor):
    whole = "Füße, 你好 🎵"
    ids = processor.tokenizer(whole)["input_ids"]
    found = text(options={"tokenizer": processor.tokenizer}, eos_token_id=[])
    assert "".join(found.add(token).text[0] for token in ids) == whole
    first = processor.tokenizer("🎵")["input_ids"][0]
    cut = text(options={"tokenizer": processor.tokenizer}, max_new_tokens=1)
    assert cut.add(first).text == ("\ufffd",)


@pytest.mark.parametrize(
    "tokens, options, reason",
    [
        ([5, END], {}, "stop"),
        ([5, 6, END], {"stop_strings": ("g",), "tokenizer": Letters()}, "stop"),
        ([5, 6, 7], {}, "length"),
        ([5], {"max_time": 0.5}, "time"),
        ([5], {}, ""),
    ],
)
def test_it_knows_why_it_ended(tokens, options, reason):
    times = iter(range(9))
    found = text(clock=lambda: next(times), options=options, max_new_tokens=3)
    written(found, tokens)
    assert found.reason == reason and found.active == (not reason)


def test_nothing_is_said_from_some_tokens_on():
    found = text(options={"unspoken_from": (7,)})
    assert written(found, [5, 7, 8, END]) == [5, 7, 8, END]
    assert found.spoken_ids == [5] and found.unspoken
