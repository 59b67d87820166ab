"""Every answer is, bit for bit, what it is alone: whoever comes, goes or fails meanwhile, however little room there is."""

import json
import threading

import numpy as np
import pytest

from ms_omni.engine.engine import Engine
from ms_omni.errors import InputError
from ms_omni.outputs import AudioChunk, StreamEnd, StreamError, TextDelta
from tests.miniature.conftest import MINIATURE

KINDS = 16


@pytest.fixture(scope="module")
def model():
    from ms_omni import Qwen3OmniMoeForConditionalGeneration

    return Qwen3OmniMoeForConditionalGeneration.from_pretrained(MINIATURE, compile_steps=False, progress=False)


@pytest.fixture(scope="module")
def ask():
    """`ask(text, {"image": file}, ...)`: model inputs of a question with media before it."""
    from ms_omni import Qwen3OmniMoeProcessor

    processor = Qwen3OmniMoeProcessor.from_pretrained(MINIATURE)

    def inputs(text, *media, woven=False):
        items = [{"type": kind, kind: str(MINIATURE / "samples" / file)} for item in media for kind, file in item.items()]
        content = [*items, {"type": "text", "text": text}]
        options = {"tokenize": True, "return_dict": True, "add_generation_prompt": True, "use_audio_in_video": woven}
        found = processor.apply_chat_template([[{"role": "user", "content": content}]], **options)
        return {**found, "use_audio_in_video": woven}

    return inputs


@pytest.fixture(scope="module")
def questions(ask):
    """The samples that lie beside the miniature, and two long questions that begin alike."""
    found = []
    for entry in json.loads((MINIATURE / "samples/samples.json").read_text()):
        media = [{item["type"]: item["file"]} for item in entry["media"]]
        found.append(ask(entry["question"], *media, woven=entry["use_audio_in_video"]))
    long = "count from one to ten and back again, please. " * 30
    return [*found, *(ask(long + question) for question in ("What is 1 plus 2?", "What is 7 plus 5?"))]


@pytest.fixture(scope="module")
def requests(questions):
    """Arguments of `KINDS` requests: text or speech, greedy or sampled, short or long."""
    found = []
    for kind in range(KINDS):
        rng = np.random.default_rng(kind)
        flags = rng.random(3) < 0.5
        speech = {"talker_max_new_tokens": int(rng.integers(2, 24)), "talker_do_sample": bool(flags[1])}
        more = speech if flags[0] else {"return_audio": False}
        counts = {"max_new_tokens": int(rng.integers(1, 12)), "seed": kind, "thinker_do_sample": bool(flags[2])}
        found.append({**questions[kind % len(questions)], **more, **counts})
    return found


@pytest.fixture(scope="module")
def alone(model, requests):
    """What each of them is answered when nobody else is there."""
    engine = Engine(model, max_rows=1)
    return [answer(list(engine.events(engine.add(**request)))) for request in requests]


def answer(events):
    """Ids, number of frames and samples."""
    end = events[-1]
    assert isinstance(end, StreamEnd) and sum(isinstance(event, StreamEnd) for event in events) == 1
    sound = [event for event in events if isinstance(event, AudioChunk)]
    assert [chunk.first_sample for chunk in sound] == np.cumsum([0, *(c.pcm.shape[1] for c in sound)])[:-1].tolist()
    assert sum(isinstance(event, TextDelta) for event in events) == end.text_tokens[0]
    return end.sequences.tolist(), int(end.frames[0]), b"".join(chunk.pcm.tobytes() for chunk in sound)


def run(engine, requests, wanted, rng, arrivals=0.3, cancels=0.0):
    """Answers to requests that come at random, `[(kind, events), ...]` of those that were not cancelled."""
    wanted, kinds, events = list(wanted), {}, {}
    while wanted or engine.added:
        if wanted and rng.random() < arrivals:
            kind = wanted.pop()
            id = engine.add(**requests[kind])
            kinds[id], events[id] = kind, []
        for id, event in engine.step():
            events[id].append(event)
        if engine.added and rng.random() < cancels:
            id = int(rng.choice(sorted(engine.added)))
            engine.cancel(id)
            del kinds[id]
    return [(kind, events[id]) for id, kind in kinds.items()]


def check_empty(engine):
    assert not engine.rows and all(pool.used == 0 for pool in engine.scheduler.pools if pool is not None)


@pytest.mark.parametrize("seed", [*range(3), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 20))])
def test_random_schedules(model, requests, alone, seed):
    rng = np.random.default_rng([20, seed])
    engine = Engine(model, max_rows=int(rng.choice([1, 2, 3, 5, 8, 16])), tokens=int(rng.choice([1100, 1500, 4096, 16384])))
    wanted = rng.integers(0, KINDS, int(rng.integers(4, 14)))
    for kind, events in run(engine, requests, wanted, rng, float(rng.choice([0.05, 0.3, 1.0])), cancels=0.01):
        assert answer(events) == alone[kind], kind
    check_empty(engine)


def test_where_there_is_too_little_room_rows_are_dropped_and_rebuilt(model, ask):
    """Four answers that fit while they are short, and not when they are long."""
    requests = [
        {**ask(f"What is {n} plus 2?"), "return_audio": False, "max_new_tokens": 300, "eos_token_id": []} for n in range(4)
    ]
    expected = []
    for request in requests:
        single = Engine(model, max_rows=1, tokens=512)
        expected.append(answer(list(single.events(single.add(**request)))))
    engine = Engine(model, max_rows=4, tokens=896)
    dropped, plan = [], engine.scheduler.plan
    engine.scheduler.plan = lambda: dropped.extend((found := plan()).dropped) or found
    for kind, events in run(engine, requests, range(4), np.random.default_rng(0), arrivals=1.0):
        assert answer(events) == expected[kind]
    assert dropped
    check_empty(engine)


def test_what_was_read_before_is_found_again(model, questions):
    """The second long question reads its last chunk alone, and has the bits that it has in an engine of its own."""
    requests = [{**question, "max_new_tokens": 4, "talker_max_new_tokens": 6, "seed": 1} for question in questions[-2:]]
    fresh = Engine(model)
    expected = answer(list(fresh.events(fresh.add(**requests[1]))))
    engine, read = Engine(model), []
    list(engine.events(engine.add(**requests[0])))
    original = engine.thinker.read
    engine.thinker.read = lambda row, start, stop: read.append((start, stop)) or original(row, start, stop)
    assert answer(list(engine.events(engine.add(**requests[1])))) == expected
    assert read == [(512, requests[1]["input_ids"].shape[1])]


def test_media_are_encoded_once(model, ask, monkeypatch):
    calls, see = [], type(model.thinker)._see
    monkeypatch.setattr(type(model.thinker), "_see", lambda self, *args: calls.append(1) or see(self, *args))
    engine, picture = Engine(model), {"image": "circle.png"}
    for question in ("What is this?", "Which colour is it?"):
        list(engine.events(engine.add(**ask(question, picture), return_audio=False, max_new_tokens=2)))
    assert len(calls) == 1


def test_who_fails_ends_alone(model, requests, alone):
    engine = Engine(model)
    wrong = {**requests[0], "return_audio": False, "max_new_tokens": 8}
    failing = engine.add(**wrong, logits_processor=[lambda ids, scores: scores[:, :2]])
    kinds = {engine.add(**requests[kind]): kind for kind in (1, 2)}
    events = {id: [] for id in (failing, *kinds)}
    while engine.added:
        for id, event in engine.step():
            events[id].append(event)
    (event,) = [event for event in events[failing] if isinstance(event, StreamError)]
    assert event is events[failing][-1] and "expected scores of shape" in str(event.error)
    for id, kind in kinds.items():
        assert answer(events[id]) == alone[kind]
    check_empty(engine)


def test_what_cannot_be_answered_is_refused_at_once(model, requests, questions):
    engine = Engine(model, tokens=256)
    with pytest.raises(InputError, match="make the prompt shorter"):
        engine.add(**questions[-1], max_new_tokens=4)
    with pytest.raises(InputError, match="did you mean"):
        engine.add(**requests[0], max_new_token=4)
    check_empty(engine)


def test_several_threads(model, requests, alone):
    """Who waits for an answer works for all."""
    engine, found = Engine(model), {}

    def ask(kind):
        found[kind] = answer(list(engine.events(engine.add(**requests[kind]))))

    threads = [threading.Thread(target=ask, args=(kind,)) for kind in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert found == {kind: alone[kind] for kind in range(6)}
    check_empty(engine)


def test_others_go_on_while_a_function_of_a_caller_runs(model, ask, requests, alone):
    """It runs between two ticks, in its caller's thread and without the lock; what it asks the model itself is answered too."""
    engine, found, entered = Engine(model), {}, threading.Event()

    def slow(ids, scores):
        callers.add(threading.current_thread())
        entered.set()
        assert others.wait(60)
        if ids.shape[1] == length + 1:
            inner.append(model.thinker.generate(**plain, max_new_tokens=1, logits_processor=[nested]))
        return scores

    def nested(ids, scores):
        inner.append(model.thinker.generate(**plain, max_new_tokens=1))
        return scores

    def listen(kind, **options):
        found[kind] = answer(list(engine.events(engine.add(**requests[kind], **options))))

    callers, others = set(), threading.Event()
    inner, plain, length = [], ask("What is 1 plus 2?"), requests[1]["input_ids"].shape[1]
    threads = [threading.Thread(target=listen, args=(1,), kwargs={"logits_processor": [slow]})]
    threads += [threading.Thread(target=listen, args=(kind,)) for kind in (2, 3)]
    threads[0].start()
    assert entered.wait(30)
    for thread in threads[1:]:
        thread.start()
    for thread in threads[1:]:
        thread.join(timeout=120)
    assert found == {kind: alone[kind] for kind in (2, 3)} and not inner
    others.set()
    threads[0].join(timeout=120)
    assert found == {kind: alone[kind] for kind in (1, 2, 3)} and callers == {threads[0]}
    assert len(inner) == 2 and np.array_equal(*inner)
    check_empty(engine)


def test_what_an_engine_calls_may_wait_for_it(model, requests, alone):
    engine, found = Engine(model), []

    def again(ids, scores):
        found.append(answer(list(engine.events(engine.add(**requests[1])))))
        return scores

    engine.add(**{**requests[0], "max_new_tokens": 2}, logits_processor=[again])
    while engine.added:
        engine.step()
    assert found == [alone[1]] * 2
    check_empty(engine)


@pytest.mark.parametrize("kind", range(4))
def test_functions_of_the_caller_change_nothing_else(model, requests, alone, kind):
    """Tokens of text and of what is spoken are chosen between ticks then."""
    engine, heard = Engine(model), []
    options = {
        "logits_processor": [lambda ids, scores: scores],
        "stopping_criteria": [lambda ids, _: bool(heard.append(ids))],
    }
    events = list(engine.events(engine.add(**requests[kind], **options)))
    assert answer(events) == alone[kind] and len(heard) == events[-1].text_tokens[0]
    check_empty(engine)


def test_an_iterator_that_is_closed_gives_all_up(model, requests):
    engine = Engine(model)
    events = engine.events(engine.add(**requests[0]))
    next(events)
    events.close()
    check_empty(engine)
