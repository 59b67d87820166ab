"""Answers whose length nobody has named, in caches that do not hold as much as they may be; and functions of callers in small ones."""

import threading

import numpy as np
import pytest

from ms_omni.engine import scheduler
from ms_omni.engine.engine import Engine
from ms_omni.engine.kv_pool import KVPool
from ms_omni.engine.runner import talker_state_bytes
from ms_omni.errors import InputError
from ms_omni.outputs import AudioChunk, StreamEnd, StreamError, TextDelta
from tests.engine.callers import answer, check_empty
from tests.engine.test_engine import ask, model  # noqa: F401

ENDLESS = {"eos_token_id": [], "talker_eos_token_id": [], "seed": 3}
SPEECH_FULL = (
    r"the speech was cut off after (\d+): with the (\d+) tokens of its prompt .* holds 256.*talker_max_new_tokens=\1 or less"
)


def run(engine, *ids):
    """Events of these answers."""
    events = {id: [] for id in ids}
    while engine.added:
        for id, event in engine.step():
            events[id].append(event)
    check_empty(engine)
    return list(events.values())


def counts(events):
    """Tokens and samples."""
    sound = sum(event.pcm.shape[1] for event in events if isinstance(event, AudioChunk))
    return sum(isinstance(event, TextDelta) for event in events), sound


def test_an_answer_that_fills_the_cache_alone_ends_with_an_error(model, ask):
    """What was written is handed out, one of a named length beside it is what it is alone, and the engine goes on."""
    question = ask("What is 1 plus 2?")
    room = 256 - question["input_ids"].shape[1]
    short = {
        **question,
        "return_audio": False,
        "max_new_tokens": 200,
        "eos_token_id": [],
        "thinker_do_sample": True,
        "seed": 1,
    }
    alone = Engine(model, tokens=256)
    expected = answer(run(alone, alone.add(**short))[0])
    engine = Engine(model, tokens=256)
    asked = [engine.add(**question, **ENDLESS, return_audio=False), engine.add(**short), engine.add(**short)]
    (*deltas, last), *others = run(engine, *asked)
    assert len(deltas) == room and isinstance(last, StreamError) and isinstance(last.error, InputError)
    assert f"the text was cut off after {room}:" in str(last.error) and f"max_new_tokens={room} or less" in str(last.error)
    assert [answer(other) for other in others] == [expected] * 2
    named = {**question, **ENDLESS, "return_audio": False, "max_new_tokens": room}
    (again,) = run(engine, engine.add(**named))
    assert isinstance(again[-1], StreamEnd)
    assert [int(event.token[0]) for event in again[:-1]] == [int(event.token[0]) for event in deltas]
    with pytest.raises(InputError, match="the answer needs 257 tokens"):
        engine.add(**{**named, "max_new_tokens": room + 1})
    with pytest.raises(InputError, match="the answer needs"):
        engine.add(**{**question, "generation_config": {"max_new_tokens": room + 1}})
    with pytest.raises(InputError, match="the answer needs"):
        engine.add(**question, max_length=1024)
    check_empty(engine)


@pytest.mark.parametrize("apart", [None, "process"])
def test_a_speech_that_fills_the_cache_alone_ends_with_an_error(model, ask, apart):
    """Behind all that was said and written."""
    question = ask("What is 1 plus 2?")
    engine = Engine(model, tokens=256, speech=apart)
    (events,) = run(engine, engine.add(**question, **ENDLESS, max_new_tokens=20))
    *_, last = events
    assert isinstance(last, StreamError)
    with pytest.raises(InputError, match=SPEECH_FULL) as found:
        raise last.error
    tokens, samples = counts(events)
    room = int(str(found.value).split("cut off after ")[1].split(":")[0])
    (named,) = run(engine, engine.add(**question, **ENDLESS, max_new_tokens=20, talker_max_new_tokens=room))
    assert counts(named) == (tokens, samples) == (20, samples) and named[-1].frames[0] == room - 1
    with pytest.raises(InputError, match="its speech needs 257 tokens"):
        engine.add(**question, **ENDLESS, max_new_tokens=20, talker_max_new_tokens=room + 1)
    engine.close()


def test_both_fill_their_caches(model, ask):
    engine = Engine(model, tokens=256)
    (events,) = run(engine, engine.add(**ask("What is 1 plus 2?"), **ENDLESS))
    tokens, samples = counts(events)
    assert isinstance(events[-1], StreamError) and tokens > 128 and samples > 0


def test_generate_ends_with_the_same_error(model, ask, monkeypatch):
    """The engine of a model's own methods holds what fits into memory."""
    monkeypatch.setattr(model, "own_engine", Engine(model, tokens=256, grows=True))
    monkeypatch.setattr(model.thinker, "own_engine", None)
    question, received = ask("What is 1 plus 2?"), []
    with pytest.raises(InputError, match="the text was cut off after"):
        received.extend(model.stream(**question, **ENDLESS, return_audio=False))
    with pytest.raises(InputError, match="the text was cut off after"):
        model.generate(**question, **ENDLESS, return_audio=False)
    check_empty(model.own_engine)


# -- functions of callers --------------------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(scheduler, "REST_S", 0.02)


@pytest.mark.parametrize("options", [{"max_rows": 1, "tokens": 1024}, {"tokens": 128}], ids=str)
def test_a_function_may_ask_an_engine_that_has_no_room_beside_it(model, ask, impatient, options):
    """The answer that waits for it makes place, and is rebuilt."""
    engine, question = Engine(model, **options), ask("What is 1 plus 2?")
    plain = {**question, "return_audio": False, "max_new_tokens": 4, "eos_token_id": []}
    expected, found = answer(list(engine.events(engine.add(**plain)))), []

    def again(ids, scores):
        found.append(answer(list(engine.events(engine.add(**plain)))))
        return scores

    found.append(answer(list(engine.events(engine.add(**plain, logits_processor=[again])))))
    assert found == [expected] * 5
    check_empty(engine)


def test_who_does_not_go_on_starves_nobody(model, ask, impatient):
    """A caller with a function that has left off reading, and a thread that wants all blocks; the states and the cache that the
    first has asked for are whole nevertheless.
    """
    question = dict(ask("What is 1 plus 2?"))
    flags = {"output_hidden_states": True, "use_cache": True, "return_dict_in_generate": True}
    options = {
        **question,
        **flags,
        "max_new_tokens": 3,
        "eos_token_id": [],
        "logits_processor": [lambda ids, scores: scores],
    }
    expected = model.thinker.generate(**options)
    engine = Engine(model.thinker, tokens=256)
    model.thinker.own_engine, kept = engine, model.thinker.own_engine
    try:
        go, length = threading.Event(), question["input_ids"].shape[1]

        def slow(ids, scores):
            if ids.shape[1] == length + 2:
                entered.set()
                assert go.wait(60)
            return scores

        entered, found = threading.Event(), []
        thread = threading.Thread(
            target=lambda: found.append(model.thinker.generate(**{**options, "logits_processor": [slow]}))
        )
        thread.start()
        assert entered.wait(60)
        preempted, drop = [], scheduler.Scheduler._preempt
        engine.scheduler._preempt = lambda plan, row: preempted.append(row.id) or drop(engine.scheduler, plan, row)
        list(engine.events(engine.add(**question, max_new_tokens=256 - length, eos_token_id=[])))
        assert preempted == [0]
        go.set()
        thread.join(60)
    finally:
        model.thinker.own_engine = kept
    (result,) = found
    assert np.array_equal(result.sequences, expected.sequences)
    for steps, others in zip(result.hidden_states, expected.hidden_states, strict=True):
        assert all(np.array_equal(one, other) for one, other in zip(steps, others, strict=True))
    cache, other = result.past_key_values, expected.past_key_values
    assert cache.length == other.length == length + 2
    for one, two in zip((*cache.keys, *cache.values), (*other.keys, *other.values), strict=True):
        one, two = (part.asnumpy().reshape(-1, held.capacity, part.shape[-1]) for part, held in ((one, cache), (two, other)))
        assert np.array_equal(one[:, : cache.length], two[:, : cache.length])
    check_empty(engine)


# -- memory ----------------------------------------------------------------------------------------------------------


def test_what_a_talker_hears_is_counted(model, monkeypatch):
    """As large as it is per chunk of a prompt, beside keys and values."""
    from ms_omni.engine import engine as module

    decoder = model.thinker.model
    assert talker_state_bytes(decoder) == 2 * 128 * decoder.config.hidden_size * 4
    asked = []
    monkeypatch.setattr(module, "_blocks_that_fit", lambda nbytes, *_: asked.append(nbytes) or 8)
    Engine(model), Engine(model.thinker)
    alone = KVPool.block_bytes(decoder)
    assert asked == [alone + KVPool.block_bytes(model.talker.model) + talker_state_bytes(decoder), alone]


def test_what_a_talker_hears_goes_with_its_blocks(model, ask):
    """A chunk that is forgotten for room takes its payload along; it is as large as was counted."""
    engine, long = Engine(model, tokens=1024), "count from one to ten and back again, please. " * 25
    kept = engine.scheduler.pools[0]._chunks
    for question in ("What?", "Why?"):
        run(engine, engine.add(**ask(question + long), return_audio=False, max_new_tokens=2))
        (chunk,) = kept.values()
        assert sum(part.nbytes for part in chunk.payload) == 4 * talker_state_bytes(model.thinker.model)
