"""The frame loop: talker prompt in, one codec frame per step out (code 0 by the talker, the others by the predictor)."""

import numpy as np
from mindspore import Tensor

from ..errors import InputError
from ..modeling.packing import host_array
from ..modeling.steps import DecoderStep, FrameStep
from ..outputs import CodecFrame
from .sampling import not_finite, row_streams
from .talker_prompt import ROLE_ROWS, build_prompt, text_rows


class FramePredictor:
    """Codes 1 .. n-1 of one frame after another; every row has a random stream of its own."""

    def __init__(self, step, params, batch_size, accord):
        self.step = step
        self.accord = accord
        self.streams = row_streams(params.seed if params.do_sample else 0, batch_size, purpose=1)

    def __call__(self, hidden, code):
        """hidden `[B, 1, D]` (talker), code 0 int64 `[B]` -> codes int64 `[B, n]`, their summed embeddings `[B, 1, D]`."""
        noise = np.stack([stream.random(self.step.groups, np.float32) for stream in self.streams])
        codes, total = self.step(hidden, as_column(code), Tensor(noise))
        codes, total = self.accord.agree(host_array(codes).astype(np.int64)), self.accord.share(total)
        if not np.isfinite(host_array(total)).all():
            raise InputError(not_finite("code predictor's numbers"))
        return codes, total


def as_column(ids):
    """Ids `[B]` as a tensor int32 `[B, 1]`."""
    return Tensor(ids[:, None].astype(np.int32))


def codec_frames(model, prompt, media, hand_over, speech):
    """Yields a `CodecFrame` per 80 ms until every row has ended; speech: `SpeechParams`.

    As in the reference, the talker's `max_new_tokens` counts draws of code 0, and the last draw makes no frame: it is the
    end token, or the loop was cut there.
    """
    batch, talker, params = hand_over.batch_size, model.talker, speech.predictor
    sampling = (params.temperature, params.top_k, params.top_p) if params.do_sample else None
    talker_steps = model.steps.lend(("talker", batch), lambda: talker_step(talker, batch))
    frame_steps = model.steps.lend(("frame", batch, sampling), lambda: FrameStep(talker, batch, sampling))
    with talker_steps as step, frame_steps as frame_step:
        yield from _frames(model, prompt, media, hand_over, speech, step, frame_step)


def talker_step(talker, batch_size):
    """A `DecoderStep` of the talker with an empty cache."""
    return DecoderStep(talker.model, talker.codec_head, talker.model.new_cache(batch_size, 1))


def _frames(model, prompt, media, hand_over, speech, step, frame_step):
    talker, batch, accord = model.talker, hand_over.batch_size, model.thinker.accord
    params = accord.params(speech.talker)
    active = hand_over.has_text()
    start = build_prompt(model, prompt, media, hand_over, speech.speaker_id)
    step.cache.clear()
    logits, hidden = talker.read(start.rows, start.positions, step.cache, start.valid)
    logits, hidden = logits[:, -1:], hidden[:, -1:]
    sampler = accord.sampler(params, batch, talker.config.text_config.vocab_size, part="talker")
    predict = FramePredictor(frame_step, accord.params(speech.predictor), batch, accord)
    still = np.ones((batch, 1), bool)
    for index in range(params.max_new_tokens - 1):
        code, _ = accord.choose(sampler, host_array(logits)[:, -1].astype(np.float32))
        active = active & ~np.isin(code, params.eos_token_id)
        if not active.any():
            return
        codes, embeds = predict(hidden, code)
        yield CodecFrame(index, codes, active)
        row = embeds + text_rows(model, hand_over.ids(ROLE_ROWS + 1 + index)[:, None])
        positions = np.broadcast_to(start.following + np.float32(index), (3, batch, 1))
        logits, hidden = step(row, talker.model.rope(positions), still)
