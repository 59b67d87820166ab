"""The text loop by itself: a thinker that counts upwards shows what is fed, when it stops and what is handed out."""

import numpy as np
import pytest

from ms_omni.generation.decode import ended_streamer, generate_text
from ms_omni.generation.request import parse_text_request
from ms_omni.generation.sampling import SamplingParams
from ms_omni.generation.text import TextGeneration, has_string

PROMPT = np.array([[3, 9], [3, 20]])


def write(thinker, prompt=PROMPT, mask=None, options=None, **params):
    inputs = {"input_ids": prompt} if mask is None else {"input_ids": prompt, "attention_mask": mask}
    with ended_streamer(options := dict(options or {})) as streamer:
        return generate_text(thinker, parse_text_request(thinker, {**inputs, **params, **options}), streamer)


class Letters:
    """A tokenizer whose token n is the nth letter."""

    def batch_decode(self, rows, skip_special_tokens):
        assert skip_special_tokens
        return ["".join(chr(97 + token) for token in row) for row in rows]


class Recorder:
    def __init__(self, fail_at=None):
        self.put_values, self.ended, self.fail_at = [], 0, fail_at

    def put(self, value):
        if len(self.put_values) == self.fail_at:
            raise RuntimeError("the reader has gone")
        self.put_values.append(np.asarray(value).tolist())

    def end(self):
        self.ended += 1


def test_max_new_tokens_counts_new_tokens_and_the_prompt_comes_first(counting_thinker):
    ids = write(counting_thinker, max_new_tokens=3)
    assert ids.tolist() == [[3, 9, 10, 11, 12], [3, 20, 21, 22, 23]]
    assert ids.dtype == np.int64
    assert counting_thinker.calls == 3  # the last token is not fed


def test_a_row_ends_with_its_end_token_and_is_padded_behind_it(counting_thinker):
    ids = write(counting_thinker, max_new_tokens=6, eos_token_id=[12, 24], pad_token_id=39)
    assert ids.tolist() == [[3, 9, 10, 11, 12, 39], [3, 20, 21, 22, 23, 24]]
    assert counting_thinker.calls == 4  # all rows have ended before six tokens


def test_without_a_padding_id_rows_are_padded_with_the_first_end_token(counting_thinker):
    assert write(counting_thinker, max_new_tokens=4, eos_token_id=[10, 30])[0].tolist() == [3, 9, 10, 10, 10, 10]


def test_min_new_tokens_goes_on_past_the_end_token(counting_thinker):
    """Token 10 is banned once; the runner-up is the highest id."""
    ids = write(counting_thinker, PROMPT[:1], max_new_tokens=3, min_new_tokens=1, eos_token_id=10)
    assert ids[0, 2] == 39


def test_the_mask_is_passed_on_and_no_states_are_asked_for(counting_thinker):
    mask = np.array([[0, 1], [1, 1]])
    write(counting_thinker, mask=mask, max_new_tokens=1)
    assert counting_thinker.inputs["attention_mask"].tolist() == mask.tolist()
    assert counting_thinker.wanted_states is False


def test_repetition_penalty_starts_from_the_unpadded_prompt(counting_thinker):
    """10 stands in the padding of row 0 only, and as a real token in row 1."""
    prompt, mask = np.array([[10, 9], [10, 9]]), np.array([[0, 1], [1, 1]])
    ids = write(counting_thinker, prompt, mask, max_new_tokens=1, repetition_penalty=1e6)
    assert ids[:, 2].tolist() == [10, 39]


def test_steps_say_which_rows_still_count_and_which_is_the_last(counting_thinker):
    params = SamplingParams(max_new_tokens=3, eos_token_id=11)
    steps = list(TextGeneration(counting_thinker, {"input_ids": PROMPT}, params))
    assert [step.active.tolist() for step in steps] == [[True, True], [True, True], [False, True]]
    assert [step.last for step in steps] == [False, False, True]


def test_a_talker_hears_the_embeddings_and_its_layer(counting_thinker):
    text = TextGeneration(counting_thinker, {"input_ids": PROMPT}, SamplingParams(), listen=3)
    assert text.prompt is None
    next(text)
    assert counting_thinker.wanted_states == (0, 3)
    assert text.prompt.embeds.max() == 0 and text.prompt.hidden.min() == 3
    assert text.prompt.valid.all() and text.prompt.ids is text.prompt_ids


def test_iteration_is_lazy_and_closing_lets_the_cache_go(counting_thinker):
    text = TextGeneration(counting_thinker, {"input_ids": PROMPT}, SamplingParams())
    assert counting_thinker.calls == 0
    next(text), next(text)
    assert counting_thinker.calls == 2 and counting_thinker.readers == 1
    text.close()
    assert counting_thinker.readers == 0
    assert list(text) == []


def test_a_prompt_that_was_read_but_not_continued_lets_the_cache_go_too(counting_thinker):
    text = TextGeneration(counting_thinker, {"input_ids": PROMPT}, SamplingParams())
    text.read_prompt()
    assert counting_thinker.readers == 1
    text.close()
    assert counting_thinker.readers == 0


# -- stop strings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strings", ["lm", ["zz", "m"], ["klm"]])
def test_a_row_ends_with_the_token_that_completes_a_stop_string(strings, counting_thinker):
    """Row 0 writes k l m n ..., row 1 v w x y ..."""
    options = {"stop_strings": strings, "tokenizer": Letters()}
    ids = write(counting_thinker, max_new_tokens=5, pad_token_id=0, options=options)
    assert ids.tolist() == [[3, 9, 10, 11, 12, 0, 0], [3, 20, 21, 22, 23, 24, 25]]


def test_stop_strings_look_at_new_text_only():
    assert has_string(("ab",), Letters(), np.array([[1, 2], [0, 1]])).tolist() == [False, True]


# -- streamers and what is handed back -------------------------------------------------------------------------------


def test_a_streamer_gets_the_prompt_then_each_token_then_the_end(counting_thinker):
    streamer = Recorder()
    ids = write(counting_thinker, max_new_tokens=3, options={"streamer": streamer})
    assert streamer.put_values == [PROMPT.tolist(), [10, 21], [11, 22], [12, 23]]
    assert streamer.ended == 1
    assert ids[:, 2:].T.tolist() == streamer.put_values[1:]


def test_a_streamer_that_fails_is_still_ended_and_its_error_comes_out(counting_thinker):
    streamer = Recorder(fail_at=2)
    with pytest.raises(RuntimeError, match="the reader has gone"):
        write(counting_thinker, options={"streamer": streamer})
    assert streamer.ended == 1 and counting_thinker.calls == 2


def test_return_dict_and_scores(counting_thinker):
    plain = write(counting_thinker, max_new_tokens=2, options={"return_dict_in_generate": True})
    assert plain.sequences.tolist() == [[3, 9, 10, 11], [3, 20, 21, 22]] and plain.scores is None
    scored = write(counting_thinker, max_new_tokens=2, options={"return_dict_in_generate": True, "output_scores": True})
    assert len(scored.scores) == 2
    assert [scores.argmax(-1).tolist() for scores in scored.scores] == [[10, 21], [11, 22]]
    assert all(scores.dtype == np.float32 for scores in scored.scores)
