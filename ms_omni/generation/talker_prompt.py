"""What of a conversation is spoken, and the rows that the talker reads before its first frame.

    assistant turn   im_start assistant \\n  t0  t1  ...  t(n-1)          (t: given in the prompt or generated)
    index                0        1      2   3   4  ...
    spoken                                  t0  t1  ...  t(n-1)  tts_eos  tts_pad  tts_pad ...

Every token that is written is spoken; only the end token that ends a row (normally im_end) is not. So what is spoken is what was
written, whatever ended it: an end token, a limit, a stop string or a criterion of the caller's.

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

from ..errors import InputError
from ..modeling import ops
from ..modeling.positions import get_rope_index, media_runs

ROLE_ROWS = 3
"""Of the assistant turn that are not spoken: im_start, assistant, newline."""
OPENING_ROWS = 9
"""Of the talker that open its turn, see `generation/talker_prompt.py`."""


def user_mask(ids: np.ndarray, valid: np.ndarray, config: Any) -> np.ndarray:
    """Which tokens belong to a user turn, bool `[B, T]`: from `<|im_start|>user` to the next `<|im_start|>`."""
    at = np.where((ids == config.im_start_token_id) & valid, np.arange(ids.shape[1]), -1)
    opened = np.maximum.accumulate(at, axis=1)
    role_at = np.minimum(opened + 1, ids.shape[1] - 1)
    role = np.take_along_axis(ids, role_at, axis=1)
    return (opened >= 0) & (role == config.user_token_id) & valid


def assistant_turns(ids: np.ndarray, config: Any, given: bool = False) -> list[list[int]]:
    """Per row of ids `[B, T]`, padded on the left, the assistant turn that it ends with, from `<|im_start|>` on.

    That turn must be open, so that what is written belongs to it; a given one, which is spoken as it stands, may be closed, and
    comes without what closes it. Raises `InputError` for a row that ends otherwise.
    """
    turns = []
    for row, line in enumerate(ids):
        starts = np.flatnonzero(line == config.im_start_token_id)
        turn = line[starts[-1] :] if len(starts) else line[:0]
        ends = np.flatnonzero(turn == config.im_end_token_id)
        opens = len(turn) > 1 and turn[1] == config.assistant_token_id
        if not opens or (len(ends) and not given):
            state = "closes its last turn" if opens else "does not open an assistant turn"
            raise InputError(
                f"row {row} of the prompt {state}, so there is no turn to speak in; use apply_chat_template(..., "
                "add_generation_prompt=True), continue_final_message=True to go on with an assistant's message, or return_audio=False"
            )
        turns.append(turn[: ends[0]].tolist() if len(ends) else turn.tolist())
    return turns


def user_media(
    ids: np.ndarray, valid: np.ndarray, mask: np.ndarray, config: Any, media: Mapping[str, Any]
) -> dict[str, Any]:
    """The grids of those images and videos that stand in user turns, as arguments of `get_rope_index`."""
    selected = {"image": [], "video": []}
    for row in range(len(ids)):
        line, in_user = ids[row][valid[row]], mask[row][valid[row]]
        for kind, start, _ in media_runs(line, config):
            if kind in ("image", "video", "audio_in_video"):
                selected["image" if kind == "image" else "video"].append(in_user[start])
    picked = {"image_grid_thw": "image", "video_grid_thw": "video", "second_per_grids": "video"}
    return {name: _select(media.get(name), selected[kind]) for name, kind in picked.items()}


def _select(values, selected):
    return None if values is None else np.asarray(values)[np.array(selected, bool)]


@dataclass(frozen=True)
class TalkerContext:
    """The user turns, U tokens of them: text `[Ut, D]` embeddings and media `[Um, D]` hidden states of the thinker, None where there
    are none, is_media bool `[U]` says which; positions float32 `[3, U + OPENING_ROWS]` of the talker's rows, following: the next.
    """

    text: Any
    media: Any
    is_media: np.ndarray
    positions: np.ndarray
    following: np.float32


def talker_context(config: Any, ids: np.ndarray, grids: Mapping[str, Any], embeds: Tensor, hidden: Tensor) -> TalkerContext:
    """Of a prompt with ids int64 `[T]`, whose embeddings and hidden states are `[T, D]`; grids: see `Prompt.grids`."""
    thinker, talker, valid = config.thinker_config, config.talker_config, np.ones((1, len(ids)), bool)
    mask = user_mask(ids[None], valid, config)
    indices = np.flatnonzero(mask[0]).astype(np.int32)
    is_media = np.isin(ids[indices], (thinker.audio_token_id, thinker.image_token_id, thinker.video_token_id))
    line = np.concatenate([ids[indices], np.full(OPENING_ROWS, config.tts_pad_token_id)])[None]
    found = user_media(ids[None], valid, mask, thinker, grids)
    positions, deltas = get_rope_index(talker, talker.spatial_merge_size, line, np.ones(line.shape, bool), **found)
    following = np.float32(deltas[0, 0] + np.float32(line.shape[1]))
    text, media = _rows(embeds, indices[~is_media]), _rows(hidden, indices[is_media])
    return TalkerContext(text, media, is_media, positions[:, 0].astype(np.float32), following)


def _rows(states, indices):
    return ops.gather_rows(states, Tensor(indices)) if len(indices) else None


def talker_rows(
    talker: Any, context: TalkerContext, embeds: Sequence[np.ndarray], tts_embeds: Sequence[np.ndarray], speaker: int
) -> Tensor:
    """All rows `[S, D]` of the talker's prompt. embeds: the thinker's embeddings `[D]` of the assistant turn up to its first word;
    tts_embeds: those of `tts_bos` and `tts_pad`.
    """
    rows = Tensor(np.zeros((len(context.is_media), talker.config.text_config.hidden_size), np.float32)).astype(talker.dtype)
    sides = (
        (~context.is_media, context.text, talker.text_projection),
        (context.is_media, context.media, talker.hidden_projection),
    )
    for chosen, states, project in sides:
        if states is not None:
            states = states if isinstance(states, Tensor) else Tensor(states).astype(talker.dtype)
            rows = ops.scatter_rows(rows, Tensor(np.flatnonzero(chosen).astype(np.int32)), project(states))
    return ops.concat((rows, _opening(talker, embeds, tts_embeds, speaker)), 0)


def _opening(talker, embeds, tts_embeds, speaker):
    config, (bos, pad) = talker.config, tts_embeds
    names = ("nothink_id", "think_bos_id", "think_eos_id"), ("pad_id", "bos_id")
    before, after = ([getattr(config, f"codec_{name}") for name in part] for part in names)
    codes = talker.get_input_embeddings()(Tensor(np.array([[*before, speaker, *after]], np.int32)))[0]
    silent = Tensor(np.zeros((ROLE_ROWS, codes.shape[-1]), np.float32)).astype(codes.dtype)
    text = np.stack([*embeds[:ROLE_ROWS], *[pad] * 4, bos, embeds[ROLE_ROWS]])
    return talker.text_projection(Tensor(text).astype(talker.dtype)) + ops.concat((silent, codes), 0)
