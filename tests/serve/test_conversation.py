"""Messages of OpenAI's as conversations of the processor's."""

import base64

import numpy as np
import pytest

from ms_omni.serve.chat_request import conversation
from ms_omni.serve.protocol import validate_body
from ms_omni.serve.schema import ChatBody

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
