"""The thinker at work on one request: it reads a prompt, then its own tokens one after another."""

from contextlib import contextmanager

import numpy as np

from ..errors import InputError
from ..modeling.packing import host_array, valid_tokens
from ..modeling.steps import DecoderStep


@contextmanager
def thinker_reader(thinker, batch_size, cache=None):
    """A `ThinkerReader` for the duration of the block. cache: a `KVCache` that is the caller's before and after; without
    one it reads into a cache that is free for the next request afterwards.
    """
    if cache is not None:
        yield ThinkerReader(thinker, DecoderStep(thinker.model, thinker.output_layer, cache))
        return
    with thinker.steps.lend(("thinker", batch_size), lambda: _new_step(thinker, batch_size)) as step:
        step.cache.clear()
        yield ThinkerReader(thinker, step)


def _new_step(thinker, batch_size):
    return DecoderStep(thinker.model, thinker.output_layer, thinker.model.new_cache(batch_size, 1))


class ThinkerReader:
    """`prompt` first, then `token` as often as one likes; both return logits float32 `[B, V]` of the next token, and the
    hidden states at the wanted indices (True: at all), or None.

    Under a plan V is the part of the vocabulary that this process holds.
    """

    def __init__(self, thinker, step):
        self.thinker = thinker
        self.step = step
        self.cache = step.cache
        self.following = None  # the position of the next token, float32 [B, 1]

    def prompt(self, inputs, wanted_states=False):
        """Reads the model inputs of a prompt, or what follows the part of it that the cache holds already."""
        if self.cache.length:
            inputs = self._unread(inputs)
        if "inputs_embeds" in inputs:
            inputs = {name: value for name, value in inputs.items() if name != "input_ids"}
        output = self._forward(wanted_states, **inputs)
        tokens = self.cache.valid.sum(axis=1, keepdims=True).astype(np.float32)
        if inputs.get("position_ids") is None:
            self.following = output.rope_deltas + tokens
        else:
            positions = np.atleast_3d(host_array(inputs["position_ids"]).T).T[-3:]  # [1 or 3, B, T]
            self.following = positions.max(axis=(0, 2))[:, None].astype(np.float32) + 1
        self.cache.rope_deltas = self.following - tokens
        return self._last(output)

    def _unread(self, inputs):
        """The inputs of what the cache does not hold yet."""
        if "input_ids" not in inputs:
            raise InputError("past_key_values needs input_ids: the ids of the whole conversation, earlier ones and new ones")
        ids, length = inputs["input_ids"], self.cache.length
        if len(ids) != self.cache.heads[0] or ids.shape[1] <= length:
            raise InputError(
                f"past_key_values holds {length} tokens of {self.cache.heads[0]} conversations, so input_ids must be those "
                f"tokens and new ones behind them; got {list(ids.shape)}"
            )
        valid, rest, config = valid_tokens(ids.shape, inputs.get("attention_mask")), ids[:, length:], self.thinker.config
        if np.isin(rest, [config.image_token_id, config.video_token_id, config.audio_token_id]).any():
            raise InputError(
                "the tokens behind past_key_values hold a picture, video or sound, and those need the whole prompt; leave "
                "past_key_values out"
            )
        if (valid[:, :length] & ~self.cache.valid).any():
            raise InputError(
                "attention_mask marks as tokens what past_key_values holds as padding; pass the mask that the cache was made "
                "with, continued (its padding on the left), or leave past_key_values out"
            )
        self.cache.seen[:, :length] = valid[:, :length]
        return {"input_ids": rest, "attention_mask": valid}

    def token(self, token, wanted_states=False):
        """Reads one token int64 `[B]`."""
        batch = len(token)
        positions = np.broadcast_to(self.following, (3, batch, 1))
        self.following = self.following + np.float32(1)
        if wanted_states:
            return self._last(self._forward(wanted_states, input_ids=token[:, None], position_ids=positions))
        rope = self.thinker.model.rope(positions)
        logits, _ = self.step(self.thinker.embed_text(token[:, None]), rope, np.ones((batch, 1), bool))
        return host_array(logits)[:, -1].astype(np.float32), None

    def take(self, other, copies):
        """Goes on from what another reader has read, with each of its rows `copies` times."""
        self.cache.take(other.cache, copies)
        self.following = other.following.repeat(copies, axis=0)

    def _forward(self, wanted_states, **inputs):
        return self.thinker(
            **inputs,
            past_key_values=self.cache,
            logits_to_keep=1,
            whole_logits=False,
            output_hidden_states=wanted_states,
        )

    @staticmethod
    def _last(output):
        return host_array(output.logits)[:, -1].astype(np.float32), output.hidden_states
