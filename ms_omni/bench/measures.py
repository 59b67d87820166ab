"""One repetition of each scenario on this model: `run(kind, settings)` -> {metric: number}."""

import time

import numpy as np

from ..modeling.packing import host_array
from ..outputs import TextDelta
from . import counts, memory, speech
from .inputs import part
from .meter import Meter
from .serving import Serving
from .text import write


class Measures:
    """model: a `Qwen3OmniMoeForConditionalGeneration`; arrays: the inputs of all scenarios."""

    def __init__(self, model, arrays):
        self.model = model
        self.arrays = arrays
        self.question = part(arrays, "question")
        self.speakers = speech.Speakers(model, self.question)
        self.serving = Serving(model, arrays, self.speakers)
        self.kinds = {
            "memory": self.memory,
            "image": self.image,
            "video": self.video,
            "audio": self.audio,
            "prefill": self.prefill,
            "decode": self.decode,
            "cached": self.cached,
            "speech": self.speakers.talk,
            "wave_whole": lambda frames: speech.whole(model.code2wav, arrays["codes"][..., :frames]),
            "wave_stream": lambda frames, pieces: speech.pieces(model.code2wav, arrays["codes"][..., :frames], pieces),
            "answer": lambda **settings: speech.answer(model, self.question, **settings),
            "serve": self.serving.serve,
            "writing": self.serving.writing,
            "speaking": self.serving.speaking,
            "burst": self.serving.burst,
            "again": self.serving.again,
            "count_text": lambda: counts.text(model, arrays["ids"][:1, :64]),
            "count_speech": lambda: counts.speech(model, self.speakers),
            "count_requests": lambda requests: counts.requests(model, arrays, requests),
        }

    def run(self, kind, settings):
        """The numbers of one repetition; `compiled` counts the graphs that were built during it."""
        with Meter() as meter:
            numbers = self.kinds[kind](**settings)
        return {**numbers, "compiled": meter.compiled}

    def memory(self):
        return {"memory_gb_per_s": memory.read_gb_per_s()}

    def image(self):
        return self._encode(self.model.thinker.get_image_features, "image")

    def video(self):
        return self._encode(self.model.thinker.get_video_features, "video")

    def _encode(self, encode, name):
        started = time.perf_counter()
        features, _ = encode(self.arrays[f"{name}.pixels"], self.arrays[f"{name}.grid"])
        host_array(features)
        return {"encode_s": time.perf_counter() - started}

    def audio(self):
        started = time.perf_counter()
        host_array(self.model.thinker.get_audio_features(self.arrays["audio.features"]))
        return {"encode_s": time.perf_counter() - started}

    def prefill(self, tokens):
        started = time.perf_counter()
        moments = step_moments(self.model, self.arrays["ids"][:1, :tokens], 1)
        return {"tokens_per_s": tokens / (moments[0] - started)}

    def decode(self, batch, prompt, tokens):
        moments = step_moments(self.model, self.arrays["ids"][:batch, :prompt], tokens)
        token_s = (moments[-1] - moments[0]) / (tokens - 1)
        return {"tokens_per_s": batch / token_s, "weights_gb_per_s": memory.token_bytes(self.model, batch) / token_s / 1e9}

    def cached(self, cached, tokens=25):
        """Steps around `cached` cached tokens."""
        moments = step_moments(self.model, self.arrays["ids"][:1, : cached - tokens // 2], tokens)
        return {"token_s": float(np.median(np.diff(moments)))}


def step_moments(model, ids, tokens):
    """Greedy generation of exactly `tokens` tokens after ids `[B, T]`: when each one was known."""
    return [time.perf_counter() for event in write(model, ids, tokens) if isinstance(event, TextDelta)]
