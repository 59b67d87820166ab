"""The thinker at work on one request: it reads a prompt, then its own tokens one after another."""

from contextlib import contextmanager

import numpy as np

from ..modeling.packing import host_array
from ..modeling.steps import DecoderStep


@contextmanager
def thinker_reader(thinker, batch_size):
    """A `ThinkerReader` for the duration of the block; its cache is free afterwards."""
    with thinker.steps.lend(("thinker", batch_size), lambda: _new_step(thinker, batch_size)) as step:
        step.cache.clear()
        yield ThinkerReader(thinker, step)


def _new_step(thinker, batch_size):
    return DecoderStep(thinker.model, thinker.output_layer, thinker.model.new_cache(batch_size, 1))


class ThinkerReader:
    """`prompt` first, then `token` as often as one likes; both return logits float32 `[B, V]` of the next token.

    Under a plan V is the part of the vocabulary that this process holds.
    """

    def __init__(self, thinker, step):
        self.thinker = thinker
        self.step = step
        self.following = None  # the position of the next token, float32 [B, 1]

    def prompt(self, inputs, wanted_states=False):
        """Reads the model inputs of a prompt; also returns the hidden states at the wanted indices."""
        output = self.thinker(
            **inputs,
            past_key_values=self.step.cache,
            logits_to_keep=1,
            whole_logits=False,
            output_hidden_states=wanted_states,
        )
        tokens = self.step.cache.valid.sum(axis=1, keepdims=True).astype(np.float32)
        self.following = output.rope_deltas + tokens
        return host_array(output.logits)[:, -1].astype(np.float32), output.hidden_states

    def token(self, token):
        """Reads one token int64 `[B]`."""
        batch = len(token)
        rope = self.thinker.model.rope(np.broadcast_to(self.following, (3, batch, 1)))
        logits, _ = self.step(self.thinker.embed_text(token[:, None]), rope, np.ones((batch, 1), bool))
        self.following = self.following + np.float32(1)
        return host_array(logits)[:, -1].astype(np.float32)
