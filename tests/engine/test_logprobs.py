"""Log-probabilities of tokens: those of the model's own logits, whatever the choice was made by."""

import numpy as np
import pytest

from ms_omni.engine.engine import Engine
from ms_omni.engine.sequence import log_probabilities
from ms_omni.errors import InputError
from ms_omni.outputs import TextDelta
from tests.engine.callers import answer
from tests.engine.test_engine import run

KINDS = [
    {},
    {"do_sample": True, "temperature": 1.7, "top_k": 20, "seed": 3, "repetition_penalty": 1.3},
    {"presence_penalty": 0.5, "suppress_tokens": [7], "logits_processor": [lambda ids, scores: scores * 2]},
]


@pytest.fixture(scope="module")
def question(world):
    return {**world.ask("What is 1 plus 2?"), "return_audio": False, "max_new_tokens": 5, "eos_token_id": []}


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_those_of_the_raw_logits(world, question, kind):
    whole = world.model.thinker.generate(
        **{name: value for name, value in question.items() if name not in ("return_audio", "use_audio_in_video")},
        **kind, return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    tokens = whole.sequences[0, -5:]
    told, plain = run(Engine(world.model), [{**question, **kind, "logprobs": 20}, world.request(1)])
    assert answer(plain) == world.alone(1)[0]
    assert all(event.logprobs is None for event in plain if isinstance(event, TextDelta))
    deltas = [event for event in told if isinstance(event, TextDelta)]
    assert [int(delta.token[0]) for delta in deltas] == tokens.tolist()
    for delta, token, logits in zip(deltas, tokens, whole.logits, strict=True):
        (found,), line = delta.logprobs, logits[0].astype(np.float64)
        expected = line - line.max() - np.log(np.exp(line - line.max()).sum())
        assert found.chosen == expected[token]
        assert found.ids.tolist() == np.argsort(-expected, kind="stable")[:20].tolist()
        assert np.array_equal(found.logprobs, expected[found.ids])


def test_none_of_the_likeliest_but_the_chosen_one(world, question):
    batch = {name: np.concatenate([value] * 2) if name in ("input_ids", "attention_mask") else value for name, value in question.items()}  # fmt: skip
    deltas = [event for event in world.model.stream(**batch, logprobs=0) if isinstance(event, TextDelta)]
    assert all(len(delta.logprobs) == 2 and not len(delta.logprobs[0].ids) for delta in deltas)
    assert deltas[0].logprobs[0].chosen == deltas[0].logprobs[1].chosen < 0


def test_of_equals_the_smaller_id_comes_first():
    found = log_probabilities(np.array([0, 3, 1, 3, 3], np.float32), 2, 2)
    assert found.ids.tolist() == [1, 3] and np.isclose(found.chosen, 1 - np.log(1 + 3 * np.e**3 + np.e))
    assert len(log_probabilities(np.zeros(3, np.float32), 0, 20).ids) == 3


def test_what_is_not_to_be_had_is_refused(world, question):
    for count in (21, -1, 1.5, True):
        with pytest.raises(InputError, match="logprobs is .*expected an integer from 0 to 20"):
            world.model.stream(**question, logprobs=count)
    with pytest.raises(InputError, match="logprobs come with the events"):
        world.model.generate(**question, logprobs=2)
    with pytest.raises(InputError, match="logprobs come with the events"):
        world.model.thinker.generate(question["input_ids"], generation_config={"logprobs": 2})
