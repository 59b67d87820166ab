"""A thinker without weights for the text loop, and prompts for the tiny model."""

from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from ms_omni.generation.accord import Alone
from ms_omni.generation.defaults import GenerationConfig

VOCABULARY = 40


class CountingThinker:
    """Answers token t with t + step: the likeliest successor of a row's token t is `(t + step) % VOCABULARY`.

    `calls` counts forward passes, `readers` those who hold a cache.
    """

    accord = Alone()
    generation_config = GenerationConfig()
    config = SimpleNamespace(text_config=SimpleNamespace(vocab_size=VOCABULARY))

    def __init__(self, step=1):
        self.step, self.calls, self.readers, self.inputs, self.wanted_states = step, 0, 0, None, None

    @contextmanager
    def read(self, batch_size, cache=None):
        self.readers += 1
        yield self
        self.readers -= 1

    def prompt(self, inputs, wanted_states=False):
        self.inputs, self.wanted_states = inputs, wanted_states
        ids = np.asarray(inputs["input_ids"])
        return self._logits(ids), tuple(np.full((*ids.shape, 2), n, np.float32) for n in range(5))

    def token(self, token, wanted_states=False):
        return self._logits(token[:, None]), None

    def take(self, other, copies):
        assert other is self

    def _logits(self, ids):
        self.calls += 1
        logits = np.zeros((len(ids), VOCABULARY), np.float32)
        logits[np.arange(len(ids)), (ids[:, -1] + self.step) % VOCABULARY] = 5
        return logits + np.arange(VOCABULARY, dtype=np.float32) / 1000


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
        options = {"tokenize": True, "return_dict": True, "add_generation_prompt": True}
        return dict(processor.apply_chat_template(messages, **options))

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
