"""The hand-over of text from the thinker to the talker, one row per step, pulled when it is needed.

    assistant turn   im_start assistant \n  t0  t1  ...  t(n-1)          (t: given in the prompt or generated)
    index                0        1      2   3   4  ...
    said                                    t0  t1  ...  t(n-2)  tts_eos  tts_pad  tts_pad ...

A token is said once it is known not to be the last one: the last generated token (normally im_end) was never fed to the
thinker and is not said. A text that was given in the prompt is said whole when nothing is generated after it.
"""

import numpy as np

from ..errors import InputError


class TextHandOver:
    """Ids of the assistant turn, row by row; reading one pulls the thinker as far as it must.

    steps: iterator of `ThinkerStep` (empty when the text is given). turns: per row the ids of the assistant turn in the
    prompt, from im_start on.
    """

    def __init__(self, steps, turns, tts_eos, tts_pad):
        self.steps = iter(steps)
        self.turns = [list(turn) for turn in turns]
        self.batch_size = len(turns)
        self.pending = [None] * len(turns)  # the newest token of a row, said only if another one follows
        self.running = True
        self.tts_eos, self.tts_pad = tts_eos, tts_pad

    def ids(self, index):
        """The ids int64 `[B]` at position `index` of every row's assistant turn."""
        while self.running and any(index >= len(turn) and self._may_grow(row) for row, turn in enumerate(self.turns)):
            self.pull()
        return np.array([self._id(turn, index) for turn in self.turns], np.int64)

    def has_text(self):
        """Whether each row has anything to say, bool `[B]`."""
        self.ids(3)
        return np.array([len(turn) > 3 for turn in self.turns])

    def _may_grow(self, row):
        return self.pending[row] is not False

    def pull(self):
        """Takes one more step of the thinker."""
        step = next(self.steps, None)
        if step is None:
            self.running = False
            return
        for row, (token, active) in enumerate(zip(step.token.tolist(), step.active)):
            if not active:
                self.pending[row] = False  # this row has ended; its last token is not said
                continue
            if self.pending[row] is not None:
                self.turns[row].append(self.pending[row])
            self.pending[row] = token
        self.running = not step.last

    def _id(self, turn, index):
        if index < len(turn):
            return turn[index]
        return self.tts_eos if index == len(turn) else self.tts_pad


def user_mask(ids, valid, config):
    """Which tokens belong to a user turn, bool `[B, T]`: from `<|im_start|>user` to the next `<|im_start|>`."""
    at = np.where(ids == config.im_start_token_id, np.arange(ids.shape[1]), -1)
    opened = np.maximum.accumulate(at, axis=1)
    role_at = np.minimum(opened + 1, ids.shape[1] - 1)
    role = np.take_along_axis(ids, role_at, axis=1)
    return (opened >= 0) & (role == config.user_token_id) & valid


def assistant_turns(ids, im_start, assistant):
    """Per row the ids from the last `<|im_start|>assistant` on. Raises `InputError` where there is none."""
    turns = []
    for row, line in enumerate(ids):
        starts = np.flatnonzero((line[:-1] == im_start) & (line[1:] == assistant))
        if not len(starts):
            raise InputError(
                f"row {row} of the prompt does not open an assistant turn, so there is nothing to say; use "
                "apply_chat_template(..., add_generation_prompt=True)"
            )
        turns.append(line[starts[-1] :].tolist())
    return turns
