"""What of a conversation is spoken, and to whom.

    assistant turn   im_start assistant \n  t0  t1  ...  t(n-1)          (t: given in the prompt or generated)
    index                0        1      2   3   4  ...
    said                                    t0  t1  ...  t(n-1)  tts_eos  tts_pad  tts_pad ...

Every token that is written is said; only the end token that ends a row (normally im_end) is not. So what is said is what was
written, whatever ended it: an end token, a limit, a stop string or a criterion of the caller's.
"""

import numpy as np

from ..errors import InputError
from ..modeling.positions import media_runs

ROLE_ROWS = 3
"""Of the assistant turn that are not said: im_start, assistant, newline."""
OPENING_ROWS = 9
"""Of the talker that open its turn, see `engine/hearing.py`."""


def user_mask(ids, valid, config):
    """Which tokens belong to a user turn, bool `[B, T]`: from `<|im_start|>user` to the next `<|im_start|>`."""
    at = np.where((ids == config.im_start_token_id) & valid, np.arange(ids.shape[1]), -1)
    opened = np.maximum.accumulate(at, axis=1)
    role_at = np.minimum(opened + 1, ids.shape[1] - 1)
    role = np.take_along_axis(ids, role_at, axis=1)
    return (opened >= 0) & (role == config.user_token_id) & valid


def assistant_turns(ids, config, given=False):
    """Per row of ids `[B, T]`, padded on the left, the assistant turn that it ends with, from `<|im_start|>` on.

    That turn must be open, so that what is written belongs to it; a given one, which is said as it stands, may be closed, and
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
