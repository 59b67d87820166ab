"""Options that only make sense for a whole result, and scores beside speech."""

from types import SimpleNamespace

import numpy as np
import pytest

from ms_omni.engine.runner import ThinkerRunner
from ms_omni.errors import InputError


@pytest.mark.parametrize("option", ["streamer", "return_dict_in_generate", "output_scores"])
def test_a_stream_refuses_what_it_cannot_give(option, tiny_model, ask):
    ended = []
    streamer = SimpleNamespace(put=ended.append, end=lambda: ended.append("end"))
    for method in (tiny_model.stream, tiny_model.say):
        with pytest.raises(InputError, match=f"{option} is for generate"):
            method(**ask("hi"), **{option: streamer if option == "streamer" else True})
    assert ended == ["end"] * 2 * (option == "streamer")


@pytest.mark.parametrize("speaks", [True, False])
def test_scores_come_with_and_without_speech(speaks, tiny_model, ask):
    text, audio = tiny_model.generate(
        **ask("hi"),
        return_audio=speaks,
        max_new_tokens=4,
        talker_max_new_tokens=3,
        return_dict_in_generate=True,
        output_scores=True,
        eos_token_id=[],
    )
    assert (audio is not None) == speaks
    assert np.argmax(text.scores, axis=-1).T.tolist() == text.sequences[:, -4:].tolist()


def test_ids_beyond_the_vocabulary_are_refused_before_any_work(tiny_model, ask, monkeypatch):
    monkeypatch.setattr(ThinkerRunner, "read", None)
    for options in ({"eos_token_id": 10**6}, {"thinker_suppress_tokens": [10**6]}, {"talker_eos_token_id": 10**6}):
        with pytest.raises(InputError, match="the vocabulary has"):
            tiny_model.generate(**ask("hi"), **options)


def test_an_end_token_that_ends_nothing_is_never_spoken(tiny_model, ask):
    """With other end tokens than the config's, or none, the config's own is one more special that is no code."""
    config = tiny_model.config.talker_config
    for ends in ([], [7]):
        stream = tiny_model.stream(**ask("hi"), talker_eos_token_id=ends)
        assert config.codec_eos_token_id in stream.request.speech.talker.suppress_tokens
        assert stream.request.speech.talker.eos_token_id == tuple(ends)
    assert config.codec_eos_token_id not in tiny_model.stream(**ask("hi")).request.speech.talker.suppress_tokens
