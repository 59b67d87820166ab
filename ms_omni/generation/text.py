"""The text loop: prompt in, one token per row and step out."""

import numpy as np

from ..modeling.packing import host_array
from ..outputs import PromptStates, ThinkerStep
from .sampling import Sampler


class TextGeneration:
    """Iterator over `ThinkerStep`s; the first step reads the prompt.

    inputs: arguments of the thinker (arrays of one processor call). listen: index of the hidden state that a talker
    wants; `prompt` then holds a `PromptStates` after the first step. stopping: optional function from the tokens
    generated so far, int `[B, n]`, to bool `[B]`. `close()` (or exhaustion) frees the cache.
    """

    def __init__(self, thinker, inputs, params, listen=None, stopping=None):
        self.thinker = thinker
        self.inputs = dict(inputs)
        self.params = params
        self.stopping = stopping
        self.listen = listen
        self.prompt = None
        self.cache = None
        self.prompt_ids = host_array(inputs["input_ids"])
        mask = inputs.get("attention_mask")
        self.valid = np.ones(self.prompt_ids.shape, bool) if mask is None else host_array(mask) == 1
        self._steps = self._run()

    def __iter__(self):
        return self

    def __next__(self):
        return next(self._steps)

    def close(self):
        """Stops early and frees the cache."""
        self._steps.close()
        self.cache = None  # `read_prompt` may have been all that was asked for

    def _run(self):
        try:
            yield from self._loop()
        finally:
            self.cache = None

    def _loop(self):
        batch = len(self.prompt_ids)
        logits = self.read_prompt()
        sampler = Sampler(self.params, batch, logits.shape[-1], self.prompt_ids, self.valid)
        active = np.ones(batch, bool)
        tokens = np.empty((batch, 0), np.int64)
        while True:
            token = np.where(active, sampler(logits), self.params.pad_id)
            tokens = np.concatenate([tokens, token[:, None]], axis=1)
            counted, active = active, active & ~self._ended(tokens)
            last = not active.any() or tokens.shape[1] == self.params.max_new_tokens
            yield ThinkerStep(token, counted, logits, last)
            if last:
                return
            output = self.thinker(input_ids=token[:, None], past_key_values=self.cache)
            logits = host_array(output.logits[:, -1]).astype(np.float32)

    def read_prompt(self):
        """Runs the prompt; sets `prompt` for a talker and returns the logits float32 `[B, V]` of the first new token."""
        output = self.thinker(**self.inputs, logits_to_keep=1, output_hidden_states=self._wanted_states())
        self.cache = output.past_key_values
        if self.listen is not None:
            states = output.hidden_states
            self.prompt = PromptStates(self.prompt_ids, self.valid, states[0], states[self.listen])
        return host_array(output.logits[:, -1]).astype(np.float32)

    def _wanted_states(self):
        return False if self.listen is None else (0, self.listen)

    def _ended(self, tokens):
        ended = np.isin(tokens[:, -1], self.params.eos_token_id)
        return ended if self.stopping is None else ended | self.stopping(tokens)


class StopStrings:
    """Stopping rule: a row ends once its new text contains one of the strings."""

    def __init__(self, strings, tokenizer):
        self.strings = [strings] if isinstance(strings, str) else list(strings)
        self.tokenizer = tokenizer

    def __call__(self, tokens):
        texts = self.tokenizer.batch_decode(tokens.tolist(), skip_special_tokens=True)
        return np.array([any(string in text for string in self.strings) for text in texts])
