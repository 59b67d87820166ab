"""The reference as the other side of a benchmark; runs in its own environment (see requirements.txt), started by `ms-omni bench`.

    python tests/reference/benchmark.py        answers the requests of ms_omni/bench/worker.py on standard input

Settings: float32, sdpa attention, its own `generate`, transformers' default for the experts. The defects that would stop
it are repaired as in `reference_model.py`.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ms_omni.bench.worker import part, peak_gb, serve

SAMPLE_RATE_HZ = 24_000
SPOKEN_TOKENS = 12
REFERENCE = None


def load(model, inputs, **_):
    """Loads the model; says how long it took and what it runs on. Its numbers are those of a fresh process."""
    global REFERENCE
    started = time.perf_counter()
    from tests.reference import reference_model  # first: it keeps transformers from looking for torchvision

    import numpy as np  # isort: skip
    import torch
    import transformers

    imported = time.perf_counter()
    loaded = reference_model.load(model, experts_implementation=None)
    done = {"import_s": imported - started, "load_s": time.perf_counter() - imported, "peak_gb": peak_gb()}
    torch.set_grad_enabled(False)
    REFERENCE = Reference(loaded, dict(np.load(inputs)))
    experts = loaded.thinker.config.text_config._experts_implementation
    return {
        **done,
        "software": f"PyTorch {torch.__version__}, transformers {transformers.__version__}",
        "device": "CPU",
        "precision": "float32",
        "attention": "sdpa",
        "operators": f"experts {experts}, {torch.get_num_threads()} threads",
    }


def run(kind, settings):
    """One repetition of a scenario."""
    return getattr(REFERENCE, kind)(**settings)


class Moments:
    """A streamer that notes when each token was known; `generate` shows it the prompt first."""

    def __init__(self):
        self.seen = []

    def put(self, _):
        self.seen.append(time.perf_counter())

    def end(self):
        """Nothing to flush."""


class Reference:
    """One repetition of each scenario; the same names and numbers as `ms_omni.bench.measures.Measures`."""

    def __init__(self, model, arrays):
        import torch

        self.model = model
        self.arrays = {name: torch.from_numpy(value) for name, value in arrays.items()}
        self.question = part(self.arrays, "question")
        self.talker_arguments = None

    def image(self):
        return self._timed(lambda: self.model.thinker.model.visual(self.arrays["image.pixels"], self.arrays["image.grid"]))

    def video(self):
        return self._timed(lambda: self.model.thinker.model.visual(self.arrays["video.pixels"], self.arrays["video.grid"]))

    def audio(self):
        import torch

        features = self.arrays["audio.features"]
        lengths = torch.tensor([features.shape[-1]])
        return self._timed(lambda: self.model.thinker.model.audio_tower(features[0], feature_lens=lengths))

    @staticmethod
    def _timed(encode):
        started = time.perf_counter()
        encode()
        return {"encode_s": time.perf_counter() - started}

    def _moments(self, ids, tokens):
        import torch

        streamer = Moments()
        self.model.thinker.generate(
            input_ids=ids.contiguous(),
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            streamer=streamer,
            eos_token_id=self.model.config.im_end_token_id,
            pad_token_id=0,
        )
        return streamer.seen[1:]

    def prefill(self, tokens):
        started = time.perf_counter()
        return {"tokens_per_s": tokens / (self._moments(self.arrays["ids"][:1, :tokens], 1)[0] - started)}

    def decode(self, batch, prompt, tokens):
        moments = self._moments(self.arrays["ids"][:batch, :prompt], tokens)
        return {"tokens_per_s": batch * (tokens - 1) / (moments[-1] - moments[0])}

    def cached(self, cached, tokens=25):
        import numpy as np

        return {"token_s": float(np.median(np.diff(self._moments(self.arrays["ids"][:1, : cached - tokens // 2], tokens))))}

    def speech(self, frames):
        """The talker's own `generate` on a prompt that was noted down once; the predictor's share is what it nests."""
        arguments = self._talker_arguments(frames)
        predictor, original = {"s": 0.0}, self.model.talker.code_predictor.generate

        def timed(*positional, **named):
            started = time.perf_counter()
            result = original(*positional, **named)
            predictor["s"] += time.perf_counter() - started
            return result

        self.model.talker.code_predictor.generate = timed
        try:
            started = time.perf_counter()
            self.model.talker.generate(**arguments)
            total = time.perf_counter() - started
        finally:
            del self.model.talker.code_predictor.generate
        return {
            "frames_per_s": frames / total,
            "predictor_s": predictor["s"] / frames,
            "talker_s": (total - predictor["s"]) / frames,
        }

    def _talker_arguments(self, frames):
        if self.talker_arguments is None:
            arguments, original = {}, self.model.talker.generate

            def note(**given):
                arguments.update(given)
                return original(**given)

            self.model.talker.generate = note
            try:
                self._answer(SPOKEN_TOKENS, 2)
            finally:
                del self.model.talker.generate
            self.talker_arguments = arguments
        return {**self.talker_arguments, "max_new_tokens": frames + 1, "min_new_tokens": frames + 1}

    def wave_whole(self, frames):
        codes = self.arrays["codes"][..., :frames]
        return self._factor(lambda: self.model.code2wav(codes))

    def wave_stream(self, frames, pieces):
        """Its chunked decoding, in pieces as long as ours become and with the 25 frames of context that it uses."""
        codes = self.arrays["codes"][..., :frames]
        return self._factor(lambda: self.model.code2wav.chunked_decode(codes, chunk_size=pieces[-1], left_context_size=25))

    @staticmethod
    def _factor(decode):
        started = time.perf_counter()
        samples = decode().shape[-1]
        return {"real_time_factor": (time.perf_counter() - started) * SAMPLE_RATE_HZ / samples}

    def answer(self, tokens, frames):
        """The whole answer; its sound comes when all is done."""
        streamer, started = Moments(), time.perf_counter()
        self._answer(tokens, frames, thinker_streamer=streamer)
        total = time.perf_counter() - started
        spoken_s = frames * int(self.model.code2wav.total_upsample) / SAMPLE_RATE_HZ
        return {
            "first_token_s": streamer.seen[1] - started,
            "first_sound_s": total,
            "total_s": total,
            "real_time_factor": total / spoken_s,
        }

    def _answer(self, tokens, frames, **more):
        end = self.model.config.im_end_token_id
        return self.model.generate(
            **self.question,
            speaker=next(iter(self.model.config.talker_config.speaker_id)),
            thinker_max_new_tokens=tokens,
            thinker_min_new_tokens=tokens,
            thinker_do_sample=False,
            thinker_eos_token_id=end,
            thinker_pad_token_id=end,
            talker_max_new_tokens=frames + 1,
            talker_min_new_tokens=frames + 1,
            talker_pad_token_id=self.model.config.talker_config.codec_eos_token_id,
            **more,
        )


if __name__ == "__main__":
    serve(load, run)
