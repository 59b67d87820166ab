"""From the body of a chat to the processor and the engine: what fits together, and what it becomes."""

import base64
from types import SimpleNamespace

import numpy as np
import pytest

from ms_omni.serve.chat_request import check, conversation, seeds
from ms_omni.serve.protocol import ApiError, validate_body
from ms_omni.serve.schema import ChatBody

USER = {"messages": [{"role": "user", "content": "x"}]}
MUTE = SimpleNamespace(check_model=lambda name: None, grammars=None, speaks=False, voices=[], vocabulary=100)
TOOL = {"type": "function", "function": {"name": "f", "strict": True}}


@pytest.mark.parametrize(
    "change, param, said",
    [
        ({"modalities": ["text", "audio"], "audio": {"voice": "Ethan", "format": "wav"}}, "modalities", "text only"),
        ({"response_format": {"type": "json_object"}}, "response_format", "pip install"),
        ({"tools": [TOOL]}, "tools", "pip install"),
    ],
)
def test_what_cannot_be_had_is_refused(change, param, said):
    with pytest.raises(ApiError, match=said) as refused:
        check(validate_body({**USER, **change}, ChatBody), MUTE)
    assert (refused.value.status, refused.value.param) == (400, param)


def test_plain_questions_are_not():
    check(validate_body(USER, ChatBody), MUTE)


def test_seeds_of_choices():
    assert seeds(None, 2) == [None, None] and seeds(7, 1) == [7]
    assert seeds(7, 3) == seeds(7, 3) and len(set(seeds(7, 3)) | set(seeds(8, 3))) == 6
    assert min(seeds(-5, 2)) >= 0


SAMPLES = np.arange(-3, 4, dtype="<i2")
TEXT = base64.b64encode(SAMPLES.tobytes()).decode()


@pytest.mark.parametrize("data", [TEXT, f"data:;base64,{TEXT}", f"DATA:audio/pcm;base64,{TEXT}"])
@pytest.mark.parametrize("kind", ["pcm16", "pcm"])
def test_samples_alone(data, kind):
    part = {"type": "input_audio", "input_audio": {"data": data, "format": kind}, "audio_start": 0.5}
    body = validate_body({"messages": [{"role": "user", "content": [part]}]}, ChatBody)
    (item,) = conversation(body.messages, None)[0]["content"]
    samples, rate_hz = item.pop("audio")
    assert item == {"type": "audio", "audio_start": 0.5} and rate_hz == 24_000
    np.testing.assert_array_equal(samples, SAMPLES)
