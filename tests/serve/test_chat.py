"""Chat completions of a real server, asked with the unmodified `openai` client."""

import base64
import io

import numpy as np
import openai
import pytest
import soundfile

from .conftest import MINIATURE

SAMPLES = MINIATURE / "samples"
AUDIO = {"modalities": ["text", "audio"], "audio": {"voice": "Ethan", "format": "pcm16"}}
NAME = "miniature"


def encoded(name):
    return base64.b64encode((SAMPLES / name).read_bytes()).decode()


STAR = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{encoded('star.jpg')}"}}
DIGITS = {"type": "input_audio", "input_audio": {"data": encoded("digits.wav"), "format": "wav"}}
SHAPE = [{"role": "user", "content": [{"type": "text", "text": "What shape is it?"}, STAR]}]
NUMBER = [{"role": "user", "content": [DIGITS, {"type": "text", "text": "What number is spoken?"}]}]


def ask(client, messages, **options):
    return client.chat.completions.create(model=NAME, messages=messages, **options)


def content(client, messages, **options):
    return ask(client, messages, **options).choices[0].message.content


def samples_of(chunks):
    """The sound of a stream, and its transcript."""
    audio = [chunk.choices[0].delta.audio for chunk in chunks if chunk.choices and chunk.choices[0].delta.audio]
    data = b"".join(base64.b64decode(one.data) for one in audio if one.data)
    return data, "".join(one.transcript or "" for one in audio)


def test_pictures_sounds_and_words_are_answered(client):
    assert content(client, SHAPE) == "star"
    assert content(client, NUMBER) == "374"
    answer = ask(client, [{"role": "user", "content": "What is 2 plus 3?"}])
    (choice,) = answer.choices
    assert choice.message.content == "5" and choice.finish_reason == "stop" and choice.message.audio is None


def test_usage_counts_by_kind(client):
    usage = ask(client, [{"role": "user", "content": [DIGITS, STAR]}]).usage
    prompt, answer = usage.prompt_tokens_details, usage.completion_tokens_details
    assert prompt.audio_tokens > 10 and prompt.image_tokens > 10 and prompt.text_tokens > 5
    assert usage.prompt_tokens == prompt.audio_tokens + prompt.image_tokens + prompt.text_tokens
    assert usage.completion_tokens == answer.text_tokens and answer.audio_tokens == 0


def test_a_stream_is_as_openai_has_it(client):
    chunks = list(ask(client, SHAPE, stream=True, stream_options={"include_usage": True}))
    first, *middle, last, usage = chunks
    assert first.choices[0].delta.role == "assistant" and first.choices[0].finish_reason is None
    assert "".join(chunk.choices[0].delta.content for chunk in middle) == "star"
    assert last.choices[0].finish_reason == "stop" and last.choices[0].delta.content is None
    assert usage.choices == [] and usage.usage.completion_tokens >= 2
    assert all(chunk.usage is None for chunk in chunks[:-1]) and len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.choices for chunk in ask(client, SHAPE, stream=True))


def test_streamed_samples_are_those_of_the_whole_answer(client):
    whole = ask(client, NUMBER, **AUDIO, seed=3)
    message = whole.choices[0].message
    assert message.content is None and message.audio.transcript == "374" and message.audio.expires_at > whole.created
    chunks = list(ask(client, NUMBER, **AUDIO, seed=3, stream=True))
    data, transcript = samples_of(chunks)
    assert data == base64.b64decode(message.audio.data) and len(data) > 24_000 and transcript == "374"
    expiry, end = chunks[-2:]
    assert expiry.choices[0].delta.audio.expires_at and not expiry.choices[0].delta.audio.data
    assert end.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("format", ["wav", "mp3", "flac", "opus", "aac"])
def test_formats(client, format):
    options = {"modalities": ["text", "audio"], "audio": {"voice": "chelsie", "format": format}}
    message = ask(client, [{"role": "user", "content": "Say star."}], **options, seed=1).choices[0].message
    data = base64.b64decode(message.audio.data)
    if format == "aac":
        assert data[:2] in (b"\xff\xf1", b"\xff\xf9")
        return
    sound, rate = soundfile.read(io.BytesIO(data))
    assert sound.ndim == 1 and len(sound) > 0.3 * rate and np.abs(sound).max() > 0.05


def test_an_earlier_spoken_answer_is_named_by_its_id(client):
    spoken = ask(client, NUMBER, **AUDIO, seed=0).choices[0].message
    follow = [{"role": "user", "content": "What shape is it?"}]
    turns = [*NUMBER, {"role": "assistant", "audio": {"id": spoken.audio.id}}, *SHAPE]
    written = [*NUMBER, {"role": "assistant", "content": "374"}, *SHAPE]
    by_id, by_text = ask(client, turns), ask(client, written)
    assert by_id.usage.prompt_tokens == by_text.usage.prompt_tokens
    assert by_id.choices[0].message.content == by_text.choices[0].message.content == "star"
    with pytest.raises(openai.BadRequestError, match="expired") as refused:
        ask(client, [*NUMBER, {"role": "assistant", "audio": {"id": "audio_00"}}, *follow])
    assert refused.value.param == "messages[1].audio.id"
