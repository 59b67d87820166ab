"""A thinker without weights for the text loop, and prompts for the tiny model."""

from types import SimpleNamespace

import numpy as np
import pytest

VOCABULARY = 40


class CountingThinker:
    """Answers token t with t + step: the likeliest successor of a row's token t is `(t + step) % VOCABULARY`.

    `calls` counts forward passes; the cache is a plain object, so that one can see when it is let go.
    """

    def __init__(self, step=1):
        self.step, self.calls, self.prompt = step, 0, None

    def __call__(self, input_ids, past_key_values=None, **inputs):
        self.calls += 1
        if past_key_values is None:
            self.prompt = inputs
        ids = np.asarray(input_ids)
        logits = np.zeros((len(ids), 1, VOCABULARY), np.float32)
        logits[np.arange(len(ids)), 0, (ids[:, -1] + self.step) % VOCABULARY] = 5
        logits += np.arange(VOCABULARY, dtype=np.float32) / 1000
        states = tuple(np.full((*ids.shape, 2), n, np.float32) for n in range(5))
        return SimpleNamespace(logits=logits, past_key_values=object(), hidden_states=states)


@pytest.fixture
def counting_thinker():
    return CountingThinker()


@pytest.fixture(scope="session")
def processor(tiny_checkpoint):
    from ms_omni import Qwen3OmniMoeProcessor

    return Qwen3OmniMoeProcessor.from_pretrained(tiny_checkpoint)


@pytest.fixture(scope="session")
def ask(processor):
    """`ask("hi", "how are you", ...)`: model inputs of one user turn per text, a batch of them."""

    def inputs(*texts):
        messages = [[{"role": "user", "content": text}] for text in texts]
        return dict(processor.apply_chat_template(messages, tokenize=True, return_dict=True, add_generation_prompt=True))

    return inputs


@pytest.fixture(scope="session")
def greedy_tokens(tiny_model):
    """`greedy_tokens(inputs, n)`: the n new tokens `[B, n]` that the thinker writes when nothing ends it."""
    known = {}

    def tokens(inputs, count):
        key = (inputs["input_ids"].tobytes(), count)
        if key not in known:
            ids = tiny_model.thinker.generate(**inputs, max_new_tokens=count, eos_token_id=[])
            known[key] = ids[:, inputs["input_ids"].shape[1] :]
        return known[key]

    return tokens
