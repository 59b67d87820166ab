"""Inside the frame loop: where the talker stands, and that frames are predicted each for itself."""

from types import SimpleNamespace

import numpy as np
import pytest
from mindspore import Tensor

from ms_omni.errors import InputError
from ms_omni.generation import frames
from ms_omni.generation.accord import Alone
from ms_omni.generation.sampling import Sampler, SamplingParams
from ms_omni.generation.waves import AudioChunker
from ms_omni.outputs import CodecFrame

FRAMES = 3


@pytest.fixture
def speak(tiny_model, ask):
    """`speak("hi", ...)`: greedy speech of so many frames for a batch of prompts; returns the inputs."""

    def run(*texts, count=FRAMES, **options):
        inputs = ask(*texts)
        tiny_model.generate(
            **inputs,
            **{"max_new_tokens": 4, **options},
            talker_max_new_tokens=count + 1,
            talker_do_sample=False,
            eos_token_id=[],
            talker_eos_token_id=[],
        )
        return inputs

    return run


def test_talker_positions_go_on_from_the_prompt_one_by_one(tiny_model, speak, monkeypatch):
    """The prompt is the user's turn (all ids but im_start, assistant, newline) and the nine rows of the opening."""
    talker, seen = type(tiny_model.talker.model), []
    original = talker.rope
    monkeypatch.setattr(talker, "rope", lambda self, at: seen.append(np.array(at)) or original(self, at))
    lengths = speak("hello world", "yes")["attention_mask"].sum(axis=1) - 3 + 9
    assert lengths[0] != lengths[1]
    prompt, *steps = seen
    assert (prompt[:, :, -1] == lengths - 1).all()
    assert len(steps) == FRAMES
    for index, positions in enumerate(steps):
        assert positions.shape == (3, 2, 1) and (positions[:, :, 0] == lengths + index).all()


def test_a_frame_does_not_depend_on_the_frames_before_it(speak, monkeypatch):
    """Asked again, and out of order, the predictor gives the same codes."""
    original, asked = frames.FramePredictor.__call__, []

    def again(self, hidden, code):
        codes, embeds = original(self, hidden, code)
        asked.append((hidden, code, codes))
        for earlier_hidden, earlier_code, expected in asked:
            assert np.array_equal(original(self, earlier_hidden, earlier_code)[0], expected)
        return codes, embeds

    monkeypatch.setattr(frames.FramePredictor, "__call__", again)
    speak("hello world")
    assert len(asked) == FRAMES
    assert not np.array_equal(asked[0][2], asked[1][2])


def test_the_row_of_silence_is_computed_once(tiny_model, speak, monkeypatch):
    """Text of three tokens: one opens the turn, two and the end of speech have a frame each, and all others are silent."""
    asked, original = [], frames.text_rows
    monkeypatch.setattr(frames, "text_rows", lambda model, ids: asked.append(ids.tolist()) or original(model, ids))
    speak("hello world", "yes", count=12, max_new_tokens=3)
    config = tiny_model.config
    assert len(asked) == 4 and asked[2:] == [[[config.tts_eos_token_id]] * 2, [[config.tts_pad_token_id]] * 2]


# -- numbers that are none -------------------------------------------------------------------------------------------


class Broken:
    """The predictor's step and the vocoder of a model whose weights are NaN."""

    groups = 2

    def __call__(self, hidden, code, noise):
        return Tensor(np.zeros((1, 3), np.int32)), Tensor(np.full((1, 1, 4), np.nan, np.float32))

    def step(self, codes):
        return Tensor(np.full((1, 1, 1920), np.nan, np.float32))


def test_nan_in_codes_or_sound_is_an_error_that_names_the_part():
    _, total = frames.FramePredictor(Broken(), SamplingParams(), 1, Alone())(None, np.zeros(1, np.int64))
    sampler = Sampler(SamplingParams(), 1, 4, part="talker or code predictor")
    with pytest.raises(InputError, match="the talker or code predictor's logits hold NaN"):
        sampler.filter(total.asnumpy()[:, 0])
    chunker = AudioChunker(SimpleNamespace(stream=Broken), 1, (1,))
    with pytest.raises(InputError, match="the vocoder's samples hold NaN"):
        chunker.push(CodecFrame(0, np.zeros((1, 3), np.int64), np.ones(1, bool)))
