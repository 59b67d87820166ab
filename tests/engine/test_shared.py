"""The engine that all calls of a model share, and what may happen to the model between them."""

import copy
import pickle
import signal
import threading

import numpy as np
import pytest

from ms_omni.engine.engine import Engine, engine_of
from ms_omni.errors import InputError
from ms_omni.outputs import StreamEnd, StreamError, TextDelta

NEW = 4
TEXT = {"max_new_tokens": NEW, "eos_token_id": []}
SPEECH = {**TEXT, "talker_max_new_tokens": 4, "talker_do_sample": False, "talker_eos_token_id": []}


@pytest.fixture(scope="module")
def ask(processor):
    def inputs(*texts):
        messages = [[{"role": "user", "content": text}] for text in texts]
        return dict(processor.apply_chat_template(messages, tokenize=True, return_dict=True, add_generation_prompt=True))

    return inputs


@pytest.fixture
def load(tiny_checkpoint):
    def model(**options):
        from ms_omni import Qwen3OmniMoeForConditionalGeneration

        return Qwen3OmniMoeForConditionalGeneration.from_pretrained(
            tiny_checkpoint, compile_steps=False, progress=False, **options
        )

    return model


@pytest.fixture
def expected(tiny_model, ask):
    """The answer of the model as it is in its checkpoint, in text, and spoken."""
    return tiny_model.thinker.generate(**ask("hi"), **TEXT).tolist(), tiny_model.generate(**ask("hi"), **SPEECH)


def check(model, ask, expected, spoken=True):
    text, (ids, wave) = expected
    assert model.thinker.generate(**ask("hi"), **TEXT).tolist() == text
    if spoken:
        found, sound = model.generate(**ask("hi"), **SPEECH)
        assert np.array_equal(found, ids) and np.array_equal(sound, wave)


def is_empty(engine):
    return not engine.rows and not any(pool.used for pool in engine.scheduler.pools if pool)


# -- one engine ------------------------------------------------------------------------------------------------------


def test_a_model_and_its_thinker_share_one(load, ask, expected):
    model = load()
    model.thinker.generate(**ask("hi"), **TEXT)
    alone = model.thinker.own_engine
    assert not alone.whole
    check(model, ask, expected)
    assert model.own_engine is model.thinker.own_engine is engine_of(model.thinker) is not alone
    assert is_empty(model.own_engine)


def test_more_rows_than_a_launch_holds(tiny_model, ask):
    texts = [f"question {'x' * index}" for index in range(20)]
    together = tiny_model.thinker.generate(**ask(*texts), **TEXT)[:, -NEW:].tolist()
    assert together == [tiny_model.thinker.generate(**ask(text), **TEXT)[0, -NEW:].tolist() for text in texts]


def test_a_pool_that_has_grown_holds_the_same(tiny_model, ask):
    """300 tokens behind a prompt of 460: the own engine begins with four blocks of 128."""
    inputs, options = ask("x " * 220), {"max_new_tokens": 300, "eos_token_id": [], "return_audio": False}
    answers = []
    for grows in (True, False):
        engine = Engine(tiny_model, tokens=2048, grows=grows)
        before = engine.thinker.pool.blocks
        *_, end = engine.events(engine.add(**inputs, **options))
        answers.append(end.sequences.tolist())
        assert (engine.thinker.pool.blocks > before) == grows
        assert is_empty(engine)
    assert answers[0] == answers[1]


# -- the model changes -----------------------------------------------------------------------------------------------


def test_weights_that_were_set_are_the_ones_that_answer(load, ask, expected):
    model = load()
    check(model, ask, expected)
    weight = model.thinker.model.embed_tokens.weight
    kept = weight.value().copy()
    weight.set_data(weight * -1)
    assert model.thinker.generate(**ask("hi"), **TEXT).tolist() != expected[0]
    weight.set_data(kept)
    check(model, ask, expected)


def test_weights_that_were_trained_are_the_ones_that_answer(load, ask, expected):
    import mindspore as ms
    from mindspore import nn

    model, inputs = load(), ask("hi")
    check(model, ask, expected, spoken=False)
    weights = [model.thinker.model.norm.weight, model.thinker.model.layers[0].self_attn.q_proj.weight]
    optimizer = nn.SGD(weights, learning_rate=100.0)
    _, gradients = ms.value_and_grad(lambda: model.thinker(**inputs, labels=inputs["input_ids"]).loss, None, weights)()
    optimizer(gradients)
    after = model.thinker.generate(**inputs, **TEXT, output_logits=True, return_dict_in_generate=True)
    fresh = model.thinker(**inputs).logits.asnumpy()[0, -1]
    assert np.abs(after.logits[0][0] - fresh).max() < 1e-4 * np.abs(fresh).max()


def test_a_vocabulary_that_was_resized(load, ask, expected):
    model = load()
    check(model, ask, expected, spoken=False)
    size = model.config.thinker_config.text_config.vocab_size
    model.resize_token_embeddings(size + 16)
    result = model.thinker.generate(**ask("hi"), **TEXT, output_logits=True, return_dict_in_generate=True)
    assert result.logits[0].shape[-1] == size + 16


def test_a_copy_has_an_engine_of_its_own(load, ask, expected):
    model = load()
    check(model, ask, expected)
    twin = copy.deepcopy(model)
    assert twin.own_engine is None
    check(twin, ask, expected)
    assert twin.own_engine is not model.own_engine
    weight = twin.thinker.model.embed_tokens.weight
    weight.set_data(weight * -1)
    assert twin.thinker.generate(**ask("hi"), **TEXT).tolist() != expected[0]
    check(model, ask, expected)


def test_an_engine_is_not_pickled():
    engine = Engine.__new__(Engine)
    assert pickle.loads(pickle.dumps(engine)) is None


def test_the_talker_goes_and_comes(load, ask, expected):
    model = load()
    check(model, ask, expected)
    model.disable_talker()
    assert model.generate(**ask("hi"), **TEXT).tolist() == expected[0] and not model.own_engine.speaks
    model.enable_talker()
    check(model, ask, expected)


def test_another_thinker(load, ask, expected):
    model, other = load(), load()
    check(model, ask, expected)
    weight = other.thinker.model.embed_tokens.weight
    weight.set_data(weight * -1)
    answer = other.thinker.generate(**ask("hi"), **TEXT).tolist()
    model.thinker = other.thinker
    assert model.generate(**ask("hi"), **TEXT, return_audio=False).tolist() == answer != expected[0]


# -- interruptions ---------------------------------------------------------------------------------------------------


def test_an_interruption_ends_the_answer_of_who_waits_and_no_other(tiny_model, ask, expected, monkeypatch):
    engine = engine_of(tiny_model)
    other = tiny_model.stream(**ask("hi"), **TEXT, return_audio=False)
    next(other)
    decode, calls = engine.thinker.decode, []

    def interrupted(rows):
        calls.append(len(rows))
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return decode(rows)

    monkeypatch.setattr(engine.thinker, "decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tiny_model.thinker.generate(**ask("hello world"), **TEXT)
    assert len(engine.rows) == 1
    *_, end = other
    assert end.sequences.tolist() == expected[0]
    assert is_empty(engine)


# -- model.engine ----------------------------------------------------------------------------------------------------


def test_add_and_step_until_all_are_answered(tiny_model, ask, expected):
    engine = tiny_model.engine(max_rows=2, tokens=1024)
    ids = [engine.add(**ask("hi"), **TEXT, return_audio=False) for _ in range(3)]
    cancelled = engine.add(**ask("hello"), **SPEECH)
    events = {id: [] for id in (*ids, cancelled)}
    engine.cancel(cancelled)
    engine.cancel(cancelled)
    while engine.added:
        for id, event in engine.step():
            events[id].append(event)
    assert not events[cancelled] and engine.step() == []
    for id in ids:
        *deltas, end = events[id]
        assert isinstance(end, StreamEnd) and end.sequences.tolist() == expected[0]
        assert [int(delta.token[0]) for delta in deltas] == expected[0][0][-NEW:]
        assert all(isinstance(delta, TextDelta) for delta in deltas)
    assert is_empty(engine)


@pytest.mark.parametrize("options", [{"max_rows": "x"}, {"max_rows": 0}, {"tokens": 1.5}, {"speech": "loud"}], ids=str)
def test_what_an_engine_cannot_be(options, tiny_model):
    with pytest.raises(InputError, match=f"{next(iter(options))} is"):
        tiny_model.engine(**options)


def test_a_closed_engine(tiny_model, ask):
    engine = tiny_model.engine(max_rows=1, tokens=1024)
    options = {**ask("hi"), **TEXT, "return_audio": False}
    reader = engine.events(engine.add(**options))
    waiting, errors = [engine.add(**options) for _ in range(2)], []

    def wait(id):
        try:
            list(engine.events(id))
        except InputError as error:
            errors.append(str(error))

    next(reader)
    engine.close()
    thread = threading.Thread(target=wait, args=(waiting[0],))
    thread.start()
    thread.join(60)
    assert errors == ["the engine was closed before the end of this answer"]
    with pytest.raises(InputError, match="closed before the end"):
        list(reader)
    events = engine.step()
    assert [id for id, _ in events] == waiting[1:] and isinstance(events[0][1], StreamError)
    with pytest.raises(InputError, match=r"this engine is closed; make another one with model.engine\(\)"):
        engine.add(**options)
    engine.close()
    assert not engine.added and not engine.rows


def test_closing_the_own_engine_makes_way_for_another(tiny_model, ask, expected):
    engine_of(tiny_model).close()
    check(tiny_model, ask, expected)
