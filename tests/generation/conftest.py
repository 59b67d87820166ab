"""A thinker without weights for calls of `generate`, and prompts for the tiny model."""

from types import SimpleNamespace

import numpy as np
import pytest

VOCABULARY = 40


class CountingThinker:
    """Answers token t with t + 1: the likeliest successor of a row's token t is `(t + 1) % VOCABULARY`.

    reads: the ids of each prompt that was read; steps: the rows of each decoding launch.
    """

    model = own_engine = compile_after = None
    _params, _cells = {}, {}

    def __init__(self):
        from ms_omni.config import Qwen3OmniMoeThinkerConfig
        from ms_omni.generation.options import GenerationConfig

        self.generation_config, self.reads, self.steps = GenerationConfig(), [], []
        self.config = Qwen3OmniMoeThinkerConfig(text_config={"vocab_size": VOCABULARY})


class CountingRunner:
    """Stands in for `ThinkerRunner`."""

    def __init__(self, thinker, pool, *_):
        self.thinker, self.pool = thinker, pool

    def read(self, row, start, stop):
        self.thinker.reads.append(row.prompt.ids.tolist())
        return likely(row.prompt.ids[-1]), None

    def decode(self, rows):
        self.thinker.steps.append(len(rows))
        return np.stack([likely(row.next_token()) for row in rows])


def likely(token):
    """Logits `[V]` behind a token; of equal ones the highest id is the likeliest."""
    logits = np.arange(VOCABULARY, dtype=np.float32) / 1000
    logits[(token + 1) % VOCABULARY] += 5
    return logits


@pytest.fixture
def counting_thinker(monkeypatch):
    from ms_omni import Qwen3OmniMoeThinkerForConditionalGeneration
    from ms_omni.engine import engine

    pool = SimpleNamespace(of=lambda *_, **__: pool, block_bytes=lambda *_, **__: 2**20, reserve=lambda _: None)
    monkeypatch.setattr(engine, "KVPool", pool)
    monkeypatch.setattr(engine, "ThinkerRunner", CountingRunner)
    monkeypatch.setattr(CountingThinker, "generate", Qwen3OmniMoeThinkerForConditionalGeneration.generate, raising=False)
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
