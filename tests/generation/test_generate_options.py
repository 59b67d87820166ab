"""Options of `generate` on a small model: each does what it says, in batches, in streams, and beside each other."""

import importlib

import numpy as np
import pytest

from ms_omni import errors
from ms_omni.errors import InputError
from ms_omni.modeling.packing import host_array
from ms_omni.outputs import GenerateOutput, StreamEnd

NEW = 5
FREE = {"max_new_tokens": NEW, "eos_token_id": []}


@pytest.fixture(scope="module")
def thinker(tiny_model):
    return tiny_model.thinker


@pytest.fixture(scope="module")
def batch(ask):
    return ask("hi", "how are you today")


def new(ids, inputs):
    return np.asarray(ids)[:, inputs["input_ids"].shape[1] :].tolist()


def test_neutral_values_change_nothing(thinker, batch, greedy_tokens, monkeypatch):
    monkeypatch.setattr(errors, "_warned", set())
    neutral = {
        "num_beams": 1,
        "use_cache": True,
        "output_attentions": False,
        "output_hidden_states": False,
        "output_logits": False,
        "num_return_sequences": 1,
        "length_penalty": 1.0,
        "early_stopping": False,
        "typical_p": 1.0,
        "repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        "guidance_scale": None,
        "bad_words_ids": None,
        "synced_gpus": False,
        "logits_processor": [],
        "stopping_criteria": None,
        "generation_config": None,
        "assistant_model": None,
    }
    assert new(thinker.generate(**batch, **FREE, **neutral), batch) == greedy_tokens(batch, NEW).tolist()
    assert new(thinker.generate(**batch, **FREE, use_cache=False), batch) == greedy_tokens(batch, NEW).tolist()
    assert not errors._warned  # no word on any of them


def test_ids_by_position_and_by_the_name_inputs(thinker, ask, greedy_tokens):
    one = ask("hi")
    for arguments, named in (
        ([one["input_ids"]], {}),
        ([], {"inputs": one["input_ids"]}),
        ([one], {}),
    ):
        assert new(thinker.generate(*arguments, **named, **FREE), one) == greedy_tokens(one, NEW).tolist()
    with pytest.raises(InputError, match="got both input_ids and inputs"):
        thinker.generate(one["input_ids"], inputs=one["input_ids"])


@pytest.mark.parametrize("before", [None, 5], ids=["right", "middle"])
def test_padding_may_stand_anywhere(before, thinker, batch, greedy_tokens):
    """The prompt is handed back as it was given, so that it still fits its mask."""
    ids, mask = batch["input_ids"].copy(), batch["attention_mask"].copy()
    padding, words = np.flatnonzero(mask[0] == 0), np.flatnonzero(mask[0])
    order = np.concatenate([words[:before], padding, words[len(words) if before is None else before :]])
    ids[0], mask[0] = ids[0, order], mask[0, order]
    assert len(padding) and not mask[0, -1 if before is None else before]
    found = thinker.generate(input_ids=ids, attention_mask=mask, **FREE)
    assert new(found, batch) == greedy_tokens(batch, NEW).tolist()
    assert np.array_equal(found[:, : ids.shape[1]], ids)
    inputs = {"inputs_embeds": thinker.embed_text(ids), "attention_mask": mask.astype(np.float32)}
    assert thinker.generate(**inputs, **FREE).tolist() == greedy_tokens(batch, NEW).tolist()
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    assert thinker.generate(**inputs, position_ids=positions, **FREE).tolist() == greedy_tokens(batch, NEW).tolist()


def test_embeddings_in_place_of_ids(thinker, batch, greedy_tokens):
    embeds = thinker.embed_text(batch["input_ids"])
    options = {"inputs_embeds": embeds, "attention_mask": batch["attention_mask"], **FREE}
    assert thinker.generate(**options).tolist() == greedy_tokens(batch, NEW).tolist()  # the new ones alone
    assert new(thinker.generate(input_ids=batch["input_ids"], **options), batch) == greedy_tokens(batch, NEW).tolist()
    with pytest.raises(InputError, match="inputs_embeds holds pictures and sounds already; leave pixel_values out"):
        thinker.generate(**options, pixel_values=np.zeros((4, 8)))
    with pytest.raises(InputError, match="max_length is 3, but the prompt has"):
        thinker.generate(inputs_embeds=embeds, max_length=3)


def test_everything_that_a_result_can_hold(thinker, batch, greedy_tokens):
    asked = {"output_scores": True, "output_logits": True, "output_hidden_states": True, "return_dict_in_generate": True}
    banned = int(greedy_tokens(batch, NEW)[0, 0])
    result = thinker.generate(**batch, **FREE, **asked, use_cache=True, suppress_tokens=[banned])
    rows, tokens = batch["input_ids"].shape
    layers = thinker.config.text_config.num_hidden_layers
    assert [len(result[name]) for name in ("scores", "logits", "hidden_states")] == [NEW] * 3
    assert [states[0].shape[1] for states in result.hidden_states] == [tokens, *[1] * (NEW - 1)]
    assert all(len(states) == layers + 1 for states in result.hidden_states)
    assert np.isneginf(result.scores[0][:, banned]).all() and np.isfinite(result.logits[0]).all()
    chosen = np.argmax(result.scores, axis=-1).T
    assert chosen.tolist() == new(result.sequences, batch)
    for states, logits in zip(result.hidden_states, result.logits):
        assert np.allclose(host_array(thinker.logits(_tensor(states[-1][:, -1:])))[:, 0], logits, atol=1e-4)
    assert result.past_key_values.get_seq_length() == tokens + NEW - 1
    assert result[0] is result.sequences and "attentions" not in result and rows == 2


def _tensor(array):
    from mindspore import Tensor

    return Tensor(np.asarray(array))


def test_hidden_states_do_not_change_the_tokens(thinker, batch, greedy_tokens):
    options = {"output_hidden_states": True, "return_dict_in_generate": True}
    assert new(thinker.generate(**batch, **FREE, **options).sequences, batch) == greedy_tokens(batch, NEW).tolist()


def test_a_cache_is_gone_on_from(thinker, ask, greedy_tokens):
    """Two tokens, and later the rest, from what the first call kept; and from what a forward pass kept."""
    inputs = ask("hi")
    first = thinker.generate(**inputs, max_new_tokens=2, eos_token_id=[], return_dict_in_generate=True, use_cache=True)
    again = thinker.generate(
        input_ids=first.sequences, past_key_values=first.past_key_values, max_new_tokens=NEW - 2, eos_token_id=[]
    )
    assert new(again, inputs) == greedy_tokens(inputs, NEW).tolist()
    ids = inputs["input_ids"]
    cache = thinker(input_ids=ids[:, :-3]).past_key_values
    assert new(thinker.generate(**inputs, past_key_values=cache, **FREE), inputs) == greedy_tokens(inputs, NEW).tolist()
    with pytest.raises(InputError, match="input_ids must be those tokens and new ones behind them"):
        thinker.generate(**inputs, past_key_values=cache)
    with pytest.raises(InputError, match="past_key_values is 3, expected what the thinker or generate"):
        thinker.generate(**inputs, past_key_values=3)


def test_several_answers_to_one_prompt(thinker, batch):
    """Rows of a prompt draw differently; without a choice (top_k=1) they are the greedy answer."""
    drawn = {"do_sample": True, "temperature": 3.0, "num_return_sequences": 3, "seed": 7}
    ids = thinker.generate(**batch, **FREE, **drawn)
    assert ids.shape == (6, batch["input_ids"].shape[1] + NEW)
    assert np.array_equal(ids[:, :-NEW], batch["input_ids"].repeat(3, axis=0))
    assert len({tuple(row) for row in new(ids, batch)}) == 6
    assert np.array_equal(ids, thinker.generate(**batch, **FREE, **drawn))
    with pytest.raises(InputError, match="greedy decoding has one answer; add do_sample=True"):
        thinker.generate(**batch, num_return_sequences=2)


def test_several_answers_without_a_choice_are_the_greedy_one(thinker, batch, greedy_tokens):
    ids = thinker.generate(**batch, **FREE, do_sample=True, top_k=1, num_return_sequences=2)
    assert new(ids, batch) == greedy_tokens(batch, NEW).repeat(2, axis=0).tolist()


def test_set_seed_of_mindspore_counts_and_a_seed_goes_before_it(thinker, ask, monkeypatch):
    import mindspore

    monkeypatch.setattr(importlib.import_module("mindspore.common.seed"), "_GLOBAL_SEED", None)
    inputs = ask("hi")

    def drawn(**options):
        return new(thinker.generate(**inputs, **FREE, do_sample=True, temperature=5.0, **options), inputs)

    state = np.random.get_state()
    assert drawn() != drawn()
    mindspore.set_seed(3)
    first, second = drawn(), drawn()
    assert first != second
    mindspore.set_seed(3)
    assert drawn(seed=1) == drawn(seed=1)  # and takes nothing from the series
    assert [drawn(), drawn()] == [first, second]
    np.random.set_state(state)


def test_options_of_a_stream_are_those_of_a_result(tiny_model, batch):
    options = {
        "max_new_tokens": NEW,
        "eos_token_id": [],
        "return_audio": False,
        "do_sample": True,
        "min_p": 0.01,
        "no_repeat_ngram_size": 1,
        "presence_penalty": 0.5,
        "logits_processor": lambda ids, scores: scores - (np.arange(scores.shape[1]) % 2) * 50,
        "stopping_criteria": lambda ids, scores: ids[:, -1] % 10 == 0,
        "num_return_sequences": 2,
        "pad_token_id": 0,
        "seed": 5,
    }
    ids = tiny_model.generate(**batch, **options)
    *events, end = tiny_model.stream(**batch, **options)
    assert isinstance(end, StreamEnd) and np.array_equal(end.sequences, ids)
    said = new(ids, batch)
    assert len(said) == 4 and all(token % 2 == 0 for row in said for token in row)
    assert np.array_equal(np.stack([event.token for event in events], axis=1), said)


def test_no_repeat_ngrams_and_bad_words_on_text(thinker, batch, greedy_tokens):
    first = greedy_tokens(batch, NEW)[0].tolist()
    ids = thinker.generate(**batch, **FREE, no_repeat_ngram_size=1)
    for row, mask in zip(np.asarray(ids), batch["attention_mask"]):
        assert not set(row[-NEW:]) & set(row[:-NEW][mask == 1]) and len(set(row[-NEW:])) == NEW
    ids = thinker.generate(**batch, **FREE, bad_words_ids=[first[:2]])
    found = new(ids, batch)[0]
    assert found[0] == first[0] and found[1] != first[1]


def test_speech_takes_options_of_the_text(tiny_model, ask):
    seen = []
    text, audio = tiny_model.generate(
        **ask("hi"),
        talker_max_new_tokens=3,
        thinker_max_new_tokens=3,
        eos_token_id=[],
        stopping_criteria=[lambda ids, scores: seen.append((ids.shape[1], scores)) or False],
        thinker_return_dict_in_generate=True,
        output_hidden_states=True,
        talker_num_beams=1,
        talker_no_repeat_ngram_size=2,
        talker_temperature=0,
        spk="Chelsie",
    )
    tokens = ask("hi")["input_ids"].shape[1]
    assert seen == [(tokens + n, None) for n in (1, 2, 3)]
    assert isinstance(text, GenerateOutput) and len(text.hidden_states) == 3 and audio.ndim == 3


@pytest.mark.parametrize(
    "options, said",
    [
        (
            {"num_return_sequences": 2, "do_sample": True},
            "num_return_sequences is for answers in text; add return_audio=False",
        ),
        ({"talker_output_scores": True}, "talker_output_scores is not to be had"),
        ({"spk": "Ethan", "speaker": "Ethan"}, "got both speaker and spk"),
        ({"generation_mode": "text", "return_audio": True}, "generation_mode is 'text', but return_audio is True"),
        ({"return_audio": "no"}, "return_audio is 'no', expected True or False"),
        ({"return_audio": False, "speaker": "Nobody"}, "unknown speaker 'Nobody'"),
        ({"return_audio": False, "talker_temprature": 1}, "talker has no argument 'temprature'"),
        ({"return_audio": False, "predictor_top_q": 1}, "predictor_top_q is unknown"),
        ({"return_audio": False, "token2wav_foo": 1}, "token2wav_foo is unknown"),
        ({"talker_num_beams": 2}, "talker: num_beams is 2, which is not supported: beam search"),
    ],
    ids=lambda value: None if isinstance(value, str) else "+".join(value),
)
def test_refusals_of_the_whole_model(options, said, tiny_model, ask):
    with pytest.raises(InputError, match=said):
        tiny_model.generate(**ask("hi"), **options)


def test_temperature_zero_is_greedy_for_every_sampler(tiny_model, ask):
    request = tiny_model.stream(**ask("hi"), temperature=0, do_sample=True, talker_temperature=0.0).request
    assert not (request.text.do_sample or request.speech.talker.do_sample or request.speech.predictor.do_sample)
    request = tiny_model.stream(**ask("hi"), predictor_temperature=0).request
    assert request.speech.talker.do_sample and not request.speech.predictor.do_sample


def test_what_is_set_on_the_model_is_the_default(tiny_model, ask, greedy_tokens):
    config, inputs = tiny_model.generation_config, ask("hi")
    assert config is tiny_model.thinker.generation_config and config.temperature is None
    config.max_new_tokens, config.eos_token_id = 2, []
    before = dict(config._loaded)
    try:
        expected = greedy_tokens(inputs, NEW)[:, :2].tolist()
        for model in (tiny_model, tiny_model.thinker):
            options = {} if model is tiny_model.thinker else {"return_audio": False}
            assert new(model.generate(**inputs, **options), inputs) == expected
            assert len(new(model.generate(**inputs, **options, max_new_tokens=3), inputs)[0]) == 3
    finally:
        config.max_new_tokens, config.eos_token_id = None, before["eos_token_id"]
