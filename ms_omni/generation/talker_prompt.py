"""The rows that the talker reads before its first frame: the user's turns, and the opening of its own.

    user turns    text token: text_projection(thinker embedding)     media token: hidden_projection(thinker hidden state)
    text side     im_start assistant \\n  pad pad pad      pad        pad     bos        first text token
    codec side       -         -      -   -   nothink  think_bos think_eos speaker   pad, then bos

System turns and earlier assistant turns are left out. Rows of a batch are padded on the left.
Reference: transformers 5.x, `Qwen3OmniMoeForConditionalGeneration.generate`.
"""

from dataclasses import dataclass

import numpy as np
from mindspore import Tensor

from ..modeling import ops
from ..modeling.positions import get_rope_index, media_runs
from .hand_over import user_mask

ROLE_ROWS = 3
OPENING_ROWS = 9


@dataclass(frozen=True)
class TalkerPrompt:
    """rows `[B, S, D]`, valid bool `[B, S]`, positions float32 `[3, B, S]`, following float32 `[B, 1]`: next position."""

    rows: object
    valid: np.ndarray
    positions: np.ndarray
    following: np.ndarray


def build_prompt(model, prompt, media, hand_over, speaker_id):
    """The `TalkerPrompt` of a `PromptStates`; media: the grids of the prompt's images and videos (see `user_media`)."""
    config, talker = model.config, model.talker
    mask = user_mask(prompt.ids, prompt.valid, config)
    opening, opening_ids = opening_rows(model, hand_over, speaker_id)
    valid = left_padded(mask.sum(axis=1))
    ids = np.full(valid.shape, config.tts_pad_token_id, np.int64)
    ids[valid] = prompt.ids[mask]
    rows = ops.concat((user_rows(model, prompt, mask, valid), opening), 1)
    ids = np.concatenate([ids, opening_ids], axis=1)
    valid = np.concatenate([valid, np.ones((len(ids), OPENING_ROWS), bool)], axis=1)
    grids = user_media(prompt.ids, prompt.valid, mask, config.thinker_config, media)
    positions, deltas = get_rope_index(talker.config, talker.config.spatial_merge_size, ids, valid, **grids)
    following = deltas + valid.sum(axis=1, keepdims=True).astype(np.float32)
    return TalkerPrompt(rows, valid, positions, following)


def left_padded(lengths):
    """Mask bool `[B, max length]` of rows that end together."""
    longest = lengths.max()
    return np.arange(longest) >= (longest - lengths)[:, None]


def user_rows(model, prompt, mask, valid):
    """Projected user turns `[B, U, D]`, zeros in the padding."""
    thinker_config, talker = model.config.thinker_config, model.talker
    media = (thinker_config.audio_token_id, thinker_config.image_token_id, thinker_config.video_token_id)
    is_media = np.isin(prompt.ids, media)
    targets = np.full(mask.shape, -1)
    targets[mask] = np.flatnonzero(valid)
    width = talker.config.text_config.hidden_size
    rows = Tensor(np.zeros((valid.size, width), np.float32)).astype(talker.dtype)
    sides = (
        (mask & ~is_media, prompt.embeds, talker.text_projection),
        (mask & is_media, prompt.hidden, talker.hidden_projection),
    )
    for chosen, states, project in sides:
        if chosen.any():
            index = Tensor(np.flatnonzero(chosen).astype(np.int32))
            projected = project(ops.gather_rows(states.reshape(-1, states.shape[-1]), index))
            rows = ops.scatter_rows(rows, Tensor(targets[chosen].astype(np.int32)), projected)
    return rows.reshape(*valid.shape, width)


def opening_rows(model, hand_over, speaker_id):
    """The nine rows `[B, 9, D]` that open the talker's turn, and the ids `[B, 9]` that stand for them in positions."""
    config, talker_config = model.config, model.config.talker_config
    first = np.stack([hand_over.ids(index) for index in range(ROLE_ROWS + 1)], axis=1)
    batch = len(first)
    spoken = [config.tts_pad_token_id] * 4 + [config.tts_bos_token_id]
    text = np.concatenate([first[:, :ROLE_ROWS], np.tile(spoken, (batch, 1)), first[:, ROLE_ROWS:]], axis=1)
    codec = [
        talker_config.codec_nothink_id,
        talker_config.codec_think_bos_id,
        talker_config.codec_think_eos_id,
        speaker_id,
        talker_config.codec_pad_id,
        talker_config.codec_bos_id,
    ]
    codes = model.talker.get_input_embeddings()(Tensor(np.tile(codec, (batch, 1)).astype(np.int32)))
    silent = Tensor(np.zeros((batch, ROLE_ROWS, codes.shape[-1]), np.float32)).astype(codes.dtype)
    rows = text_rows(model, text) + ops.concat((silent, codes), 1)
    return rows, np.full((batch, OPENING_ROWS), config.tts_pad_token_id)


def text_rows(model, ids):
    """Text ids `[B, S]` as talker rows `[B, S, D]`."""
    embeds = model.thinker.get_input_embeddings()(Tensor(np.ascontiguousarray(ids).astype(np.int32)))
    return model.talker.text_projection(embeds)


def user_media(ids, valid, mask, config, media):
    """The grids of those images and videos that stand in user turns, as arguments of `get_rope_index`."""
    kept = {"image": [], "video": []}
    for row in range(len(ids)):
        line, in_user = ids[row][valid[row]], mask[row][valid[row]]
        for kind, start, _ in media_runs(line, config):
            if kind in ("image", "video", "audio_in_video"):
                kept["image" if kind == "image" else "video"].append(in_user[start])
    picked = {"image_grid_thw": "image", "video_grid_thw": "video", "second_per_grids": "video"}
    return {name: _select(media.get(name), kept[kind]) for name, kind in picked.items()}


def _select(values, kept):
    return None if values is None else np.asarray(values)[np.array(kept, bool)]
