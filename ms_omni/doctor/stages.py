"""The self-check's stages on this model: {name: numbers}, in the order in which data passes through the model."""

import numpy as np
from mindspore import Tensor

from ..modeling.packing import host_array
from . import probe


def run_stages(model):
    """Yields (stage, numbers float32) for every part of the model."""
    thinker, talker = model.thinker, model.talker
    yield "image", _float(thinker.get_image_features(*probe.image())[0])
    yield "video", _float(thinker.get_video_features(*probe.video())[0])
    yield "audio", _float(thinker.get_audio_features(probe.audio()))
    yield "text", _float(thinker(input_ids=probe.text()).logits)
    rows, positions = probe.talker(talker.config.text_config.hidden_size)
    cache = talker.model.new_cache(1, rows.shape[1])
    logits, _ = talker.read(Tensor(rows).astype(model.dtype), positions, cache, np.ones(rows.shape[:2], bool))
    yield "talker", _float(logits)
    yield "predictor", predictor_logits(model)
    yield "code2wav", _float(model.code2wav.decode(probe.codes()))


def predictor_logits(model):
    """Logits of the second code of a frame."""
    from ..modeling.steps import FrameGraph

    talker = model.talker
    hidden, first = probe.predictor(talker.config.text_config.hidden_size)
    step = FrameGraph(talker, 1, None)
    embed = _float(talker.get_input_embeddings()(Tensor(first.astype(np.int32))))
    rows = Tensor(np.concatenate([hidden, embed], axis=1)).astype(model.dtype)
    return _float(talker.code_predictor.read(rows, step.places[0], (step.keys, step.values), 0))


def _float(x):
    return host_array(x.float() if hasattr(x, "float") else x).astype(np.float32)


def answer(model):
    """Greedy ids of a spoken answer to a text `[new]`, and its wave `[samples]`."""
    config = model.config
    turn = [config.im_start_token_id, config.user_token_id, 10, *probe.text()[0], config.im_end_token_id, 10]
    ids = np.array([[*turn, config.im_start_token_id, config.assistant_token_id, 10]])
    said, wave = model.generate(
        input_ids=ids,
        max_new_tokens=6,
        eos_token_id=[],
        talker_do_sample=False,
        talker_max_new_tokens=6,
        talker_min_new_tokens=6,
    )
    return np.asarray(said)[0, ids.shape[1] :], np.asarray(wave).reshape(-1)
