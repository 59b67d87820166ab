"""Every answer is, bit for bit, what it is alone: whoever comes, goes or fails meanwhile, however little room there is."""

import threading
import traceback

import numpy as np
import pytest

from ms_omni.engine import speech
from ms_omni.engine.engine import Engine
from ms_omni.errors import InputError
from ms_omni.modeling.ops import cpu_fused
from ms_omni.outputs import StreamError
from tests.engine.callers import answer, check_empty

KINDS = 6


@pytest.fixture(scope="module")
def model(world):
    return world.model


@pytest.fixture(scope="module")
def ask(world):
    return world.ask


@pytest.fixture(scope="module")
def requests(world):
    return [world.request(kind) for kind in range(KINDS)]


@pytest.fixture(scope="module")
def alone(world):
    """What they are answered when nobody else is there."""
    return [world.alone(kind)[0] for kind in range(KINDS)]


def run(engine, requests):
    """The events of each, all of them asked at once."""
    events = {engine.add(**request): [] for request in requests}
    while engine.added:
        for id, event in engine.step():
            events[id].append(event)
    return list(events.values())


def test_few_steps_lie_between_a_caller_and_the_kernel(model, ask, monkeypatch):
    kernel, stacks = cpu_fused._decoder_step, []

    def launch(*arguments):
        frames = [frame.filename for frame in traceback.extract_stack() if "/ms_omni/" in frame.filename]
        stacks.append(frames)
        return kernel(*arguments)

    monkeypatch.setattr(cpu_fused, "_decoder_step", launch)
    for _ in model.stream(**ask("What is 1 plus 2?"), return_audio=False, max_new_tokens=3):
        pass
    assert stacks and all(len(frames) <= 7 and len(set(frames)) <= 7 for frames in stacks)


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
    preempted, plan = [], engine.scheduler.plan
    engine.scheduler.plan = lambda: preempted.extend((found := plan()).preempted) or found
    assert [answer(events) for events in run(engine, requests)] == expected and preempted
    check_empty(engine)


def test_what_was_read_before_is_found_again(model, world):
    """The second long question reads its last chunk alone, and has the bits that it has in an engine of its own."""
    requests = [
        {**question, "max_new_tokens": 4, "talker_max_new_tokens": 6, "seed": 1} for question in world.questions[-2:]
    ]
    fresh = Engine(model)
    expected = answer(list(fresh.events(fresh.add(**requests[1]))))
    engine, read = Engine(model), []
    list(engine.events(engine.add(**requests[0])))
    original = engine.thinker.read
    engine.thinker.read = lambda row, start, stop: read.append((start, stop)) or original(row, start, stop)
    assert answer(list(engine.events(engine.add(**requests[1])))) == expected
    assert read == [(512, requests[1]["input_ids"].shape[1])]


def test_media_are_encoded_once(model, ask, monkeypatch):
    calls, encode = [], type(model.thinker)._encode_pixels
    monkeypatch.setattr(type(model.thinker), "_encode_pixels", lambda self, *args: calls.append(1) or encode(self, *args))
    engine, picture = Engine(model), {"image": "circle.png"}
    for question in ("What is this?", "Which colour is it?"):
        list(engine.events(engine.add(**ask(question, picture), return_audio=False, max_new_tokens=2)))
    assert len(calls) == 1


def test_launches_for_all_kinds_of_sampling_do_not_pile_up(model, requests, alone, monkeypatch):
    monkeypatch.setattr(speech, "FRAME_STEPS", 1)
    engine = Engine(model)
    assert [answer(events) for events in run(engine, requests)] == alone
    assert len(engine.speech.frame_steps) == 1


def test_who_fails_ends_alone(model, requests, alone):
    engine = Engine(model)
    wrong = {**requests[0], "return_audio": False, "max_new_tokens": 8}
    wrong["logits_processor"] = [lambda ids, scores: scores[:, :2]]
    failing, *others = run(engine, [wrong, *requests[1:3]])
    (event,) = [event for event in failing if isinstance(event, StreamError)]
    assert event is failing[-1] and "expected scores of shape" in str(event.error)
    assert [answer(events) for events in others] == alone[1:3]
    check_empty(engine)


def test_what_cannot_be_answered_is_refused_at_once(model, requests, world):
    engine = Engine(model, tokens=256)
    with pytest.raises(InputError, match="make the prompt shorter"):
        engine.add(**world.questions[-1], max_new_tokens=4)
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
