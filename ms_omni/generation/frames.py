"""The frame loop: talker prompt in, one codec frame per step out (code 0 by the talker, the others by the predictor)."""

import numpy as np
from mindspore import Tensor

from ..modeling import ops
from ..modeling.packing import host_array
from ..outputs import CodecFrame
from .sampling import Sampler
from .talker_prompt import ROLE_ROWS, build_prompt, text_rows


class FramePredictor:
    """Codes 1 .. n-1 of one frame after another; owns the predictor's tiny cache and its random streams."""

    def __init__(self, talker, params, batch_size):
        self.talker = talker
        self.predictor = talker.code_predictor
        self.cache = self.predictor.new_cache(batch_size)
        self.sampler = Sampler(params, batch_size, self.predictor.config.vocab_size)

    def __call__(self, hidden, code):
        """hidden `[B, 1, D]` (talker), code 0 int64 `[B]` -> codes int64 `[B, n]` and their summed embeddings `[B, 1, D]`."""
        self.cache.clear()
        embed = self.talker.get_input_embeddings()(as_column(code))
        x, codes, total = ops.concat((hidden, embed), 1), [code], embed
        for group, embedding in enumerate(self.predictor.model.codec_embedding):
            logits = self.predictor(x, self.cache, group)
            codes.append(self.sampler(host_array(logits).astype(np.float32)))
            x = embedding(as_column(codes[-1]))
            total = total + x
        return np.stack(codes, axis=1), total


def as_column(ids):
    """Ids `[B]` as a tensor int32 `[B, 1]`."""
    return Tensor(ids[:, None].astype(np.int32))


def codec_frames(model, prompt, media, hand_over, speaker_id, params, predictor_params):
    """Yields a `CodecFrame` per 80 ms until every row has ended.

    As in the reference, `params.max_new_tokens` counts draws of code 0, and the last draw makes no frame: it is the end
    token, or the loop was cut there.
    """
    talker = model.talker
    active = hand_over.has_text()
    start = build_prompt(model, prompt, media, hand_over, speaker_id)
    cache = talker.model.new_cache(len(active), start.valid.shape[1])
    logits, hidden = talker(start.rows, start.positions, cache.context(start.valid))
    sampler = Sampler(params, len(active), talker.config.text_config.vocab_size)
    predict = FramePredictor(talker, predictor_params, len(active))
    still = np.ones((len(active), 1), bool)
    for index in range(params.max_new_tokens - 1):
        code = sampler(host_array(logits[:, -1]).astype(np.float32))
        active = active & ~np.isin(code, params.eos_token_id)
        if not active.any():
            return
        codes, embeds = predict(hidden[:, -1:], code)
        yield CodecFrame(index, codes, active)
        row = embeds + text_rows(model, hand_over.ids(ROLE_ROWS + 1 + index)[:, None])
        positions = np.broadcast_to(start.following + np.float32(index), (3, len(active), 1))
        logits, hidden = talker(row, positions, cache.context(still))
