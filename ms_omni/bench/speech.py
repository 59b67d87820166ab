"""The spoken half of the model: talker and predictor alone, the vocoder alone, and a whole spoken answer."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..engine.blocks import CHUNK, blocks_for
from ..engine.kv_pool import KVPool
from ..engine.plan import TALKER, Plan
from ..engine.speech import SpeechStage
from ..generation.request import parse_request
from ..modeling.packing import host_array
from ..modeling.steps import bucket, makes_graphs
from ..outputs import StreamEnd
from .text import compiled_at_once, fresh_engine

SAMPLE_RATE_HZ = 24_000
SAID_TOKENS = 12


def exactly(tokens: int, frames: int) -> dict[str, Any]:
    """Keyword arguments of `stream` for a spoken answer of so many text tokens and codec frames."""
    draws = frames + 1  # the last draw of code 0 makes no frame
    return {
        "max_new_tokens": tokens,
        "eos_token_id": [],
        "talker_max_new_tokens": draws,
        "talker_min_new_tokens": draws,
        "seed": 0,
    }


class Speakers:
    """Rows that speak a text which is known beforehand, on a speech stage of their own: no thinker and no scheduler takes part.

    They are made when they are first asked for.
    """

    def __init__(self, model: Any, inputs: dict[str, np.ndarray]):
        self.model, self.inputs = model, inputs
        self.heard: Any = None
        self.words = np.zeros((0, 0), np.float32)
        self.stage: Any = None

    def talk(self, frames: int) -> dict[str, float]:
        """Frames per second of talker and predictor for one row, its prompt read on the way, then the time of each part per frame."""
        self.prepare(1, frames)
        started = time.perf_counter()
        made = sum(1 for _ in self.frames(1, frames))
        return {"frames_per_s": made / (time.perf_counter() - started), **self._parts(1, frames)}

    def together(self, rows: int, frames: int) -> dict[str, float]:
        """The same for rows that speak together, all of their frames counted, once all prompts are read."""
        self.prepare(rows, frames)
        spoken = self.frames(rows, frames)
        next(spoken)
        started = time.perf_counter()
        made = rows * sum(1 for _ in spoken)
        return {"frames_per_s": made / (time.perf_counter() - started), **self._parts(rows, frames)}

    def _parts(self, rows, frames):
        with timed_steps(self.stage) as seconds:
            made = rows * sum(1 for _ in self.frames(rows, frames))
        return {f"{name}_s": spent / made for name, spent in seconds.items()}

    def frames(self, rows: int, frames: int) -> Iterator[None]:
        """Reads the prompts, then yields after each of so many frames of every row; at the end all have drawn their end."""
        self.prepare(rows, frames)
        ids = self._begin(rows, frames)
        try:
            while not self._follow(Plan(frames=[(id,) for id in ids])).ended:
                yield None
        finally:
            self._end(ids)

    def first_sound(self, rows: int, frames: int) -> float:
        """Seconds from prompts that are read to the first piece of sound of every row, of so many frames."""
        self.prepare(rows, frames)
        ids = self._begin(rows, frames)
        try:
            started = time.perf_counter()
            for _ in range(frames):
                self._follow(Plan(frames=[(id,) for id in ids]))
            self._follow(Plan(sound=[(id, frames) for id in ids]))
            return time.perf_counter() - started
        finally:
            self._end(ids)

    def prepare(self, rows: int, frames: int) -> None:
        """Listens to one answer, and makes a stage with room for so much."""
        if self.heard is None:
            self._overhear()
        blocks = rows * self._blocks(frames) + 1
        if self.stage is None:
            stage, model = fresh_engine(self.model).speech, self.model
            ends = np.stack([stage.bos, stage.eos, stage.silence])
            pool = KVPool.of(model.talker.model, blocks)
            with compiled_at_once(model):
                self.stage = SpeechStage(model.talker, model.code2wav, ends, pool, model.compile_after, stage.agree)
        self.stage.pool.reserve(blocks)
        if makes_graphs(self.model.compile_after):
            self.stage.warm(bucket(rows))

    def _overhear(self) -> None:
        """What the engine tells its speech stage of an answer."""
        stage = fresh_engine(self.model).speech
        hear, tell, words = stage.hear, stage.tell, []

        def heard(id, heard):
            self.heard = heard
            hear(id, heard)

        def told(id, news, ended):
            words.extend(news)
            tell(id, news, ended)

        stage.hear, stage.tell = heard, told
        try:
            for _ in self.model.stream(**self.inputs, **exactly(SAID_TOKENS, SAID_TOKENS)):
                pass
        finally:
            del stage.hear, stage.tell
        self.words = np.stack(words)

    @property
    def _rows(self) -> int:
        """Of the talker's prompt."""
        return self.heard.positions.shape[1]

    def _blocks(self, frames: int) -> int:
        return blocks_for(self._rows + frames + 1)

    def _begin(self, rows: int, frames: int) -> list[int]:
        """The last row of a prompt is read by the step that makes the first frame."""
        params = parse_request(self.model, {**self.inputs, **exactly(SAID_TOKENS, frames)}).speech
        blocks, chunked, plan = self._blocks(frames), self._rows - 1, Plan()
        for id in range(rows):
            self.stage.begin(id, params, id)
            self.stage.hear(id, self.heard)
            self.stage.tell(id, self.words, True)
            plan.blocks += [(id, TALKER, 1 + id * blocks + number) for number in range(blocks)]
            plan.read += [(id, TALKER, start, min(start + CHUNK, chunked)) for start in range(0, chunked, CHUNK)]
        self._follow(plan)
        return list(range(rows))

    def _follow(self, plan: Plan) -> Any:
        self.stage.place(plan)
        said = self.stage.follow(plan)
        for error in said.failed.values():
            raise error
        return said

    def _end(self, ids: list[int]) -> None:
        for id in ids:
            self.stage.cancel(id)


@contextmanager
def timed_steps(stage: SpeechStage) -> Iterator[dict[str, float]]:
    """Seconds spent in each kind of step ("talker", "predictor") of a stage meanwhile; it has made its steps before."""
    seconds, step, frame_steps = {"talker": 0.0, "predictor": 0.0}, stage.step, stage.frame_steps
    stage.step = _TimedStep(step, "talker", seconds)
    stage.frame_steps = {key: _TimedStep(one, "predictor", seconds) for key, one in frame_steps.items()}
    try:
        yield seconds
    finally:
        stage.step, stage.frame_steps = step, frame_steps


class _TimedStep:
    def __init__(self, step, kind, seconds):
        self.step, self.kind, self.seconds = step, kind, seconds

    def __getattr__(self, name):
        return getattr(self.step, name)

    def __call__(self, *arguments):
        started = time.perf_counter()
        result = self.step(*arguments)
        host_array(result[0])  # wait for the device
        self.seconds[self.kind] += time.perf_counter() - started
        return result


def whole(code2wav, codes):
    """Seconds of work per second of speech for codes `[1, Q, n]` decoded at once."""
    started = time.perf_counter()
    samples = host_array(code2wav.decode(codes)).shape[-1]
    return {"real_time_factor": (time.perf_counter() - started) * SAMPLE_RATE_HZ / samples}


def pieces(code2wav, codes, pieces):
    """The same in pieces of so many frames, the last number repeated."""
    started, stream, samples = time.perf_counter(), code2wav.stream(), 0
    for piece in cut(codes, pieces):
        samples += host_array(stream.step(piece)).shape[-1]
    return {"real_time_factor": (time.perf_counter() - started) * SAMPLE_RATE_HZ / samples}


def cut(codes, sizes):
    """Consecutive pieces of codes `[B, Q, n]` of these sizes, the last one repeated."""
    start, index = 0, 0
    while start < codes.shape[-1]:
        size = sizes[min(index, len(sizes) - 1)]
        yield np.ascontiguousarray(codes[..., start : start + size])
        start, index = start + size, index + 1


def answer(model, inputs, tokens, frames):
    """A picture and a sound in, text and speech out."""
    fresh_engine(model)
    end = None
    for event in model.stream(**inputs, **exactly(tokens, frames)):
        end = event if isinstance(event, StreamEnd) else end
    spoken_s = frames * model.config.code2wav_config.samples_per_frame / SAMPLE_RATE_HZ
    return {
        "first_token_s": end.first_text_s,
        "first_sound_s": end.first_audio_s,
        "total_s": end.total_s,
        "real_time_factor": end.total_s / spoken_s,
    }
