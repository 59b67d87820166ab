"""`talker.generate` as in transformers: codes of a text that is known, from rows that the caller has made."""

from typing import Any

import numpy as np
from mindspore import Tensor

from ..arrays import HostArray
from ..errors import InputError
from ..modeling.forward import counted_positions, given_embeddings, given_tensor
from ..modeling.packing import host_array, valid_tokens
from ..outputs import GenerateOutput
from .checks import check, truth
from .request import PREDICTOR_DEFAULTS, SpeechParams, sampling_params
from .talker_prompt import TalkerPrompt
from .unsupported import take_neutral

INPUTS = ("talker_input_ids", "attention_mask", "image_grid_thw", "video_grid_thw", "video_second_per_grid")
UNUSED = ("use_audio_in_video", "audio_feature_lengths", "use_cache")
"""The tokens say both, and there is always a cache."""


def generate_codes(talker: Any, embeds: Any, trailing: Any, pad: Any, kwargs: dict) -> Any:
    """Codes 0 int64 `[B, n]` of all draws, or a `GenerateOutput` whose hidden_states hold, per draw, the last hidden state
    `([B, S, D],)` and the codes int64 `[B, Q]` of the frame before, None for the first.

    embeds `[B, S, D]`: the talker's prompt; trailing `[B, n, D]`: text rows, one per frame; pad `[B or 1, 1, D]`: the row when
    they are used up. Raises `InputError`.
    """
    for name, value in (("inputs_embeds", embeds), ("trailing_text_hidden", trailing), ("tts_pad_embed", pad)):
        if value is None:
            raise InputError(f"talker.generate needs {name}; to speak what the thinker writes use model.generate")
    inputs = {name: kwargs.pop(name, None) for name in INPUTS}
    for name in UNUSED:
        value = kwargs.pop(name, None)
        if value is not None and name != "audio_feature_lengths":
            check(name, value)
    flags = {
        name: truth(name, kwargs.pop(name, None) or False) for name in ("return_dict_in_generate", "output_hidden_states")
    }
    take_neutral(kwargs, "talker.generate")
    defaults = {"top_k": 50, "eos_token_id": talker.config.codec_eos_token_id}
    params = sampling_params(kwargs, "generate", **defaults)
    params.check_vocabulary(talker.config.text_config.vocab_size)
    rest = sampling_params({}, "predictor", **PREDICTOR_DEFAULTS, do_sample=params.do_sample, seed=params.seed)
    start = _start(talker, given_embeddings(talker.model, embeds), inputs)
    batch, _, width = start.rows.shape
    rows = host_array(given_tensor(trailing, "trailing_text_hidden", (batch, "frames", width)))
    silent = host_array(given_tensor(pad, "tts_pad_embed", (len(pad) if len(pad) == 1 else batch, 1, width)))

    def text(index: int) -> Tensor:
        row = rows[:, index : index + 1] if index < rows.shape[1] else np.broadcast_to(silent, (batch, 1, width))
        return Tensor(np.ascontiguousarray(row)).astype(talker.dtype)

    from .frames import draws  # TODO

    made = draws(talker, start, text, np.ones(batch, bool), SpeechParams(0, params, rest), talker.steps, talker.accord)
    return _result(list(made), params, flags)


def _start(talker: Any, embeds: Tensor, inputs: dict) -> TalkerPrompt:
    """The prompt with its positions, padded on the left."""
    shape = tuple(embeds.shape[:2])
    valid = valid_tokens(shape, inputs["attention_mask"])
    if valid.shape != shape or not valid[:, -1].all():
        raise InputError(f"attention_mask has shape {list(valid.shape)}, expected {list(shape)}, padded on the left")
    ids = inputs.pop("talker_input_ids")
    if ids is None:
        positions, deltas = counted_positions(valid), np.zeros((len(valid), 1), np.float32)
    else:
        positions, deltas = talker.rope_index(ids, valid, *(inputs[name] for name in INPUTS[2:]))
    return TalkerPrompt(embeds, valid, positions, deltas + valid.sum(axis=1, keepdims=True).astype(np.float32))


def _result(made: list, params: Any, flags: dict) -> Any:
    tokens = [np.where(draw.counted, draw.code, params.pad_id) for draw in made]
    ids = HostArray.of(np.stack(tokens, axis=1))
    if not flags["return_dict_in_generate"]:
        return ids
    frames = [None, *(draw.codes for draw in made[:-1])]
    states = tuple(
        ((draw.hidden,), None if codes is None else HostArray.of(np.concatenate([token[:, None], codes[:, 1:]], axis=1)))
        for draw, codes, token in zip(made, frames, [None, *tokens])
    )
    return GenerateOutput(ids, hidden_states=states if flags["output_hidden_states"] else None)
