"""The text loop: prompt in, one token per row and step out."""

import time
from contextlib import ExitStack

import numpy as np

from ..answers import TextIds
from ..arrays import HostArray
from ..errors import InputError
from ..locking import exclusive
from ..modeling.forward import given_positions
from ..modeling.packing import host_array, valid_tokens
from ..outputs import GenerateOutput, PromptStates, ThinkerStep
from .options import TextOptions


class TextGeneration:
    """Iterator over `ThinkerStep`s; the first step reads the prompt.

    inputs: arguments of the thinker (arrays of one processor call). listen: index of the hidden state that a talker
    wants; `prompt` then holds a `PromptStates` after the first step. `close()` (or exhaustion) gives the cache back.
    thinker: whatever has `read(batch_size, cache)`, a context manager around a reader (`reader.py`), and an `accord`.
    """

    def __init__(self, thinker, inputs, params, listen=None, options=TextOptions()):
        self.thinker = thinker
        self.accord = thinker.accord
        self.params = params
        self.options = options
        self.listen = listen
        self.prompt = None
        self.reader = None
        self.cache = options.past_key_values
        self.inputs = left_padded(inputs, 0 if self.cache is None else self.cache.length)
        self.prompt_ids, self.valid = prompt_of(inputs)
        self.prompt_ids, self.valid = (
            array.repeat(options.num_return_sequences, axis=0) for array in (self.prompt_ids, self.valid)
        )
        self.scores, self.logits, self.hidden_states = [], [], []
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

    def result(self, tokens):
        """Prompt and tokens int64 `[B, n]`, or a `GenerateOutput` with what else was asked for."""
        ids = TextIds.of(np.concatenate([self.prompt_ids.astype(np.int64), tokens], axis=1))
        options = self.options
        if not options.return_dict_in_generate:
            return ids
        return GenerateOutput(
            ids,
            scores=tuple(self.scores) if options.output_scores else None,
            logits=tuple(self.logits) if options.output_logits else None,
            hidden_states=tuple(self.hidden_states) if options.output_hidden_states else None,
            past_key_values=self.cache,
        )

    def _give_back(self):
        self._lent.close()
        self.reader = None

    def _run(self):
        try:
            yield from self._loop(self.read_prompt())
        finally:
            self._give_back()

    def _loop(self, logits):
        batch, started = len(logits), time.perf_counter()
        vocabulary = self.thinker.config.text_config.vocab_size
        params = self.accord.params(self.params)
        known = self.prompt_ids.shape == self.valid.shape  # not so for embeddings without ids
        prompt = (self.prompt_ids, self.valid) if known else ()
        sampler = self.accord.sampler(params, batch, vocabulary, *prompt)
        active = np.ones(batch, bool)
        tokens = np.empty((batch, 0), np.int64)
        while True:
            if self.options.whole_logits:
                logits = self.accord.whole(logits)
            chosen, scores = self.accord.choose(sampler, logits, self._processing(tokens), split=True)
            self._keep(logits, scores)
            token = np.where(active, chosen, self.params.pad_id)
            tokens = np.concatenate([tokens, token[:, None]], axis=1)
            full = tokens.shape[1] == self.params.max_new_tokens
            ends = self.params.eos_token_id + (self.params.forced_eos_token_id if full else ())
            counted, active = active, active & ~self._ended(tokens, started) & (not full)
            yield ThinkerStep(token, counted, logits, counted & ~np.isin(token, ends), active)
            if not active.any():
                return
            logits, states = self.reader.token(token, self.options.output_hidden_states)
            self._keep_states(states)

    def read_prompt(self):
        """Runs the prompt; sets `prompt` for a talker and returns the logits float32 `[B, V]` of the first new token."""
        copies = self.options.num_return_sequences
        rows = len(self.prompt_ids)
        if self.cache is None and self.options.keep_cache:
            self.cache = self.thinker.model.new_cache(rows, 1)
        if copies == 1:
            self.reader = self._lent.enter_context(self.thinker.read(rows, self.cache))
            logits, states = self.reader.prompt(self.inputs, self._wanted_states())
        else:
            with self.thinker.read(rows // copies) as single:
                logits, states = single.prompt(self.inputs, self._wanted_states())
                self.reader = self._lent.enter_context(self.thinker.read(rows, self.cache))
                self.reader.take(single, copies)
            logits = logits.repeat(copies, axis=0)
        self._keep_states(states)
        if self.listen is not None:
            self.prompt = PromptStates(*prompt_of(self.inputs), states[0], states[self.listen])
        return logits

    def _wanted_states(self):
        if self.options.output_hidden_states:
            return True
        return False if self.listen is None else (0, self.listen)

    def _keep(self, logits, scores):
        if self.options.output_scores:
            self.scores.append(HostArray.of(scores))
        if self.options.output_logits:
            self.logits.append(HostArray.of(logits))

    def _keep_states(self, states):
        if self.options.output_hidden_states:
            rows = len(self.prompt_ids)
            states = [host_array(state) for state in states]
            self.hidden_states.append(tuple(HostArray.of(x.repeat(rows // len(x), axis=0)) for x in states))

    def _sequences(self, tokens):
        return HostArray.of(np.concatenate([self.prompt_ids, tokens], axis=1))

    def _processing(self, tokens):
        """The function that the caller's processors of logits make of scores `[B, V]`, or None without any."""
        if not self.options.logits_processor:
            return None
        sequences = self._sequences(tokens)

        def process(scores):
            shape = scores.shape
            for processor in self.options.logits_processor:
                scores = exclusive.released(processor, sequences, HostArray.of(np.array(scores)))
                if getattr(scores, "shape", None) != shape:
                    raise InputError(
                        f"the logits processor {processor!r} returned {type(scores).__name__} of shape "
                        f"{getattr(scores, 'shape', None)}, expected scores of shape {shape}"
                    )
            return np.asarray(host_array(scores), np.float32)

        return process

    def _ended(self, tokens, started):
        options, ended = self.options, np.isin(tokens[:, -1], self.params.eos_token_id)
        if not (options.stop_strings or options.stopping_criteria or options.max_time is not None):
            return ended
        if options.stop_strings:
            ended = ended | has_string(options.stop_strings, options.tokenizer, tokens)
        if options.max_time is not None:
            ended = ended | (time.perf_counter() - started > options.max_time)
        scores = tuple(self.scores) if options.output_scores else None
        for criterion in options.stopping_criteria:
            said = np.asarray(host_array(exclusive.released(criterion, self._sequences(tokens), scores)))
            if said.shape not in ((), ended.shape):
                raise InputError(
                    f"the stopping criterion {criterion!r} returned shape {said.shape}, expected one truth value or one "
                    f"for each of the {len(ended)} rows"
                )
            ended = ended | said.astype(bool)
        return self.accord.agree(ended)


def prompt_of(inputs):
    """Ids int `[B, T]` of the model inputs and which of them are no padding, bool `[B, T]`.

    Of embeddings without ids `[B, 0]` and bool `[B, T]`. Raises `InputError` for a mask that fits neither.
    """
    shape = inputs["input_ids" if "input_ids" in inputs else "inputs_embeds"].shape[:2]
    ids = host_array(inputs.get("input_ids", np.empty((shape[0], 0), np.int64)))
    valid = valid_tokens(shape, inputs.get("attention_mask"))
    if valid.shape != shape:
        raise InputError(f"input_ids {list(shape)} and attention_mask {list(valid.shape)} must be [batch, tokens] both")
    if not valid.any(axis=1).all():
        raise InputError("attention_mask leaves a row without any token")
    return ids, valid


def left_padded(inputs, cached=0):
    """The same model inputs with what attention_mask hides moved to the left of each row, wherever it stands, so that the last
    token is the newest. cached: so many tokens stay where a cache has them.
    """
    shown = prompt_of(inputs)[1][:, cached:]
    order = cached + np.argsort(shown, axis=1, kind="stable")
    order = np.concatenate([np.broadcast_to(np.arange(cached), (len(order), cached)), order], axis=1)
    if (order == np.arange(order.shape[1])).all():
        return inputs
    moved = {}
    for name, axes in (("input_ids", 0), ("attention_mask", 0), ("inputs_embeds", 1)):  # axes behind that of the tokens
        if name in inputs:
            moved[name] = np.take_along_axis(host_array(inputs[name]), order.reshape(*order.shape, *[1] * axes), 1)
    if "position_ids" in inputs:
        moved["position_ids"] = np.take_along_axis(given_positions(inputs["position_ids"], order.shape)[0], order[None], 2)
    return {**inputs, **moved}


def has_string(strings, tokenizer, tokens):
    """Which rows of new tokens `[B, n]` contain one of the strings, bool `[B]`."""
    texts = tokenizer.batch_decode(tokens.tolist(), skip_special_tokens=True)
    return np.array([any(string in text for string in strings) for text in texts])
