"""Inside the frame loop: where the talker stands, and that frames are predicted each for itself."""

from types import SimpleNamespace

import numpy as np
import pytest
from mindspore import Tensor

from ms_omni.engine.speech import SpeechSequence, SpeechStage
from ms_omni.errors import InputError
from ms_omni.generation.request import SpeechParams
from ms_omni.generation.sampling import SamplingParams
from ms_omni.modeling.steps import FrameStep

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


def test_talker_positions_go_on_from_the_prompt_one_by_one(speak, monkeypatch):
    """The prompt is the user's turn (all ids but im_start, assistant, newline) and the nine rows of the opening. Its last row is
    read by the step that makes the first frame.
    """
    seen, frames = {}, SpeechStage.frames

    def watched(self, ids, said):
        for id in ids:
            seen.setdefault(id, []).append(self.sequences[id].position[:, 0].tolist())
        frames(self, ids, said)

    monkeypatch.setattr(SpeechStage, "frames", watched)
    lengths = speak("hello world", "yes")["attention_mask"].sum(axis=1) - 3 + 9
    assert lengths[0] != lengths[1]
    assert [seen[id] for id in sorted(seen)] == [[[length + index] * 3 for index in range(-1, FRAMES)] for length in lengths]


def test_a_frame_does_not_depend_on_the_frames_before_it(speak, monkeypatch):
    """Asked again, and out of order, the predictor gives the same codes."""
    original, asked = FrameStep.__call__, []

    def again(self, *arguments):
        found = original(self, *arguments)
        asked.append((arguments, found[0].asnumpy()))
        for earlier, expected in asked:
            assert np.array_equal(original(self, *earlier)[0].asnumpy(), expected)
        return found

    monkeypatch.setattr(FrameStep, "__call__", again)
    speak("hello world")
    assert len(asked) == FRAMES
    assert not np.array_equal(asked[0][1], asked[1][1])


def test_the_row_of_silence_is_computed_once(tiny_model, speak, monkeypatch):
    """Text of three tokens: one opens the turn, two and the end of speech have a frame each, and all others are silent."""
    monkeypatch.setattr(tiny_model, "own_engine", None)
    shapes, project = [], tiny_model.talker.text_projection
    hook = project.register_forward_hook(lambda _, inputs, output: shapes.append(inputs[0].shape[:-1]))
    try:
        speak("hello world", "yes", count=12, max_new_tokens=3)
    finally:
        hook.remove()
    assert shapes.count((2, 1)) == 4


# -- numbers that are none -------------------------------------------------------------------------------------------


class Broken:
    """The vocoder of a model whose weights are NaN."""

    def step(self, codes):
        return Tensor(np.full((1, 1, 1920), np.nan, np.float32))


def test_nan_in_codes_or_sound_is_an_error_that_names_the_part():
    sequence = SpeechSequence(SpeechParams(0, SamplingParams(), SamplingParams()), 0, SimpleNamespace(stream=Broken))
    with pytest.raises(InputError, match="the talker or code predictor's logits hold NaN"):
        sequence.next_code(np.full(4, np.nan, np.float32))
    sequence.codes.append(np.zeros(3, np.int64))
    with pytest.raises(InputError, match="the vocoder's samples hold NaN"):
        SpeechStage.sound(sequence, 1)
