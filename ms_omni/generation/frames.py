"""The frame loop: talker prompt in, one codec frame per step out (code 0 by the talker, the others by the predictor)."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from mindspore import Tensor

from ..modeling.packing import host_array
from ..modeling.steps import DecoderStep, FrameStep
from ..outputs import CodecFrame
from .sampling import row_streams
from .talker_prompt import ROLE_ROWS, build_prompt, text_rows


class FramePredictor:
    """Codes 1 .. n-1 of one frame after another; every row has a random stream of its own."""

    def __init__(self, step, params, batch_size, accord):
        self.step = step
        self.accord = accord
        self.streams = row_streams(params.seed if params.do_sample else 0, batch_size, purpose=1)

    def __call__(self, hidden, code):
        """hidden `[B, 1, D]` (talker), code 0 int64 `[B]` -> codes int64 `[B, n]`, their summed embeddings `[B, 1, D]`.

        Numbers that are not finite stay in the sum (see `ops.code_frame`) and show in the talker's next logits, which are
        looked at anyway: nothing is read from the device for it.
        """
        noise = np.stack([stream.random(self.step.groups, np.float32) for stream in self.streams])
        codes, total = self.step(hidden, as_column(code), Tensor.from_numpy(noise))
        return self.accord.agree(host_array(codes).astype(np.int64)), self.accord.share(total)


def as_column(ids):
    """Ids `[B]` as a tensor int32 `[B, 1]`."""
    return Tensor.from_numpy(ids[:, None].astype(np.int32))


def codec_frames(model, prompt, media, hand_over, speech):
    """Yields a `CodecFrame` per 80 ms until every row has ended; speech: `SpeechParams`."""
    active = hand_over.has_text()
    start = build_prompt(model, prompt, media, hand_over, speech.speaker_id)

    @lru_cache(maxsize=1)  # behind the text every frame has the same row
    def rows(ids):
        return text_rows(model, np.array(ids)[:, None])

    def text(index):
        return rows(tuple(hand_over.ids(ROLE_ROWS + 1 + index).tolist()))

    for index, draw in enumerate(draws(model.talker, start, text, active, speech, model.steps, model.thinker.accord)):
        if draw.codes is not None:
            yield CodecFrame(index, draw.codes, draw.active)


def talker_step(talker, batch_size):
    """A `DecoderStep` of the talker with an empty cache."""
    return DecoderStep(talker.model, talker.codec_head, talker.model.new_cache(batch_size, 1))


@dataclass(frozen=True)
class Draw:
    """A code 0 int64 `[B]` and what came of it: counted bool `[B]`: rows that had not ended before, active: nor by it; codes
    int64 `[B, Q]` of its frame, or None behind the last one; hidden `[B, S, D]`: the states it was drawn from.
    """

    code: np.ndarray
    counted: np.ndarray
    active: np.ndarray
    codes: np.ndarray | None
    hidden: Tensor


def draws(talker, start, text, active, speech, pool, accord):
    """Yields a `Draw` after the other until every row has ended.

    start: a `TalkerPrompt`; text: index of a frame -> its row of text `[B, 1, D]`; active bool `[B]`: rows that speak. As in the
    reference, the talker's `max_new_tokens` counts draws, and the last draw makes no frame: it is the end token, or the loop
    was cut there.
    """
    batch, rest = len(active), speech.predictor
    sampling = (rest.temperature, rest.top_k, rest.top_p) if rest.do_sample else None
    talker_steps = pool.lend(("talker", batch), lambda: talker_step(talker, batch))
    frame_steps = pool.lend(("frame", batch, sampling), lambda: FrameStep(talker, batch, sampling))
    with talker_steps as step, frame_steps as frame_step:
        params = accord.params(speech.talker)
        sampler = accord.sampler(params, batch, talker.config.text_config.vocab_size, part="talker or code predictor")
        predict = FramePredictor(frame_step, accord.params(rest), batch, accord)
        ends, still = np.array(params.eos_token_id, np.int64), np.ones((batch, 1), bool)
        step.cache.clear()
        logits, hidden = talker.read(start.rows, start.positions, step.cache, start.valid)
        for index in range(params.max_new_tokens):
            code, _ = accord.choose(sampler, host_array(logits)[:, -1].astype(np.float32))
            counted, active = active, active & (code[:, None] != ends).all(axis=1)
            if not active.any() or index == params.max_new_tokens - 1:
                yield Draw(code, counted, active, None, hidden)
                return
            codes, embeds = predict(hidden[:, -1:], code)
            yield Draw(code, counted, active, codes, hidden)
            positions = np.broadcast_to(start.following + np.float32(index), (3, batch, 1))
            logits, hidden = step(embeds + text(index), talker.model.rope(positions), still)
