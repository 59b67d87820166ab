"""What a talker hears of a conversation, and the rows that it reads before its first frame.

    user turns    text token: text_projection(thinker embedding)     media token: hidden_projection(thinker hidden state)
    text side     im_start assistant \\n  pad pad pad      pad        pad     bos        first text token
    codec side       -         -      -   -   nothink  think_bos think_eos speaker   pad, then bos

System turns and earlier assistant turns are left out.
Reference: transformers 5.x, `Qwen3OmniMoeForConditionalGeneration.generate`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mindspore import Tensor

from ..generation.hand_over import OPENING_ROWS, ROLE_ROWS, user_mask, user_media
from ..modeling import ops
from ..modeling.positions import get_rope_index


@dataclass(frozen=True)
class Heard:
    """The user turns, U tokens of them: text `[Ut, D]` embeddings and media `[Um, D]` hidden states of the thinker, None where there
    are none, is_media bool `[U]` says which; positions float32 `[3, U + OPENING_ROWS]` of the talker's rows, following: the next.
    """

    text: Any
    media: Any
    is_media: np.ndarray
    positions: np.ndarray
    following: np.float32


def listen(config: Any, ids: np.ndarray, grids: Mapping[str, Any], embeds: Tensor, hidden: Tensor) -> Heard:
    """Of a prompt with ids int64 `[T]`, whose embeddings and hidden states are `[T, D]`; grids: see `Prompt.grids`."""
    thinker, talker, valid = config.thinker_config, config.talker_config, np.ones((1, len(ids)), bool)
    mask = user_mask(ids[None], valid, config)
    places = np.flatnonzero(mask[0]).astype(np.int32)
    is_media = np.isin(ids[places], (thinker.audio_token_id, thinker.image_token_id, thinker.video_token_id))
    line = np.concatenate([ids[places], np.full(OPENING_ROWS, config.tts_pad_token_id)])[None]
    found = user_media(ids[None], valid, mask, thinker, grids)
    positions, deltas = get_rope_index(talker, talker.spatial_merge_size, line, np.ones(line.shape, bool), **found)
    following = np.float32(deltas[0, 0] + np.float32(line.shape[1]))
    text, media = _rows(embeds, places[~is_media]), _rows(hidden, places[is_media])
    return Heard(text, media, is_media, positions[:, 0].astype(np.float32), following)


def _rows(states, places):
    return ops.gather_rows(states, Tensor(places)) if len(places) else None


def talker_rows(talker: Any, heard: Heard, words: Sequence[np.ndarray], ends: Sequence[np.ndarray], speaker: int) -> Tensor:
    """All rows `[S, D]` of the talker's prompt. words: the thinker's embeddings `[D]` of the assistant turn up to its first word;
    ends: those of what begins and fills silence (`tts_bos`, `tts_pad`).
    """
    rows = Tensor(np.zeros((len(heard.is_media), talker.config.text_config.hidden_size), np.float32)).astype(talker.dtype)
    sides = (
        (~heard.is_media, heard.text, talker.text_projection),
        (heard.is_media, heard.media, talker.hidden_projection),
    )
    for chosen, states, project in sides:
        if states is not None:
            states = states if isinstance(states, Tensor) else Tensor(states).astype(talker.dtype)
            rows = ops.scatter_rows(rows, Tensor(np.flatnonzero(chosen).astype(np.int32)), project(states))
    return ops.concat((rows, _opening(talker, words, ends, speaker)), 0)


def _opening(talker, words, ends, speaker):
    config, (begin, silence) = talker.config, ends
    names = ("nothink_id", "think_bos_id", "think_eos_id"), ("pad_id", "bos_id")
    before, after = ([getattr(config, f"codec_{name}") for name in part] for part in names)
    codes = talker.get_input_embeddings()(Tensor(np.array([[*before, speaker, *after]], np.int32)))[0]
    silent = Tensor(np.zeros((ROLE_ROWS, codes.shape[-1]), np.float32)).astype(codes.dtype)
    text = np.stack([*words[:ROLE_ROWS], *[silence] * 4, begin, words[ROLE_ROWS]])
    return talker.text_projection(Tensor(text).astype(talker.dtype)) + ops.concat((silent, codes), 0)
