"""The text loop: prompt in, one token per row and step out."""

from contextlib import ExitStack

import numpy as np

from ..modeling.packing import host_array, valid_tokens
from ..outputs import PromptStates, ThinkerStep


class TextGeneration:
    """Iterator over `ThinkerStep`s; the first step reads the prompt.

    inputs: arguments of the thinker (arrays of one processor call). listen: index of the hidden state that a talker
    wants; `prompt` then holds a `PromptStates` after the first step. stopping: optional function from the tokens
    generated so far, int `[B, n]`, to bool `[B]`. whole_logits: the steps' logits are wanted, of the whole vocabulary.
    `close()` (or exhaustion) gives the cache back.
    thinker: whatever has `read(batch_size)`, a context manager around a reader (`reader.py`), and an `accord`.
    """

    def __init__(self, thinker, inputs, params, listen=None, stopping=None, whole_logits=False):
        self.thinker = thinker
        self.accord = thinker.accord
        self.whole_logits = whole_logits
        self.inputs = dict(inputs)
        self.params = params
        self.stopping = stopping
        self.listen = listen
        self.prompt = None
        self.reader = None
        self.prompt_ids = host_array(inputs["input_ids"])
        self.valid = valid_tokens(self.prompt_ids, inputs.get("attention_mask"))
        self._lent = ExitStack()
        self._steps = self._run()

    def __iter__(self):
        return self

    def __next__(self):
        return next(self._steps)

    def close(self):
        """Stops early and gives the cache back."""
        self._steps.close()
        self._give_back()  # `read_prompt` may have been all that was asked for

    def _give_back(self):
        self._lent.close()
        self.reader = None

    def _run(self):
        try:
            yield from self._loop(self.read_prompt())
        finally:
            self._give_back()

    def _loop(self, logits):
        batch = len(logits)
        vocabulary = self.thinker.config.text_config.vocab_size
        params = self.accord.params(self.params)
        sampler = self.accord.sampler(params, batch, vocabulary, self.prompt_ids, self.valid)
        active = np.ones(batch, bool)
        tokens = np.empty((batch, 0), np.int64)
        while True:
            if self.whole_logits:
                logits = self.accord.whole(logits)
            token = np.where(active, self.accord.choose(sampler, logits, split=True), self.params.pad_id)
            tokens = np.concatenate([tokens, token[:, None]], axis=1)
            counted, active = active, active & ~self._ended(tokens)
            last = not active.any() or tokens.shape[1] == self.params.max_new_tokens
            yield ThinkerStep(token, counted, logits, last)
            if last:
                return
            logits = self.reader.token(token)

    def read_prompt(self):
        """Runs the prompt; sets `prompt` for a talker and returns the logits float32 `[B, V]` of the first new token."""
        self.reader = self._lent.enter_context(self.thinker.read(len(self.prompt_ids)))
        logits, states = self.reader.prompt(self.inputs, self._wanted_states())
        if self.listen is not None:
            self.prompt = PromptStates(self.prompt_ids, self.valid, states[0], states[self.listen])
        return logits

    def _wanted_states(self):
        return False if self.listen is None else (0, self.listen)

    def _ended(self, tokens):
        ended = np.isin(tokens[:, -1], self.params.eos_token_id)
        return ended if self.stopping is None else self.accord.agree(ended | self.stopping(tokens))


class StopStrings:
    """Stopping rule: a row ends once its new text contains one of the strings."""

    def __init__(self, strings, tokenizer):
        self.strings = [strings] if isinstance(strings, str) else list(strings)
        self.tokenizer = tokenizer

    def __call__(self, tokens):
        texts = self.tokenizer.batch_decode(tokens.tolist(), skip_special_tokens=True)
        return np.array([any(string in text for string in self.strings) for text in texts])
