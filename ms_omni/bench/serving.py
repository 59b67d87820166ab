"""Many callers on one engine: how long each waits, what all get per second, and what the engine's book-keeping costs."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from ..engine.engine import Engine
from ..outputs import AudioChunk, StreamEnd, StreamError, TextDelta
from .callers import Caller, Load, callers, inputs_of
from .inputs import part
from .listening import Answer, gaps, summary
from .meter import Meter
from .speech import SAMPLE_RATE_HZ, Speakers, exactly
from .text import compiled_at_once, forget

WARM_UPS = 4
SHORT_TOKENS, SHORT_FRAMES = 3, 5  # of an answer in a warm-up
FIRST_FRAMES = 4  # of the first piece of sound


class Serving:
    """The scenarios of `serve`; arrays: the inputs of all scenarios, `speakers`: see there."""

    def __init__(self, model: Any, arrays: dict[str, np.ndarray], speakers: Speakers):
        self.model, self.arrays, self.speakers = model, arrays, speakers

    def serve(
        self,
        rows: int,
        count: int,
        rate: float | None,
        spoken: float,
        seed: int,
        speech: str | None = None,
        load: dict[str, Sequence[int]] | None = None,
        kv_cache_dtype: str = "auto",
    ) -> dict[str, float]:
        """`count` callers on an engine of so many rows: see `listening.summary`; and how much of a tick is scheduling.

        rate, spoken and load: see `callers`; speech: where it is made; kv_cache_dtype: of keys and values; see `Engine`.
        """
        wanted = callers(count, rate, spoken, seed, Load(**load) if load else Load())
        with closing(self._engine(rows, speech, kv_cache_dtype)) as engine:
            self._warm(engine, wanted[:rows])
            with timed_ticks(engine) as seconds:
                answers = self._run(engine, wanted)
        return {**summary(answers), "scheduling_percent": 100 * seconds["scheduling"] / seconds["ticks"]}

    def writing(self, rows: int, prompt: int, tokens: int) -> dict[str, float]:
        """Tokens per second of rows that write together, while all of them do."""
        with closing(self._engine(rows)) as engine:
            self._warm(engine, writers(rows, prompt, tokens))
            return {"tokens_per_s": self._tokens_per_s(engine, rows, prompt, tokens)}

    def _tokens_per_s(self, engine, rows, prompt, tokens):
        answers = self._run(engine, writers(rows, prompt, tokens))
        begun, ended = max(answer.tokens[0] for answer in answers), min(answer.tokens[-1] for answer in answers)
        return sum(sum(begun < moment <= ended for moment in answer.tokens) for answer in answers) / (ended - begun)

    def speaking(self, rows: int, frames: int) -> dict[str, float]:
        """Talker and predictor for rows that speak together: see `Speakers.together`."""
        self.speakers.prepare(rows, frames)
        warm(lambda: self.speakers.together(rows, SHORT_FRAMES))
        return self.speakers.together(rows, frames)

    def burst(self, rows: int, prompt: int, tokens: int, frames: int) -> dict[str, float]:
        """So many callers at once who want to hear something: how long the last of them waits for his first sound, and what it
        may be compared with: all prompts read one after another, then a first piece of sound of all rows together.

        load: seconds of work per second of speech, of all of them.
        """
        wanted = [Caller(0.0, prompt, tokens, frames, False, [7, number]) for number in range(rows)]
        with closing(self._engine(rows)) as engine:
            self._warm(engine, wanted)
            started = time.perf_counter()
            answers = self._run(engine, wanted)
            total_s = time.perf_counter() - started
            prefills_s = sum(self._prefill_s(engine, caller) for caller in wanted)
            words_s = (FIRST_FRAMES - 1) * rows / self._tokens_per_s(engine, rows, prompt, tokens)
        self.speakers.first_sound(rows, FIRST_FRAMES)  # for what it does the first time
        first_piece_s = words_s + self.speakers.first_sound(rows, FIRST_FRAMES)
        last_s = max(answer.first_sound_s for answer in answers)
        return {
            "first_sound_max_s": last_s,
            "prefills_s": prefills_s,
            "first_piece_s": first_piece_s,
            "first_sound_share": last_s / (prefills_s + first_piece_s),
            "load": total_s / (sum(answer.sound_s for answer in answers) / rows),
            "under_runs": sum(len(gaps(answer.sounds)) for answer in answers),
        }

    def _prefill_s(self, engine, caller):
        forget(engine)
        (answer,) = self._run(engine, [Caller(0.0, caller.prompt, 1, 0, False, [*caller.seed, 1])])
        return answer.first_token_s

    def again(self, tokens: int) -> dict[str, float]:
        """Two questions about one video: how long each waits for its first token, and what the second would wait without the first.

        Counted: whether the second has the same ids both ways.
        """
        first, second = (part(self.arrays, name) for name in ("video_first", "video_second"))
        with closing(self._engine(1)) as engine:
            self._warm(engine, writers(1, SHORT_TOKENS, tokens))
            times, ids = [], []
            for forgets, inputs in ((False, first), (False, second), (True, second)):
                if forgets:
                    forget(engine)
                answer, found = self._ask(engine, inputs, tokens)
                times.append(answer.first_token_s)
                ids.append(found)
        return {
            "prompt_tokens": len(second["input_ids"][0]),
            "first_token_s": times[0],
            "second_token_s": times[1],
            "second_alone_s": times[2],
            "second_share": times[1] / times[0],
            "same_ids": int(ids[1] == ids[2]),
        }

    def _ask(self, engine, inputs, tokens):
        answer, ids = Answer(time.perf_counter()), []
        engine.add(**inputs, max_new_tokens=tokens, eos_token_id=[], return_audio=False)
        while answer.ended is None:
            for _, event in engine.step():
                note(answer, event)
                ids += event.token.tolist() if isinstance(event, TextDelta) else []
        return answer, ids

    def _engine(self, rows, speech=None, kv_cache_dtype="auto"):
        with compiled_at_once(self.model):
            return self.model.engine(rows, speech=speech, kv_cache_dtype=kv_cache_dtype)

    def _warm(self, engine, wanted):
        """Short answers to as many as there will be."""
        short = [replace(caller, at_s=0.0, tokens=SHORT_TOKENS, frames=caller.frames and SHORT_FRAMES) for caller in wanted]
        warm(lambda: self._run(engine, short))
        forget(engine)

    def _run(self, engine: Engine, wanted: Sequence[Caller]) -> list[Answer]:
        """Every caller calls at his time, whether or not the engine is busy then; whoever calls during a tick is heard behind it."""
        config = self.model.config
        asked = [(caller, inputs_of(caller, self.arrays, config)) for caller in wanted]
        started, waiting, answers, found = time.perf_counter(), 0, {}, []
        while waiting < len(asked) or answers:
            while waiting < len(asked) and asked[waiting][0].at_s <= time.perf_counter() - started:
                caller, inputs = asked[waiting]
                found.append(Answer(started + caller.at_s))
                answers[engine.add(**inputs, **wishes(caller))] = found[-1]
                waiting += 1
            if not answers:
                time.sleep(max(started + asked[waiting][0].at_s - time.perf_counter(), 0.0))
                continue
            for id, event in engine.step():
                note(answers[id], event)
                if isinstance(event, (StreamEnd, StreamError)):
                    del answers[id]
        return found


def warm(work: Callable[[], Any]) -> None:
    """Does it until nothing is compiled any more."""
    for _ in range(WARM_UPS):
        with Meter() as meter:
            work()
        if not meter.compiled:
            return


def writers(rows: int, prompt: int, tokens: int) -> list[Caller]:
    """Callers at once who want so much text."""
    return [Caller(0.0, prompt, tokens, 0, False, [6, number]) for number in range(rows)]


def wishes(caller: Caller) -> dict[str, Any]:
    """The arguments of his call beside his question."""
    if caller.frames:
        return exactly(caller.tokens, caller.frames)
    return {"max_new_tokens": caller.tokens, "eos_token_id": [], "return_audio": False}


def note(answer: Answer, event: Any, clock: Callable[[], float] = time.perf_counter) -> None:
    """Notes when an event came."""
    if isinstance(event, TextDelta):
        answer.tokens.append(clock())
    elif isinstance(event, AudioChunk):
        answer.sounds.append((clock(), event.pcm.shape[-1] / SAMPLE_RATE_HZ))
    elif isinstance(event, StreamEnd):
        answer.ended = clock()
    else:
        answer.error = event.error


@contextmanager
def timed_ticks(engine: Engine) -> Iterator[dict[str, float]]:
    """Seconds spent in ticks meanwhile, and how many of them the scheduler took."""
    seconds, scheduler = {"ticks": 0.0, "scheduling": 0.0}, engine.scheduler
    owners = ((engine, "step", "ticks"), (scheduler, "plan", "scheduling"), (scheduler, "done", "scheduling"))
    for owner, name, kind in owners:
        setattr(owner, name, _timed(getattr(owner, name), kind, seconds))
    try:
        yield seconds
    finally:
        for owner, name, _ in owners:
            delattr(owner, name)


def _timed(function, kind, seconds):
    def call(*arguments):
        started = time.perf_counter()
        try:
            return function(*arguments)
        finally:
            seconds[kind] += time.perf_counter() - started

    return call
