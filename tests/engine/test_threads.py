"""One thread works the engine, as a server's does, and others ask it and leave it; what goes wrong meets whom it belongs to."""

import threading
import time

import pytest

from ms_omni.engine import work
from ms_omni.engine.engine import Engine
from ms_omni.outputs import StreamEnd, StreamError
from tests.engine.callers import answer, check_empty


class Server:
    """A thread that steps until it is left; events of each id, ticks so far."""

    def __init__(self, engine):
        self.engine, self.events, self.ticks, self.open = engine, {}, 0, True
        self.fault = None
        self.thread = threading.Thread(target=self._run)

    def _run(self):
        try:
            while self.open:
                found = self.engine.step()
                self.ticks += 1
                for id, event in found:
                    self.events.setdefault(id, []).append(event)
                if not found:
                    time.sleep(1e-3)
        except Exception as error:
            self.fault = error

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.open = False
        self.thread.join(60)

    def wait(self, done, limit_s=120):
        end = time.monotonic() + limit_s
        while not done():
            assert time.monotonic() < end and self.fault is None, self.fault
            time.sleep(1e-3)

    def ended(self, id):
        return bool(self.events.get(id)) and isinstance(self.events[id][-1], StreamEnd | StreamError)


def test_one_thread_steps_while_others_ask_and_leave(world):
    """Who stays is answered as alone, whoever comes and goes; who leaves is gone behind the next tick."""
    engine, found, left = Engine(world.model, max_rows=4, tokens=4096), {}, []
    endless = {**world.ask("What is 1 plus 2?"), "max_new_tokens": 2000, "eos_token_id": [], "talker_eos_token_id": []}

    def stay(kind):
        found[kind] = engine.add(**world.request(kind))

    def leave():
        for _ in range(3):
            id = engine.add(**endless)
            server.wait(lambda id=id: id in server.events)
            engine.cancel(id)
            tick = server.ticks
            server.wait(lambda tick=tick: server.ticks >= tick + 2)  # the one under way, and the next
            left.append(id not in engine.scheduler.rows and id not in engine.rows)

    with Server(engine) as server:
        threads = [threading.Thread(target=stay, args=(kind,)) for kind in range(6)]
        threads += [threading.Thread(target=leave) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        server.wait(lambda: all(map(server.ended, found.values())))
    assert server.fault is None and left == [True] * 6
    assert {kind: answer(server.events[id]) for kind, id in found.items()} == {
        kind: world.alone(kind)[0] for kind in range(6)
    }
    check_empty(engine)


@pytest.mark.parametrize("where", ["talker_context", "choose", "encode", "sound"])
def test_what_fails_in_one_answer_does_not_meet_another(world, monkeypatch, where):
    """Wherever it is, and whatever."""
    engine, asked = Engine(world.model), world.ask("What number do you hear?", {"audio": "digits.wav"})
    bad = engine.add(**asked, max_new_tokens=4, talker_max_new_tokens=8, seed=0)
    row = engine.rows[bad]

    def failing(*_):
        raise KeyError("nobody thought of this")

    if where == "talker_context":
        talker_context = work.talker_context
        monkeypatch.setattr(
            work,
            "talker_context",
            lambda config, ids, *rest: (failing if ids is row.prompt.ids else talker_context)(config, ids, *rest),
        )
    elif where == "choose":
        monkeypatch.setattr(row.text, "choose", failing)
    elif where == "encode":
        encode = engine.thinker.encode
        monkeypatch.setattr(engine.thinker, "encode", lambda own, call: (failing if own is row else encode)(own, call))
    else:
        monkeypatch.setattr(engine.speech.sequences[bad].stream, "step", failing)
    good = {engine.add(**world.request(kind)): kind for kind in (1, 7)}
    events = {id: [] for id in (bad, *good)}
    while engine.added:
        for id, event in engine.step():
            events[id].append(event)
    assert isinstance(events[bad][-1], StreamError) and "nobody thought" in str(events[bad][-1].error)
    assert {kind: answer(events[id]) for id, kind in good.items()} == {kind: world.alone(kind)[0] for kind in (1, 7)}
    check_empty(engine)


def test_what_fails_for_all_ends_all_and_the_engine_goes_on(world, monkeypatch):
    engine = Engine(world.model, tokens=2048)
    endless = {"max_new_tokens": 100, "eos_token_id": [], "talker_eos_token_id": []}
    ids = [engine.add(**world.ask(f"What is {kind} plus 2?"), **endless) for kind in (0, 1)]
    for _ in range(3):
        engine.step()
    with monkeypatch.context() as patch:
        patch.setattr(engine.thinker.pool, "reserve", lambda blocks: (_ for _ in ()).throw(MemoryError("no room")))
        found = engine.step()
    assert sorted(id for id, event in found if isinstance(event, StreamError)) == ids
    check_empty(engine)
    assert answer(list(engine.events(engine.add(**world.request(1))))) == world.alone(1)[0]
