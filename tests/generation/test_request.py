"""What is asked for is checked before any work, and split once by prefix."""

import numpy as np
import pytest

from ms_omni import Qwen3OmniMoeForConditionalGeneration
from ms_omni.engine.runner import ThinkerRunner
from ms_omni.errors import InputError
from ms_omni.generation.request import parse_request


@pytest.fixture
def idle(tiny_model, monkeypatch):
    """The tiny model, whose thinker must not be run."""

    def work(*_, **__):
        raise AssertionError("the thinker was run")

    monkeypatch.setattr(ThinkerRunner, "read", work)
    return tiny_model


@pytest.mark.parametrize(
    "change, said",
    [
        ({"speaker": "Nobody"}, "unknown speaker 'Nobody'; this checkpoint has aiden, chelsie, ethan"),
        ({"speaker": 3}, "unknown speaker 3"),
        ({"generation_mode": "song"}, "generation_mode is 'song', expected 'text' or 'audio'"),
        ({"max_new_tokens": 3, "thinker_max_new_tokens": 4}, "thinker_max_new_tokens=4 and max_new_tokens=3"),
        ({"talker_temprature": 1}, "talker has no argument 'temprature'; did you mean 'temperature'"),
        ({"talker_temperature": -1, "return_audio": False}, "talker_temperature is -1"),
        ({"talker_use_cache": "no"}, "use_cache is 'no'"),
        ({"predictor_top_p": 2}, "predictor_top_p is 2"),
        ({"token2wav_chunks": 300}, "token2wav_chunks is unknown; .* token2wav_chunk_frames"),
        ({"token2wav_chunk_frames": 0}, r"token2wav_chunk_frames is \(0,\), expected frame counts of at least 1"),
        ({"token2wav_chunk_frames": []}, "expected frame counts"),
        ({"frobnicate": 1}, "no argument 'frobnicate'"),
    ],
    ids=lambda value: None if isinstance(value, str) else next(iter(value)),
)
@pytest.mark.parametrize("method", ["generate", "stream", "say"])
def test_wrong_arguments(method, change, said, idle, ask):
    with pytest.raises(InputError, match=said):
        getattr(idle, method)(**ask("hi"), **change)


def without(inputs, token):
    """The inputs with every `token` replaced by plain text."""
    return {**inputs, "input_ids": np.where(inputs["input_ids"] == token, 20, inputs["input_ids"])}


@pytest.mark.parametrize(
    "role, said",
    [
        ("user", "the prompt has no user turn.*role 'user'"),
        ("assistant", "does not open an assistant turn"),
    ],
)
def test_prompts_that_nobody_can_answer_aloud(role, said, idle, ask):
    inputs = without(ask("hi"), getattr(idle.config, f"{role}_token_id"))
    with pytest.raises(InputError, match=said):
        idle.generate(**inputs)
    with pytest.raises(AssertionError, match="the thinker was run"):
        idle.generate(**inputs, return_audio=False)  # text needs neither


def test_one_row_without_a_user_turn_is_enough(idle, ask):
    inputs = ask("hi", "yes")
    inputs["input_ids"] = inputs["input_ids"].copy()
    inputs["input_ids"][1][inputs["input_ids"][1] == idle.config.user_token_id] = 20
    with pytest.raises(InputError, match="no user turn"):
        idle.stream(**inputs)


def test_ids_and_mask_of_different_shape(idle, ask):
    inputs = ask("hi")
    said = r"input_ids \[1, (\d+)\] and attention_mask \[1, (\d+)\] must be \[batch, tokens\] both"
    with pytest.raises(InputError, match=said):
        idle.generate(**{**inputs, "attention_mask": inputs["attention_mask"][:, 1:]})


def test_arguments_are_split_by_prefix(tiny_model, ask):
    request = parse_request(
        tiny_model,
        {
            **ask("hi"),
            "seed": 5,
            "top_k": 3,
            "thinker_do_sample": True,
            "talker_top_k": 7,
            "talker_max_new_tokens": 9,
            "predictor_temperature": 0.5,
            "speaker": "ChElSiE",
            "token2wav_chunk_frames": (2, 9),
        },
    )
    text, code, rest = request.text, request.speech.talker, request.speech.predictor
    assert (text.top_k, text.do_sample, text.seed) == (3, True, 5)
    assert (code.top_k, code.max_new_tokens, code.seed, code.temperature) == (7, 9, 5, 0.9)
    assert (rest.top_k, rest.temperature, rest.top_p, rest.seed) == (50, 0.5, 0.8, 5)
    assert request.speech.speaker_id == tiny_model.config.talker_config.speaker_id["chelsie"]
    assert request.speech.chunk_frames == (2, 9)
    assert request.speech.named and not request.named


@pytest.mark.parametrize(
    "limit",
    [{"max_new_tokens": 9}, {"thinker_max_new_tokens": 9}, {"max_length": 99}, {"generation_config": {"max_new_tokens": 9}}],
)
def test_a_limit_is_named_in_many_ways(tiny_model, ask, limit):
    assert parse_request(tiny_model, {**ask("hi"), **limit}).named
    assert not parse_request(tiny_model, {**ask("hi"), **dict.fromkeys(limit)}).named


def test_defaults_are_those_of_the_reference(tiny_model, ask):
    request = parse_request(tiny_model, ask("hi"))
    config = tiny_model.config.talker_config
    code, rest = request.speech.talker, request.speech.predictor
    assert request.text.max_new_tokens == 1024 and not request.text.do_sample
    assert not request.named and not request.speech.named
    assert request.text.eos_token_id == (tiny_model.config.im_end_token_id,)
    assert (code.max_new_tokens, code.do_sample, code.top_k, code.top_p) == (4096, True, 50, 1.0)
    assert (code.temperature, code.repetition_penalty, code.seed) == (0.9, 1.05, None)
    assert (rest.do_sample, rest.top_k, rest.top_p, rest.temperature) == (True, 50, 0.8, 1.0)
    assert request.speech.speaker_id == config.speaker_id["ethan"]
    vocabulary = config.text_config.vocab_size
    expected = set(range(vocabulary - 1024, vocabulary)) - {config.codec_eos_token_id}
    assert set(code.suppress_tokens) == expected and code.eos_token_id == (config.codec_eos_token_id,)
    assert not rest.suppress_tokens and not rest.eos_token_id


@pytest.mark.parametrize(
    "options, rest",
    [
        ({"talker_do_sample": False}, False),
        ({"talker_do_sample": False, "predictor_do_sample": True}, True),
        ({"predictor_do_sample": False}, False),
        ({}, True),
    ],
)
def test_the_predictor_is_as_greedy_as_the_talker_unless_told(options, rest, tiny_model, ask):
    assert parse_request(tiny_model, {**ask("hi"), **options}).speech.predictor.do_sample is rest


@pytest.mark.parametrize(
    "options, speaks",
    [
        ({}, True),
        ({"return_audio": False}, False),
        ({"generation_mode": "text"}, False),
        ({"generation_mode": "audio"}, True),
        ({"return_audio": None}, True),
    ],
)
def test_when_speech_is_made(options, speaks, tiny_model, ask):
    assert (parse_request(tiny_model, {**ask("hi"), **options}).speech is not None) is speaks


# -- models with and without a talker --------------------------------------------------------------------------------


@pytest.fixture
def listener(tiny_checkpoint):
    options = {"enable_audio_output": False, "progress": False}
    return Qwen3OmniMoeForConditionalGeneration.from_pretrained(tiny_checkpoint, **options)


def parts(model):
    return {name.split(".")[0] for name, _ in model.parameters_and_names()}


def test_a_model_without_a_talker_answers_in_text(listener, ask, greedy_tokens):
    assert parts(listener) == {"thinker"} and not listener.has_talker
    ids, audio = listener.generate(**ask("hi"), max_new_tokens=2, eos_token_id=[])
    assert audio is None and ids[0, -2:].tolist() == greedy_tokens(ask("hi"), 2)[0].tolist()
    for call in (lambda: listener.generate(**ask("hi"), return_audio=True), lambda: listener.say(**ask("hi"))):
        with pytest.raises(InputError, match="this model has no talker: .*enable_talker"):
            call()


def test_the_talker_comes_and_goes(listener, tiny_model, ask, tmp_path):
    options = {"max_new_tokens": 2, "talker_max_new_tokens": 3, "talker_do_sample": False, "eos_token_id": []}
    _, expected = tiny_model.generate(**ask("hi"), **options)
    listener.enable_talker()
    assert listener.has_talker and parts(listener) == {"thinker", "talker", "code2wav"}
    listener.enable_talker()  # again: nothing to do
    _, wave = listener.generate(**ask("hi"), **options)
    assert np.array_equal(wave, expected) and wave.size
    listener.disable_talker()
    listener.disable_talker()
    assert not listener.has_talker and parts(listener) == {"thinker"}
    assert listener.generate(**ask("hi"), max_new_tokens=1)[1] is None
    listener.save_pretrained(tmp_path / "saved")  # what is saved without a talker must be loadable
    again = Qwen3OmniMoeForConditionalGeneration.from_pretrained(tmp_path / "saved", progress=False)
    assert not again.has_talker


def test_a_checkpoint_that_cannot_speak(tmp_path):
    from ms_omni.tiny import write_tiny_checkpoint

    write_tiny_checkpoint(tmp_path / "thinking", talker=False, shards=1)
    with pytest.raises(InputError, match="has no talker .*enable_audio_output is false.*Thinking or Captioner"):
        Qwen3OmniMoeForConditionalGeneration.from_pretrained(tmp_path / "thinking", enable_audio_output=True)
    model = Qwen3OmniMoeForConditionalGeneration.from_pretrained(tmp_path / "thinking", progress=False)
    with pytest.raises(InputError, match="has no talker"):
        model.enable_talker()
