"""The spoken half of the model: talker and predictor alone, the vocoder alone, and a whole spoken answer."""

import time
from contextlib import contextmanager

import numpy as np

from ..generation.frames import codec_frames
from ..generation.hand_over import TextHandOver, assistant_turns
from ..generation.request import parse_request
from ..generation.text import TextGeneration
from ..generation.waves import SAMPLE_RATE_HZ
from ..modeling.packing import host_array
from ..outputs import StreamEnd

SAID_TOKENS = 12


def exactly(tokens, frames):
    """Keyword arguments of `stream` for a spoken answer of so many text tokens and codec frames."""
    draws = frames + 1  # the last draw of code 0 makes no frame
    return {
        "max_new_tokens": tokens,
        "eos_token_id": [],
        "talker_max_new_tokens": draws,
        "talker_min_new_tokens": draws,
        "seed": 0,
    }


def talk(model, inputs, frames):
    """Talker and predictor on a text that is known beforehand: frames per second, then the time of each part."""
    speak = prepared(model, inputs, frames)
    started = time.perf_counter()
    made = sum(1 for _ in speak())
    total_s = time.perf_counter() - started
    with timed_steps(model) as seconds:
        sum(1 for _ in speak())
    parts = {f"{name}_s": spent / made for name, spent in seconds.items()}
    return {"frames_per_s": made / total_s, "talker_s": parts["talker_s"], "predictor_s": parts["frame_s"]}


def prepared(model, inputs, frames):
    """A function that returns an iterator over `frames` frames of an answer whose text is made here."""
    request = parse_request(model, {**inputs, **exactly(SAID_TOKENS, frames)})
    config = model.config
    text = TextGeneration(model.thinker, request.inputs, request.text, config.talker_config.accept_hidden_layer)
    steps = list(text)
    media = {
        "image_grid_thw": inputs.get("image_grid_thw"),
        "video_grid_thw": inputs.get("video_grid_thw"),
        "second_per_grids": inputs.get("video_second_per_grid"),
    }

    def speak():
        turns = assistant_turns(text.prompt.ids, config)
        hand_over = TextHandOver(iter(steps), turns, config.tts_eos_token_id, config.tts_pad_token_id)
        return codec_frames(model, text.prompt, media, hand_over, request.speech)

    return speak


def frame_steps(model, inputs, frames):
    """An iterator over the frames of such an answer."""
    return prepared(model, inputs, frames)()


@contextmanager
def timed_steps(model):
    """Seconds spent in each kind of step ("talker", "frame") that the model lends out meanwhile."""
    seconds, pool = {"talker": 0.0, "frame": 0.0}, model.steps
    model.steps = _TimedPool(pool, seconds)
    try:
        yield seconds
    finally:
        model.steps = pool


class _TimedPool:
    def __init__(self, pool, seconds):
        self.pool, self.seconds = pool, seconds

    @contextmanager
    def lend(self, key, build):
        with self.pool.lend(key, build) as step:
            yield _TimedStep(step, key[0], self.seconds)


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
