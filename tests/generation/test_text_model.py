"""Text from the tiny model: the cached loop against naive recomputation, batches against single rows, interruptions."""

import gc
import threading

import numpy as np
import pytest

from ms_omni.engine.engine import engine_of
from ms_omni.engine.runner import ThinkerRunner
from ms_omni.errors import InputError
from ms_omni.generation.request import parse_text_request
from ms_omni.modeling.packing import host_array

TEXTS = ("hello world", "what is this? one two three", "yes")
NEW = 8


@pytest.fixture(scope="module")
def batch(ask):
    return ask(*TEXTS)


def new_tokens(ids, inputs):
    return np.asarray(ids)[:, inputs["input_ids"].shape[1] :]


def test_greedy_equals_recomputing_everything_at_each_step(tiny_model, ask, greedy_tokens):
    inputs = ask(TEXTS[1])
    ids = inputs["input_ids"]
    for _ in range(NEW):
        logits = host_array(tiny_model.thinker(input_ids=ids, use_cache=False).logits)
        ids = np.concatenate([ids, logits[:, -1].argmax(-1)[:, None]], axis=1)
    assert new_tokens(ids, inputs).tolist() == greedy_tokens(inputs, NEW).tolist()


def test_rows_of_a_padded_batch_equal_single_rows(batch, ask, greedy_tokens):
    assert (batch["attention_mask"] == 0).any()
    together = greedy_tokens(batch, NEW)
    for row, text in enumerate(TEXTS):
        assert together[row].tolist() == greedy_tokens(ask(text), NEW)[0].tolist()


def test_sampled_row_zero_does_not_depend_on_the_batch(tiny_model, batch, ask):
    options = {"max_new_tokens": 5, "eos_token_id": [], "do_sample": True, "temperature": 2.0, "seed": 8}
    together = new_tokens(tiny_model.thinker.generate(**batch, **options), batch)
    single = ask(TEXTS[0])
    alone = new_tokens(tiny_model.thinker.generate(**single, **options), single)
    assert together[0].tolist() == alone[0].tolist()
    again = new_tokens(tiny_model.thinker.generate(**batch, **options), batch)
    assert again.tolist() == together.tolist()
    other = new_tokens(tiny_model.thinker.generate(**batch, **{**options, "seed": 9}), batch)
    assert other.tolist() != together.tolist()


def test_a_row_that_ends_early_is_padded_and_leaves_the_others_alone(tiny_model, batch, greedy_tokens):
    free = greedy_tokens(batch, NEW)
    end = int(free[2, 2])
    ids = tiny_model.thinker.generate(**batch, max_new_tokens=NEW, eos_token_id=end, pad_token_id=7)
    for row, tokens in enumerate(new_tokens(ids, batch).tolist()):
        stop = free[row].tolist().index(end) + 1 if end in free[row] else NEW
        assert tokens == free[row, :stop].tolist() + [7] * (NEW - stop)
        assert row != 2 or stop <= 3


def test_end_and_padding_ids_come_from_the_checkpoint(tiny_model, ask, processor):
    params = parse_text_request(tiny_model.thinker, ask("hi")).text
    special = processor.tokenizer.convert_tokens_to_ids
    assert params.eos_token_id == (special("<|im_end|>"), special("<|endoftext|>"))
    assert params.pad_token_id == special("<|endoftext|>")


def test_both_models_write_the_same_text(tiny_model, ask, greedy_tokens):
    inputs = ask(TEXTS[0])
    ids, audio = tiny_model.generate(**inputs, return_audio=False, thinker_max_new_tokens=NEW, thinker_eos_token_id=[])
    assert audio is None
    assert new_tokens(ids, inputs).tolist() == greedy_tokens(inputs, NEW).tolist()
    result, _ = tiny_model.generate(
        **inputs,
        generation_mode="text",
        max_new_tokens=2,
        eos_token_id=[],
        thinker_return_dict_in_generate=True,
        thinker_output_scores=True,
    )
    assert new_tokens(result.sequences, inputs).tolist() == greedy_tokens(inputs, NEW)[:, :2].tolist()
    assert [int(scores.argmax()) for scores in result.scores] == greedy_tokens(inputs, NEW)[0, :2].tolist()


def test_stop_string_of_the_real_tokenizer(tiny_model, ask, greedy_tokens, processor):
    inputs = ask(TEXTS[0])
    tokens = greedy_tokens(inputs, NEW)[0]
    text = processor.tokenizer.decode(tokens[:4].tolist(), skip_special_tokens=True)
    ids = tiny_model.thinker.generate(
        **inputs, max_new_tokens=NEW, eos_token_id=[], stop_strings=[text[-2:]], tokenizer=processor.tokenizer
    )
    found = new_tokens(ids, inputs)[0]
    assert text[-2:] in processor.tokenizer.decode(found.tolist(), skip_special_tokens=True)
    assert text[-2:] not in processor.tokenizer.decode(found[:-1].tolist(), skip_special_tokens=True)
    assert len(found) <= 4


def test_text_iterator_streamer_of_transformers(tiny_model, ask, greedy_tokens, processor):
    from transformers import TextIteratorStreamer

    inputs = ask(TEXTS[0])
    streamer = TextIteratorStreamer(processor.tokenizer, skip_prompt=True, timeout=60)
    options = {"max_new_tokens": NEW, "eos_token_id": [], "streamer": streamer}
    thread = threading.Thread(target=tiny_model.thinker.generate, kwargs={**inputs, **options})
    thread.start()
    pieces = list(streamer)
    thread.join()
    assert "".join(pieces) == processor.tokenizer.decode(greedy_tokens(inputs, NEW)[0].tolist())


# -- interruptions ---------------------------------------------------------------------------------------------------


def is_empty(model):
    engine = engine_of(model)
    return not engine.rows and not any(pool.used for pool in engine.scheduler.pools if pool)


def test_breaking_a_stream_off_frees_its_cache_and_leaves_the_model_usable(tiny_model, ask, greedy_tokens):
    inputs = ask(TEXTS[0])
    expected = greedy_tokens(inputs, NEW).tolist()
    stream = tiny_model.stream(**inputs, return_audio=False, max_new_tokens=NEW, eos_token_id=[])
    assert next(stream).token.tolist() == expected[0][:1]
    assert not is_empty(tiny_model)
    stream.close()
    assert is_empty(tiny_model)
    assert list(stream) == []
    ids = tiny_model.thinker.generate(**inputs, max_new_tokens=NEW, eos_token_id=[])
    assert new_tokens(ids, inputs).tolist() == expected


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_in_the_middle_leaves_the_model_usable(error, tiny_model, ask, greedy_tokens):
    class Streamer:
        left = 3

        def put(self, _):
            self.left -= 1
            if not self.left:
                raise error("stop")

        def end(self):
            pass

    inputs = ask(TEXTS[0])
    with pytest.raises(error):
        tiny_model.thinker.generate(**inputs, max_new_tokens=NEW, streamer=Streamer())
    assert is_empty(tiny_model)
    ids = tiny_model.thinker.generate(**inputs, max_new_tokens=NEW, eos_token_id=[])
    assert new_tokens(ids, inputs).tolist() == greedy_tokens(inputs, NEW).tolist()


def test_two_streams_side_by_side_do_not_mix(tiny_model, ask, greedy_tokens):
    prompts = [ask(text) for text in TEXTS[:2]]
    streams = [tiny_model.stream(**inputs, return_audio=False, max_new_tokens=4, eos_token_id=[]) for inputs in prompts]
    written = [[int(next(stream).token[0]) for stream in streams] for _ in range(4)]
    assert np.transpose(written).tolist() == [greedy_tokens(inputs, NEW)[0, :4].tolist() for inputs in prompts]


# -- errors before any work ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, said",
    [
        ({"max_new_token": 3}, "no argument 'max_new_token'; did you mean 'max_new_tokens'"),
        ({"temperature": -1}, "temperature is -1, expected a number of at least 0"),
        ({"input_ids": None}, "needs input_ids"),
        ({"use_cache": "no"}, "use_cache is 'no', expected True or False"),
        ({"stop_strings": ["x"]}, "stop_strings need the tokenizer"),
    ],
)
def test_wrong_arguments(change, said, tiny_model, ask, monkeypatch):
    def work(*_, **__):
        raise AssertionError("the thinker was run")

    monkeypatch.setattr(ThinkerRunner, "read", work)
    with pytest.raises(InputError, match=said):
        tiny_model.thinker.generate(**{**ask("hi"), **change})
    with pytest.raises(InputError, match=said):
        tiny_model.generate(**{**ask("hi"), **change})


@pytest.mark.parametrize(
    "ids, said",
    [
        ([[1, 512]], r"must lie in \[0, 512\); got 1 to 512"),
        ([[-1, 2]], "got -1 to 2"),
        ([1, 2], "shape"),
        ([[]], "not empty"),
        ([[0.5, 1]], "must be integers"),
    ],
)
def test_wrong_ids(ids, said, tiny_model):
    with pytest.raises(InputError, match=said):
        tiny_model.thinker.generate(input_ids=np.array(ids), max_new_tokens=1)


def test_a_mask_of_another_shape_is_an_error(tiny_model):
    with pytest.raises(InputError, match=r"input_ids \[1, 2\] and attention_mask \[1, 3\]"):
        tiny_model.thinker.generate(input_ids=np.array([[1, 2]]), attention_mask=np.ones((1, 3)), max_new_tokens=1)


# -- memory ----------------------------------------------------------------------------------------------------------


def resident_mib():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096 / 2**20


def growth(repeats, warm_up, work):
    """Growth of resident memory in MiB over `repeats` runs, after those of the warm-up."""
    for _ in range(warm_up):
        work()
    gc.collect()
    before = resident_mib()
    for _ in range(repeats):
        work()
    gc.collect()
    return resident_mib() - before


def test_memory_does_not_grow_with_prompts(tiny_model):
    """A short form of the slow test below: a run's cache takes 2 MiB, so that keeping them would show."""
    ids = np.random.default_rng(0).integers(0, 250, (2, 260))
    options = {"max_new_tokens": 2, "eos_token_id": []}
    assert growth(12, 3, lambda: tiny_model.thinker.generate(input_ids=ids, **options)) < 12


@pytest.mark.slow
def test_memory_does_not_grow_over_twenty_long_answers(tiny_model):
    """The allocator's pools settle within the warm-up; keeping the caches would add 90 MiB."""
    ids = np.random.default_rng(0).integers(0, 250, (1, 2000))
    options = {"max_new_tokens": 64, "eos_token_id": []}
    assert growth(20, 8, lambda: tiny_model.thinker.generate(input_ids=ids, **options)) < 40
