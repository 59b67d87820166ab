"""One repetition of each scenario on this model: `Measures.run(kind, settings)` -> {metric: number}."""

import os
import re
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from unittest import mock

import mindspore
import numpy as np

from ..engine.blocks import CHUNK, ContentCache, blocks_for
from ..engine.engine import Engine, engine_of
from ..engine.kv_pool import KVPool
from ..engine.plan import TALKER, Plan
from ..engine.speech import SpeechStage
from ..engine.stream import Stream
from ..generation.request import Request, parse_request
from ..generation.sampling import SamplingParams
from ..locking import exclusive
from ..modeling import ops
from ..modeling.packing import host_array
from ..modeling.steps import bucket, compiles_ahead
from ..outputs import SPEECH_RATE_HZ, StreamEnd, TextDelta
from ..parallel.step_costs import EXPERTS, TABLE, TEXT
from .worker import part

SPOKEN_TOKENS = 12  # of the text that `Speakers` speak
READ_BYTES, READS = 1 << 29, 8
SCALED = re.compile("_(scale|offset)$")  # what belongs to codes is read with them
DTYPES = {"uint8": "int4"}  # two codes lie in a byte


class Measures:
    """model: a `Qwen3OmniMoeForConditionalGeneration`; arrays: the inputs of all scenarios."""

    def __init__(self, model: Any, arrays: dict[str, np.ndarray]):
        from . import counts
        from .serving import Serving

        self.model, self.arrays, thinker = model, arrays, model.thinker
        self.speakers = Speakers(model, part(arrays, "question"))
        self.serving = Serving(model, arrays, self.speakers)
        self._meter = counts.Meter
        self.kinds: dict[str, Callable[..., dict[str, float]]] = {
            "memory": lambda: {"memory_gb_per_s": read_gb_per_s()},
            "image": lambda: self._encode(
                lambda: thinker.get_image_features(arrays["image.pixels"], arrays["image.grid"])[0]
            ),
            "video": lambda: self._encode(
                lambda: thinker.get_video_features(arrays["video.pixels"], arrays["video.grid"])[0]
            ),
            "audio": lambda: self._encode(lambda: thinker.get_audio_features(arrays["audio.features"])),
            "prefill": self.prefill,
            "decode": self.decode,
            "cached": self.cached,
            "speech": self.speakers.talk,
            "wave_whole": self.wave_whole,
            "wave_stream": self.wave_stream,
            "answer": self.answer,
            "serve": self.serving.serve,
            "writing": self.serving.writing,
            "speaking": self.serving.speaking,
            "burst": self.serving.burst,
            "again": self.serving.again,
            "count_text": lambda: counts.text(model, arrays["ids"][:1, :64]),
            "count_speech": lambda: counts.speech(model, self.speakers),
            "count_requests": lambda requests: counts.requests(model, arrays, requests),
        }

    def run(self, kind: str, settings: dict[str, Any]) -> dict[str, float]:
        """The numbers of one repetition; `compiled` counts the graphs that were built during it."""
        with self._meter() as meter:
            numbers = self.kinds[kind](**settings)
        return {**numbers, "compiled": meter.compiled}

    def _encode(self, encode):
        started = time.perf_counter()
        host_array(encode())
        return {"encode_s": time.perf_counter() - started}

    def _token_moments(self, ids: np.ndarray, tokens: int) -> list[float]:
        """Greedy generation of exactly `tokens` tokens after ids `[B, T]`: when each one was known."""
        return [time.perf_counter() for event in write(self.model, ids, tokens) if isinstance(event, TextDelta)]

    def prefill(self, tokens: int) -> dict[str, float]:
        """Tokens of a prompt per second, until the first one of the answer."""
        started = time.perf_counter()
        moments = self._token_moments(self.arrays["ids"][:1, :tokens], 1)
        return {"tokens_per_s": tokens / (moments[0] - started)}

    def decode(self, batch: int, prompt: int, tokens: int) -> dict[str, float]:
        """Tokens per second of a batch behind its first ones, and the weights that are read for them."""
        moments = self._token_moments(self.arrays["ids"][:batch, :prompt], tokens)
        token_s = (moments[-1] - moments[0]) / (tokens - 1)
        return {"tokens_per_s": batch / token_s, "weights_gb_per_s": token_bytes(self.model, batch) / token_s / 1e9}

    def cached(self, cached: int, tokens: int = 25) -> dict[str, float]:
        """Steps around `cached` cached tokens."""
        moments = self._token_moments(self.arrays["ids"][:1, : cached - tokens // 2], tokens)
        return {"token_s": float(np.median(np.diff(moments)))}

    def wave_whole(self, frames: int) -> dict[str, float]:
        """Seconds of work per second of speech for codes decoded at once."""
        codes, started = self.arrays["codes"][..., :frames], time.perf_counter()
        samples = host_array(self.model.code2wav.decode(codes)).shape[-1]
        return {"real_time_factor": (time.perf_counter() - started) * SPEECH_RATE_HZ / samples}

    def wave_stream(self, frames: int, pieces: Sequence[int]) -> dict[str, float]:
        """The same in pieces of so many frames, the last number repeated."""
        codes = self.arrays["codes"][..., :frames]
        started, stream, samples = time.perf_counter(), self.model.code2wav.stream(), 0
        for piece in split(codes, pieces):
            samples += host_array(stream.step(piece)).shape[-1]
        return {"real_time_factor": (time.perf_counter() - started) * SPEECH_RATE_HZ / samples}

    def answer(self, tokens: int, frames: int) -> dict[str, float]:
        """A picture and a sound in, text and speech out."""
        fresh_engine(self.model)
        end: Any = None
        for event in self.model.stream(**part(self.arrays, "question"), **exactly(tokens, frames)):
            end = event if isinstance(event, StreamEnd) else end
        spoken_s = frames * self.model.config.code2wav_config.samples_per_frame / SPEECH_RATE_HZ
        return {
            "first_token_s": end.first_text_s,
            "first_sound_s": end.first_audio_s,
            "total_s": end.total_s,
            "real_time_factor": end.total_s / spoken_s,
        }


def split(codes: np.ndarray, sizes: Sequence[int]) -> Iterator[np.ndarray]:
    """Consecutive pieces of codes `[B, Q, n]` of these sizes, the last one repeated."""
    start, index = 0, 0
    while start < codes.shape[-1]:
        size = sizes[min(index, len(sizes) - 1)]
        yield np.ascontiguousarray(codes[..., start : start + size])
        start, index = start + size, index + 1


# -- answers of a known length, by engines that remember nothing -----------------------------------------------------------


def write(model: Any, ids: np.ndarray, tokens: int) -> Stream:
    """Greedy answers of exactly `tokens` tokens to ids `[B, T]`: an iterator with one event per token, and an end."""
    return Stream(fresh_engine(model), Request({"input_ids": ids}, SamplingParams(max_new_tokens=tokens)))


def exactly(tokens: int, frames: int) -> dict[str, Any]:
    """Keyword arguments of `stream` for a spoken answer of so many text tokens and codec frames."""
    draws = frames + 1  # the last draw of code 0 makes no frame
    speech = {"talker_max_new_tokens": draws, "talker_min_new_tokens": draws}
    return {"max_new_tokens": tokens, "eos_token_id": [], "seed": 0, **speech}


def fresh_engine(model: Any) -> Engine:
    """The engine that the model's own methods share; nothing that was read before is found again in it."""
    engine = engine_of(model)
    forget(engine)
    return engine


@exclusive
def forget(engine: Engine) -> None:
    """Whoever sends what was sent before is answered like the first."""
    for pool in filter(None, engine.scheduler.pools):
        pool.forget()
    features = engine.thinker.features
    engine.thinker.features = ContentCache(features.budget)


@contextmanager
def compiled_at_once(model: Any) -> Iterator[None]:
    """Engines that are created meanwhile build their graphs, if they build any, at the first call of a shape: in a warm-up."""
    before = model.compile_after
    model.compile_after = None if before is None else 0
    try:
        yield
    finally:
        model.compile_after = before


# -- talker and predictor by themselves -------------------------------------------------------------------------------------


class Speakers:
    """Rows that speak a text which is known beforehand, on a speech stage of their own, which is created when it is first needed:
    no thinker and no scheduler takes part.
    """

    def __init__(self, model: Any, inputs: dict[str, np.ndarray]):
        self.model, self.inputs = model, inputs
        self.prompt: Any = None  # the talker's, as the engine gives it to its speech stage
        self.embeds = np.zeros((0, 0), np.float32)
        self.stage: Any = None

    def talk(self, frames: int) -> dict[str, float]:
        """Frames per second of talker and predictor for one row, its prompt read on the way, then the time of each part per frame."""
        self.prepare(1, frames)
        return self._rates(self.frames(1, frames), 1, frames)

    def together(self, rows: int, frames: int) -> dict[str, float]:
        """The same for rows that speak together, all of their frames counted, once all prompts are read."""
        self.prepare(rows, frames)
        spoken = self.frames(rows, frames)
        next(spoken)
        return self._rates(spoken, rows, frames)

    def _rates(self, spoken, rows, frames):
        started = time.perf_counter()
        count = rows * _length(spoken)
        rate = count / (time.perf_counter() - started)
        with timed_steps(self.stage) as seconds:
            count = rows * _length(self.frames(rows, frames))
        return {"frames_per_s": rate, **{f"{name}_s": spent / count for name, spent in seconds.items()}}

    def frames(self, rows: int, frames: int) -> Generator[None, None, None]:
        """Reads the prompts, then yields after each of so many frames of every row; at the end all have drawn their end."""
        self.prepare(rows, frames)
        with self._begun(rows, frames) as step:
            while not self._follow(step()).ended:
                yield None

    def first_sound(self, rows: int, frames: int) -> float:
        """Seconds from prompts that are read to the first piece of sound of every row, of so many frames."""
        self.prepare(rows, frames)
        with self._begun(rows, frames) as step:
            started = time.perf_counter()
            for _ in range(frames):
                self._follow(step())
            self._follow(Plan(sound=[(id, frames) for id in range(rows)]))
            return time.perf_counter() - started

    def prepare(self, rows: int, frames: int) -> None:
        """Takes prompt and words from one answer, and creates a stage with room for so much."""
        if self.prompt is None:
            self._record()
        blocks = rows * self._blocks(frames) + 1
        if self.stage is None:
            stage: Any = fresh_engine(self.model).speech
            model = self.model
            tts_embeds = np.stack([stage.bos, stage.eos, stage.pad])
            pool = KVPool.of(model.talker.model, blocks)
            with compiled_at_once(model):
                self.stage = SpeechStage(
                    model.talker, model.code2wav, tts_embeds, pool, model.compile_after, stage.share_codes
                )
        self.stage.pool.reserve(blocks)
        if compiles_ahead(self.model.compile_after):
            self.stage.warm(bucket(rows))

    def _record(self):
        """What the engine passes to its speech stage for an answer."""
        stage: Any = fresh_engine(self.model).speech
        set_prompt, append_text, embeds = stage.set_prompt, stage.append_text, []

        def prompt(id, value):
            self.prompt = value
            set_prompt(id, value)

        def text(id, rows, ended):
            embeds.extend(rows)
            append_text(id, rows, ended)

        with mock.patch.multiple(stage, set_prompt=prompt, append_text=text):
            for _ in self.model.stream(**self.inputs, **exactly(SPOKEN_TOKENS, SPOKEN_TOKENS)):
                pass
        self.embeds = np.stack(embeds)

    @property
    def _prompt_rows(self):
        return self.prompt.positions.shape[1]

    def _blocks(self, frames):
        return blocks_for(self._prompt_rows + frames + 1)

    @contextmanager
    def _begun(self, rows, frames):
        """A function for the plan of a frame of rows whose prompts are read, but for the last one, which the first frame's step reads."""
        params = parse_request(self.model, {**self.inputs, **exactly(SPOKEN_TOKENS, frames)}).speech
        blocks, chunked, plan = self._blocks(frames), self._prompt_rows - 1, Plan()
        for id in range(rows):
            self.stage.begin(id, params, id)
            self.stage.set_prompt(id, self.prompt)
            self.stage.append_text(id, self.embeds, True)
            plan.blocks += [(id, TALKER, 1 + id * blocks + number) for number in range(blocks)]
            plan.read += [(id, TALKER, start, min(start + CHUNK, chunked)) for start in range(0, chunked, CHUNK)]
        self._follow(plan)
        try:
            yield lambda: Plan(frames=[(id,) for id in range(rows)])
        finally:
            for id in range(rows):
                self.stage.cancel(id)

    def _follow(self, plan: Plan) -> Any:
        self.stage.apply_blocks(plan)
        result = self.stage.execute(plan)
        for error in result.failed.values():
            raise error
        return result


def _length(iterable: Iterable) -> int:
    return sum(1 for _ in iterable)


@contextmanager
def timed_steps(stage: Any) -> Iterator[dict[str, float]]:
    """Seconds spent in each kind of step ("talker", "predictor") of a stage meanwhile; it has created its steps before."""
    seconds = {"talker": 0.0, "predictor": 0.0}
    step = _TimedStep(stage.step, "talker", seconds)
    frame_steps = {key: _TimedStep(one, "predictor", seconds) for key, one in stage.frame_steps.items()}
    with mock.patch.multiple(stage, step=step, frame_steps=frame_steps):
        yield seconds


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


# -- what bounds decoding, and what the numbers depend on -------------------------------------------------------------------


def read_gb_per_s() -> float:
    """The fastest of some plain sums over floats by all threads that this process may use (BLAS sums their squares)."""
    threads = len(os.sched_getaffinity(0))
    parts = np.array_split(np.ones(READ_BYTES // 4, np.float32), threads)
    seconds = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(READS):
            started = time.perf_counter()
            list(pool.map(np.dot, parts, parts))
            seconds.append(time.perf_counter() - started)
    return READ_BYTES / min(seconds) / 1e9


def token_bytes(model: Any, rows: int) -> float:
    """Bytes of weights that a step of the thinker reads for so many rows, as they lie in memory; keys and values are not counted.

    Of its experts rows read those that even choices find, see `parallel/step_costs.py`.
    """
    text, total = model.config.thinker_config.text_config, 0.0
    share = 1 - (1 - text.num_experts_per_tok / text.num_experts) ** rows
    for name, parameter in model.parameters_and_names():
        matrix = SCALED.sub("", name)
        if TEXT.fullmatch(matrix) or (text.tie_word_embeddings and matrix == TABLE):
            total += parameter.nbytes * (share if EXPERTS.fullmatch(matrix) else 1)
    return total


def storage(model: Any) -> str:
    """How the weights lie in memory, the larger part first: "int4 0.51 GB, bfloat16 0.31 GB, float32 0.09 GB"."""
    sizes: dict[str, int] = {}
    for parameter in model.get_parameters():
        dtype = str(parameter.dtype).lower()
        dtype = DTYPES.get(dtype, dtype)
        sizes[dtype] = sizes.get(dtype, 0) + parameter.nbytes
    return ", ".join(f"{dtype} {sizes[dtype] / 1e9:.2f} GB" for dtype in sorted(sizes, key=lambda name: -sizes[name]))


def description(model: Any) -> dict[str, str]:
    """What the numbers depend on, in words."""
    implementations = {name: implementation for name, implementation, _ in ops.describe()}
    return {
        "software": f"MindSpore {mindspore.__version__}",
        "device": model.device,
        "precision": str(model.dtype).lower(),
        "operators": " + ".join(sorted(set(implementations.values()))),
        "vectors": ops.vectors(),
        "storage": storage(model),
        "attention": implementations["attention"],
    }
