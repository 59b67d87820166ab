"""Many callers on one engine: how long each waits, what all get per second, and what the engine's book-keeping costs."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np

from ..engine.engine import Engine
from ..outputs import SPEECH_RATE_HZ, AudioChunk, StreamEnd, StreamError, TextDelta
from .callers import Caller, Load, Timings, callers, gaps, inputs_of, summary
from .counts import Meter
from .measures import Speakers, compiled_at_once, exactly, forget
from .scenarios import WARM_UPS
from .worker import part

SHORT_TOKENS, SHORT_FRAMES = 3, 5  # of an answer in a warm-up
FIRST_FRAMES = 4  # of the first piece of sound


class Serving:
    """The scenarios of `serve`; arrays: the inputs of all scenarios."""

    def __init__(self, model: Any, arrays: dict[str, np.ndarray], speakers: Speakers):
        self.model, self.arrays, self.speakers = model, arrays, speakers

    def serve(self, rows: int, load: dict[str, Any], **settings: Any) -> dict[str, float]:
        """Callers on an engine of so many rows: see `callers.summary`; and how much of a tick is scheduling.

        settings: speech and kv_cache_dtype of the engine, the others of `callers`.
        """
        options = {name: settings.pop(name) for name in ("speech", "kv_cache_dtype") if name in settings}
        wanted = callers(**settings, load=Load(**load))
        with self._engine(rows, wanted[:rows], **options) as engine, timed_ticks(engine) as seconds:
            calls = self._run(engine, wanted)
        return {**summary(calls), "scheduling_percent": 100 * seconds["scheduling"] / seconds["ticks"]}

    def writing(self, rows: int, prompt: int, tokens: int) -> dict[str, float]:
        """Tokens per second of rows that write together, while all of them do."""
        with self._engine(rows, writers(rows, prompt, tokens)) as engine:
            return {"tokens_per_s": self._tokens_per_s(engine, rows, prompt, tokens)}

    def _tokens_per_s(self, engine, rows, prompt, tokens):
        calls = self._run(engine, writers(rows, prompt, tokens))
        begun, ended = max(call.tokens[0] for call in calls), min(call.tokens[-1] for call in calls)
        return sum(sum(begun < moment <= ended for moment in call.tokens) for call in calls) / (ended - begun)

    def speaking(self, rows: int, frames: int) -> dict[str, float]:
        """Talker and predictor for rows that speak together: see `Speakers.together`."""
        self.speakers.prepare(rows, frames)
        warm(lambda: self.speakers.together(rows, SHORT_FRAMES))
        return self.speakers.together(rows, frames)

    def burst(self, rows: int, prompt: int, tokens: int, frames: int) -> dict[str, float]:
        """So many callers at once who want speech: how long the last of them waits for the first sound, and what that may be compared
        with: all prompts read one after another, then a first piece of sound of all rows together.

        load: seconds of work per second of speech, of all of them.
        """
        wanted = [Caller(0.0, prompt, tokens, frames, seed=[7, number]) for number in range(rows)]
        with self._engine(rows, wanted) as engine:
            started = time.perf_counter()
            calls = self._run(engine, wanted)
            total_s = time.perf_counter() - started
            prefills_s = sum(self._prefill_s(engine, caller) for caller in wanted)
            words_s = (FIRST_FRAMES - 1) * rows / self._tokens_per_s(engine, rows, prompt, tokens)
        self.speakers.first_sound(rows, FIRST_FRAMES)  # for what it does the first time
        first_piece_s = words_s + self.speakers.first_sound(rows, FIRST_FRAMES)
        last_s = max(call.first_sound_s for call in calls)
        return {
            "first_sound_max_s": last_s,
            "prefills_s": prefills_s,
            "first_piece_s": first_piece_s,
            "first_sound_share": last_s / (prefills_s + first_piece_s),
            "load": total_s / (sum(call.sound_s for call in calls) / rows),
            "under_runs": sum(len(gaps(call.sounds)) for call in calls),
        }

    def _prefill_s(self, engine, caller):
        forget(engine)
        (call,) = self._run(engine, [Caller(0.0, caller.prompt, 1, seed=[*caller.seed, 1])])
        return call.first_token_s

    def again(self, tokens: int) -> dict[str, float]:
        """Two questions about one video: how long each waits for its first token, and what the second would wait without the first.

        Counted: whether the second has the same ids both ways.
        """
        first, second = (part(self.arrays, name) for name in ("video_first", "video_second"))
        with self._engine(1, writers(1, SHORT_TOKENS, tokens)) as engine:
            first_s, _ = self._ask(engine, first, tokens)
            second_s, ids = self._ask(engine, second, tokens)
            forget(engine)
            alone_s, alone_ids = self._ask(engine, second, tokens)
        return {
            "prompt_tokens": len(second["input_ids"][0]),
            "first_token_s": first_s,
            "second_token_s": second_s,
            "second_alone_s": alone_s,
            "second_share": second_s / first_s,
            "same_ids": int(ids == alone_ids),
        }

    def _ask(self, engine, inputs, tokens):
        call, ids = Timings(time.perf_counter()), []
        engine.add(**inputs, max_new_tokens=tokens, eos_token_id=[], return_audio=False)
        while call.ended is None:
            for _, event in engine.step():
                record(call, event)
                ids += event.token.tolist() if isinstance(event, TextDelta) else []
        return call.first_token_s, ids

    @contextmanager
    def _engine(self, rows: int, wanted: Sequence[Caller], **options: Any) -> Iterator[Engine]:
        """An engine of so many rows, warmed up by short answers to these callers, which it has forgotten again."""
        with compiled_at_once(self.model):
            engine = self.model.engine(rows, **options)
        short = [replace(caller, at_s=0.0, tokens=SHORT_TOKENS, frames=caller.frames and SHORT_FRAMES) for caller in wanted]
        with closing(engine):
            warm(lambda: self._run(engine, short))
            forget(engine)
            yield engine

    def _run(self, engine: Engine, wanted: Sequence[Caller]) -> list[Timings]:
        """Every caller calls in time, whether or not the engine is busy then; a call during a tick is taken behind it."""
        config = self.model.config
        requests = [(caller, inputs_of(caller, self.arrays, config)) for caller in wanted]
        started, calls, running = time.perf_counter(), [], {}
        while len(calls) < len(requests) or running:
            while len(calls) < len(requests) and requests[len(calls)][0].at_s <= time.perf_counter() - started:
                caller, inputs = requests[len(calls)]
                calls.append(Timings(started + caller.at_s))
                running[engine.add(**inputs, **options_of(caller))] = calls[-1]
            if not running:
                time.sleep(max(started + requests[len(calls)][0].at_s - time.perf_counter(), 0.0))
                continue
            for id, event in engine.step():
                record(running[id], event)
                if isinstance(event, (StreamEnd, StreamError)):
                    del running[id]
        return calls


def warm(work: Callable[[], Any]) -> None:
    """Does it until nothing is compiled any more."""
    for _ in range(WARM_UPS):
        with Meter() as meter:
            work()
        if not meter.compiled:
            return


def writers(rows: int, prompt: int, tokens: int) -> list[Caller]:
    """Callers at once who want so much text."""
    return [Caller(0.0, prompt, tokens, seed=[6, number]) for number in range(rows)]


def options_of(caller: Caller) -> dict[str, Any]:
    """The arguments of a call beside its question."""
    if caller.frames:
        return exactly(caller.tokens, caller.frames)
    return {"max_new_tokens": caller.tokens, "eos_token_id": [], "return_audio": False}


def record(call: Timings, event: Any) -> None:
    """Notes when an event came."""
    now = time.perf_counter()
    if isinstance(event, TextDelta):
        call.tokens.append(now)
    elif isinstance(event, AudioChunk):
        call.sounds.append((now, event.pcm.shape[-1] / SPEECH_RATE_HZ))
    elif isinstance(event, StreamEnd):
        call.ended = now
    else:
        call.error = event.error


@contextmanager
def timed_ticks(engine: Engine) -> Iterator[dict[str, float]]:
    """Seconds spent in ticks meanwhile, and how many of them the scheduler took."""
    seconds, scheduler = {"ticks": 0.0, "scheduling": 0.0}, engine.scheduler
    owners = ((engine, "step", "ticks"), (scheduler, "plan", "scheduling"), (scheduler, "done", "scheduling"))
    with ExitStack() as patches:
        for owner, name, kind in owners:
            patches.enter_context(mock.patch.object(owner, name, _timed(getattr(owner, name), kind, seconds)))
        yield seconds


def _timed(function, kind, seconds):
    def call(*arguments):
        started = time.perf_counter()
        try:
            return function(*arguments)
        finally:
            seconds[kind] += time.perf_counter() - started

    return call
