"""What is said and not written, beside other callers."""

import numpy as np
import pytest

from ms_omni.engine.engine import Engine
from ms_omni.errors import InputError
from tests.engine.callers import answer, check_empty
from tests.engine.test_engine import run


def said(world, text):
    """Model inputs of a conversation that ends with what is to be said."""
    turns = [{"role": "user", "content": "Read this aloud."}, {"role": "assistant", "content": text}]
    return world.processor.apply_chat_template([turns], tokenize=True, return_dict=True)


def test_a_given_text_is_said_as_it_is_alone(world):
    """As `model.say` says it, beside one who is answered."""
    asked = {**said(world, "one two three"), "seed": 5, "talker_max_new_tokens": 12}
    expected, engine = answer(list(world.model.say(**asked))), Engine(world.model)
    spoken, written = run(engine, [{**asked, "given": True}, world.request(0)])
    assert answer(spoken) == expected and expected[1] and answer(written) == world.alone(0)[0]
    assert spoken[-1].text_tokens.tolist() == [0] and np.array_equal(spoken[-1].sequences, asked["input_ids"])
    check_empty(engine)


def test_who_cannot_speak_says_nothing(world):
    with pytest.raises(InputError, match="has no talker"):
        Engine(world.model.thinker, tokens=256).add(**said(world, "one"), given=True)
