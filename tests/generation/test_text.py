"""`generate` around a thinker that counts upwards: what is read, when it stops and what is handed out."""

import os
import warnings

import numpy as np
import pytest

from ms_omni import errors
from ms_omni.engine.engine import engine_of
from ms_omni.engine.stream import Stream
from ms_omni.errors import CheckpointError, InputError
from ms_omni.generation import checks
from ms_omni.generation.options import RESULT_OPTIONS, TEXT_OPTIONS, GenerationConfig, TextOptions
from ms_omni.generation.request import parse_text_request
from ms_omni.generation.sampling import NAMES, SamplingParams

PROMPT = np.array([[3, 9], [3, 20]])


def write(thinker, prompt=PROMPT, mask=None, options=None, **params):
    inputs = {"input_ids": prompt} if mask is None else {"input_ids": prompt, "attention_mask": mask}
    return thinker.generate(**{**inputs, **params, **(options or {})})


def stream(thinker, prompt=PROMPT, **options):
    """Its `TextDelta`s and the end come one by one."""
    return Stream(engine_of(thinker), parse_text_request(thinker, {"input_ids": prompt, **options}))


def is_empty(engine):
    return not engine.rows and engine.scheduler.pools[0].used == 0


class Letters:
    """A tokenizer whose token n is the nth letter."""

    def decode(self, row, skip_special_tokens):
        return self.batch_decode([row], skip_special_tokens)[0]

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
    assert counting_thinker.reads == PROMPT.tolist() and counting_thinker.steps == [2, 2]  # the last token is not fed


def test_a_row_ends_with_its_end_token_and_is_padded_behind_it(counting_thinker):
    ids = write(counting_thinker, max_new_tokens=6, eos_token_id=[12, 24], pad_token_id=39)
    assert ids.tolist() == [[3, 9, 10, 11, 12, 39], [3, 20, 21, 22, 23, 24]]
    assert counting_thinker.steps == [2, 2, 1]  # the row that has ended is not read on, and there is no sixth token


def test_without_a_padding_id_rows_are_padded_with_the_first_end_token(counting_thinker):
    assert write(counting_thinker, max_new_tokens=4, eos_token_id=[10, 30])[0].tolist() == [3, 9, 10, 10, 10, 10]


def test_min_new_tokens_goes_on_past_the_end_token(counting_thinker):
    """Token 10 is banned once; the runner-up is the highest id."""
    ids = write(counting_thinker, PROMPT[:1], max_new_tokens=3, min_new_tokens=1, eos_token_id=10)
    assert ids[0, 2] == 39


def test_padding_is_not_read_wherever_it_stands(counting_thinker):
    ids = write(counting_thinker, [[3, 9], [3, 20], [7, 3]], [[0, 1], [1, 1], [1, 0]], max_new_tokens=1)
    assert counting_thinker.reads == [[9], [3, 20], [7]]
    assert ids.tolist() == [[3, 9, 10], [3, 20, 21], [7, 3, 8]]


def test_repetition_penalty_starts_from_the_unpadded_prompt(counting_thinker):
    """10 stands in the padding of row 0 only, and as a real token in row 1."""
    prompt, mask = np.array([[10, 9], [10, 9]]), np.array([[0, 1], [1, 1]])
    ids = write(counting_thinker, prompt, mask, max_new_tokens=1, repetition_penalty=1e6)
    assert ids[:, 2].tolist() == [10, 39]


def test_events_say_which_rows_go_on(counting_thinker):
    """Row 0 writes 10, 11 and has ended, row 1 21, 22, 23."""
    *deltas, end = stream(counting_thinker, max_new_tokens=3, eos_token_id=11, pad_token_id=39)
    assert [delta.token.tolist() for delta in deltas] == [[10, 21], [11, 22], [39, 23]]
    assert [delta.active.tolist() for delta in deltas] == [[True, True], [True, True], [False, True]]
    assert end.text_tokens.tolist() == [2, 3] and end.sequences.tolist() == [[3, 9, 10, 11, 39], [3, 20, 21, 22, 23]]


@pytest.mark.parametrize("close", [Stream.close, Stream.__del__])
def test_nothing_is_read_before_it_is_asked_for_and_closing_gives_all_up(close, counting_thinker):
    text = stream(counting_thinker)
    assert not counting_thinker.reads
    next(text), next(text)
    assert len(counting_thinker.reads) == 2 and len(counting_thinker.steps) == 1
    assert not is_empty(text.engine)
    close(text)
    assert is_empty(text.engine)
    text.close()
    assert list(text) == [] and len(counting_thinker.steps) == 1


def test_more_rows_than_a_launch_holds(counting_thinker):
    prompts = np.arange(20)[:, None]
    ids = write(counting_thinker, prompts, max_new_tokens=3)
    assert ids.tolist() == (prompts + np.arange(4)).tolist()


# -- stop strings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strings", ["lm", ["zz", "m"], ["klm"]])
def test_a_row_ends_with_the_token_that_completes_a_stop_string(strings, counting_thinker):
    """Row 0 writes k l m n ..., row 1 v w x y ..."""
    options = {"stop_strings": strings, "tokenizer": Letters()}
    ids = write(counting_thinker, max_new_tokens=5, pad_token_id=0, options=options)
    assert ids.tolist() == [[3, 9, 10, 11, 12, 0, 0], [3, 20, 21, 22, 23, 24, 25]]


def test_stop_strings_look_at_new_text_only(counting_thinker):
    """The end of the prompt and the first new token make the string."""
    options = {"stop_strings": ["jk", "lm"], "tokenizer": Letters()}
    assert write(counting_thinker, PROMPT[:1], options=options).tolist() == [[3, 9, 10, 11, 12]]


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
    assert streamer.ended == 1 and counting_thinker.steps == [2]
    assert is_empty(engine_of(counting_thinker))


def test_return_dict_and_scores(counting_thinker):
    plain = write(counting_thinker, max_new_tokens=2, options={"return_dict_in_generate": True})
    assert plain.sequences.tolist() == [[3, 9, 10, 11], [3, 20, 21, 22]] and plain.scores is None
    scored = write(counting_thinker, max_new_tokens=2, options={"return_dict_in_generate": True, "output_scores": True})
    assert len(scored.scores) == 2
    assert [scores.argmax(-1).tolist() for scores in scored.scores] == [[10, 21], [11, 22]]
    assert all(scores.dtype == np.float32 for scores in scored.scores)


# -- the caller's own functions, and limits --------------------------------------------------------------------------


def test_stopping_criteria_see_all_ids_and_end_rows(counting_thinker):
    seen = []

    def ended(input_ids, scores, **kwargs):
        seen.append((input_ids.tolist(), scores))
        return input_ids[:, -1] == 12  # one truth value for its conversation

    options = {"stopping_criteria": [ended, lambda input_ids, scores: input_ids.size(1) >= 7]}
    ids = write(counting_thinker, max_new_tokens=9, pad_token_id=39, options=options)
    assert ids.tolist() == [[3, 9, 10, 11, 12, 39, 39], [3, 20, 21, 22, 23, 24, 25]]
    assert seen[:2] == [([[3, 9, 10]], None), ([[3, 20, 21]], None)]
    scored = {"output_scores": True, "return_dict_in_generate": True, "stopping_criteria": ended}
    write(counting_thinker, max_new_tokens=2, options=scored)
    assert [len(scores) for _, scores in seen[-4:]] == [1, 1, 2, 2] and seen[-1][1][0].shape == (1, 40)


def test_logits_processors_come_after_our_own_steps(counting_thinker):
    """Row 0 would write 10, 11, ...; 10 is banned before the first of the functions sees the scores."""
    seen = []

    def look(input_ids, scores):
        seen.append((input_ids.shape, scores.size(1), float(scores[0, 10])))
        scores[:, 30] += 100  # the arrays are the function's own
        return scores

    def roll(input_ids, scores):
        return np.roll(scores, 1, axis=1)

    options = {"logits_processor": [look, roll], "suppress_tokens": [10], "output_logits": True}
    result = write(counting_thinker, max_new_tokens=2, options={**options, "return_dict_in_generate": True})
    assert result.sequences[:, 2:].tolist() == [[31, 31], [31, 31]]
    assert seen[0] == ((1, 2), 40, -np.inf) and [shape for shape, *_ in seen] == [(1, 2)] * 2 + [(1, 3)] * 2
    assert result.logits[0].argmax(-1).tolist() == [10, 21]  # what the model said


@pytest.mark.parametrize(
    "options, said",
    [
        ({"logits_processor": [lambda ids, scores: None]}, "returned NoneType of shape None, expected scores of shape"),
        ({"logits_processor": [lambda ids, scores: scores[:, :3]]}, r"shape \(1, 3\), expected scores of shape \(1, 40\)"),
        ({"stopping_criteria": [lambda ids, scores: np.zeros(3)]}, r"returned shape \(3,\), expected one truth value"),
        ({"prefix_allowed_tokens_fn": lambda row, ids: []}, "allows no token for prompt 0"),
    ],
)
def test_what_the_callers_functions_return_is_checked(options, said, counting_thinker):
    streamer = Recorder()
    with pytest.raises(InputError, match=said):
        write(counting_thinker, options={**options, "streamer": streamer})
    assert streamer.ended == 1 and is_empty(engine_of(counting_thinker))


def test_only_allowed_tokens(counting_thinker):
    allowed = {10: [7], 21: [39, 3]}
    ids = write(
        counting_thinker,
        max_new_tokens=2,
        options={"prefix_allowed_tokens_fn": lambda row, ids: allowed.get(int(ids[-1]), [[10], [21]][row])},
    )
    assert ids[:, 2:].tolist() == [[10, 7], [21, 39]]


def test_lengths_that_count_the_prompt(counting_thinker):
    assert write(counting_thinker, max_length=5).shape == (2, 5)
    assert write(counting_thinker, max_length=5, max_new_tokens=1).shape == (2, 3)  # the new ones go before
    ids = write(counting_thinker, PROMPT[:1], max_length=6, min_length=4, eos_token_id=[10, 39, 38])
    assert ids[0, 2:].tolist() == [37, 37, 38]  # the end tokens are banned twice, then 38 ends it
    with pytest.raises(InputError, match="max_length is 2, but the prompt has 2 tokens; use max_new_tokens"):
        write(counting_thinker, max_length=2)


def test_max_time_ends_after_a_token(counting_thinker):
    assert write(counting_thinker, max_new_tokens=30, max_time=1e-9).shape == (2, 3)
    assert write(counting_thinker, max_new_tokens=3, max_time=600).shape == (2, 5)


def test_a_generation_config_is_a_default(counting_thinker):
    class Transformers:
        """As its `GenerationConfig`."""

        def to_diff_dict(self):
            return {"max_new_tokens": 2, "pad_token_id": 5, "transformers_version": "4", "_commit_hash": None}

    config = {"max_new_tokens": 2, "eos_token_id": None}
    for given in (Transformers(), config, GenerationConfig(max_new_tokens=2)):
        assert write(counting_thinker, options={"generation_config": given}).shape == (2, 4)
        assert write(counting_thinker, max_new_tokens=3, options={"generation_config": given}).shape == (2, 5)
    with pytest.raises(InputError, match="generation_config: num_beams is 4|generate: num_beams is 4"):
        write(counting_thinker, options={"generation_config": {"num_beams": 4}})
    with pytest.raises(InputError, match="generation_config is 3, expected a GenerationConfig or a dict"):
        write(counting_thinker, options={"generation_config": 3})


def test_a_generation_config_is_read_set_and_saved(tmp_path):
    config = GenerationConfig(max_new_tokens=2)
    config.temperature = 0.5
    assert (config.max_new_tokens, config.top_p) == (2, None)
    assert config.to_dict() == config.changes() == {"max_new_tokens": 2, "temperature": 0.5}
    with pytest.raises(AttributeError, match="no 'temprature'"):
        _ = config.temprature
    config.eos_token_id = [3]
    config.save_pretrained(tmp_path)
    again = GenerationConfig.from_pretrained(tmp_path)
    assert again.eos_token_id == [3] and again.temperature is None and not again.changes()  # its special tokens
    assert GenerationConfig.from_pretrained(tmp_path / "none").to_dict() == {}
    again.save_pretrained(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "generation_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="did not write there"):
        again.save_pretrained(tmp_path / "other")


@pytest.mark.parametrize("kind", ["folder", "loop", "pipe", "text", "bytes", "deep"])
def test_a_generation_config_that_cannot_be_read(kind, tmp_path):
    path = tmp_path / "generation_config.json"
    if kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.write_bytes({"text": b"eos", "bytes": b"\xff", "deep": b"[" * 100_000}[kind])
    with pytest.raises(CheckpointError, match="is not a usable generation config"):
        GenerationConfig.from_pretrained(tmp_path)


def test_a_generation_config_of_transformers(counting_thinker):
    transformers = pytest.importorskip("transformers")
    config = transformers.GenerationConfig(max_new_tokens=2, do_sample=True, temperature=0.5)
    assert write(counting_thinker, options={"generation_config": config}).shape == (2, 4)


# -- what is refused, and what changes nothing -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, value, reason",
    [
        ("num_beams", 2, "beam search is not built"),
        ("num_beam_groups", 3, "beam search"),
        ("output_attentions", True, "the fused attention operators keep no weights"),
        ("guidance_scale", 1.5, "guidance"),
        ("assistant_model", object(), "assisted decoding"),
        ("prompt_lookup_num_tokens", 3, "assisted decoding"),
        ("penalty_alpha", 0.6, "contrastive search"),
        ("dola_layers", "high", "contrastive search"),
        ("force_words_ids", [[1]], "constrained beam search"),
        ("encoder_repetition_penalty", 1.2, "repetition_penalty"),
        ("watermarking_config", {}, "watermarks"),
        ("token_healing", True, "prompts are read as they are"),
        ("custom_generate", "user/repo", "built-in loop"),
    ],
)
def test_what_would_change_the_answer_is_refused_by_name(name, value, reason, counting_thinker):
    with pytest.raises(InputError, match=f"generate: {name} is .*, which is not supported: .*{reason}"):
        write(counting_thinker, **{name: value})
    assert not counting_thinker.reads


def test_what_changes_nothing_is_said_once(counting_thinker, monkeypatch):
    monkeypatch.setattr(errors, "_warned", set())
    options = {"cache_implementation": "quantized", "synced_gpus": True, "length_penalty": 2.0, "bos_token_id": 1}
    with pytest.warns(UserWarning) as said:
        first = write(counting_thinker, max_new_tokens=2, **options)
    names = [str(warning.message).split()[1] for warning in said]
    assert names == ["cache_implementation", "length_penalty", "synced_gpus"] and said[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(first, write(counting_thinker, max_new_tokens=2, **options))
        write(counting_thinker, max_new_tokens=2, cache_implementation="static", early_stopping=False, length_penalty=1)


@pytest.mark.parametrize(
    "name, value, said",
    [
        ("max_new_token", 1, "generate has no argument 'max_new_token'; did you mean 'max_new_tokens'"),
        ("temprature", 1, "did you mean 'temperature'"),
        ("stop_string", 1, "did you mean 'stop_strings'"),
        ("xyzzy", 1, "it knows max_new_tokens, min_new_tokens"),
        ("stop_strings", "x", "stop_strings need the tokenizer"),
        ("stop_strings", "", "expected a text or a list of texts, none of them empty"),
        ("stop_strings", [5], "expected a text or a list of texts"),
        ("stop_strings", b"x", "expected a text or a list of texts"),
        ("stopping_criteria", 5, "stopping_criteria is 5, expected a list of functions"),
        ("logits_processor", [5], "logits_processor is .*, expected a list of functions"),
        ("prefix_allowed_tokens_fn", 5, "expected a function"),
        ("num_return_sequences", 0, "num_return_sequences is 0, expected an integer of at least 1"),
        ("num_return_sequences", 1.5, "num_return_sequences is 1.5"),
        ("max_time", 0, "max_time is 0, expected seconds above 0"),
        ("max_time", "long", "max_time is 'long'"),
        ("max_length", -1, "max_length is -1, expected an integer of at least 0"),
        ("use_cache", "yes", "use_cache is 'yes', expected True or False"),
        ("output_scores", "yes", "output_scores is 'yes', expected True or False"),
        ("min_new_tokens", 2000, "min_new_tokens is 2000, more than max_new_tokens, which is 1024"),
        ("streamer", 5, r"streamer is 5, expected an object with put\(ids\) and end\(\)"),
        ("input_ids", [[1, 2], [3]], "its rows differ in length"),
        ("input_ids", "hello", "input_ids must be integers of shape"),
        ("input_ids", [], "input_ids must be integers of shape"),
        ("input_ids", [[True, False]], "input_ids must be integers of shape"),
        ("input_ids", [[1, -2]], r"input_ids must lie in \[0, 40\); got -2"),
        ("input_ids", [[1, 40]], r"input_ids must lie in \[0, 40\); got 1 to 40"),
        ("input_ids", None, "generate needs input_ids"),
        ("attention_mask", [[0, 0], [1, 1]], "attention_mask leaves a row without any token"),
        ("attention_mask", [[1, 0.5], [1, 1]], r"attention_mask must hold 1 for what counts and 0 for padding; got \[0.5\]"),
        ("attention_mask", "x", "attention_mask holds <U1, expected numbers"),
        ("image_grid_thw", [[1, 2, 2]], "image_grid_thw came without pixel_values"),
        ("video_second_per_grid", [1.0], "video_second_per_grid came without video_grid_thw"),
        ("feature_attention_mask", [[1]], "feature_attention_mask came without input_features"),
        ("use_audio_in_video", "yes", "use_audio_in_video is 'yes', expected True or False"),
        ("tokenizer", 5, "tokenizer is 5, expected an object with decode and batch_decode"),
        ("num_beams", True, "num_beams is True, which is not supported"),
        ("attention_mask", [[1, 1]], r"input_ids \[2, 2\] and attention_mask \[1, 2\] must be"),
    ],
)
def test_wrong_values_are_named_before_any_work(name, value, said, counting_thinker):
    with pytest.raises(InputError, match=said):
        write(counting_thinker, options={name: value})
    assert not counting_thinker.reads


def test_all_unknown_arguments_are_named_at_once(counting_thinker):
    with pytest.raises(InputError, match="'foo'.*'bar'"):
        write(counting_thinker, foo=1, bar=2)


def test_none_means_the_default(counting_thinker):
    nothing = dict.fromkeys([*NAMES, *TEXT_OPTIONS, *RESULT_OPTIONS, *checks.NEEDED, *checks.MEANINGLESS])
    request = parse_text_request(counting_thinker, {"input_ids": PROMPT, **nothing})
    assert request == parse_text_request(counting_thinker, {"input_ids": PROMPT})
    assert request.text == SamplingParams(top_k=50) and request.options == TextOptions()


@pytest.mark.parametrize("wrong", [{"repetition_penalty": 0}, {"num_beams": 2}, {"input_ids": [[99]]}, {"foo": 1}], ids=str)
@pytest.mark.parametrize("name", ["streamer", "thinker_streamer"])
def test_a_streamer_is_ended_whatever_is_refused(name, wrong, counting_thinker):
    streamer = Recorder()
    with pytest.raises(InputError):
        write(counting_thinker, options={**wrong, name: streamer})
    assert streamer.ended == 1 and not streamer.put_values
