"""Who speaks when: interruptions, what was heard of an answer, numbers in a row, the same answer as to the same sound posted whole."""

import base64
import io

import numpy as np
import pytest
import soundfile

from tests.serve.first_sound import LISTENING, QUESTION, ask_aloud, questions
from tests.serve.talking import (
    COMMITTED,
    RATE_HZ,
    SPOKEN,
    answer,
    ask,
    base64_of,
    client,
    connected,
    error_of,
    kinds,
    said,
    sample,
    samples_of,
    send,
    silence,
    sound_of,
    text_of,
    until,
)

LONG = "Say a purple triangle and a yellow square and 8061."
NUMBERS = ("digits.flac", "digits.wav")
ANSWERS = ("9061", "374")
CUT = ["response.output_audio.done", "response.output_audio_transcript.done", *SPOKEN[-4:]]


def test_six_numbers_in_a_row(server):
    with connected(server, instructions=QUESTION, audio=LISTENING) as connection:
        for turn in range(6):
            send(connection, said(sample(NUMBERS[turn % 2])))
            events = answer(connection)
            assert text_of(events) == ANSWERS[turn % 2] and len(sound_of(events)) > RATE_HZ // 2
        details = events[-1].response.usage.input_token_details
        assert details.cached_tokens >= 128  # of the turns before


def test_who_interrupts_is_heard(server):
    with connected(server, instructions=QUESTION, audio=LISTENING) as connection:
        send(connection, said(sample(NUMBERS[0])))
        until(connection, "response.output_audio.delta")
        speech = said(sample(NUMBERS[1]))[RATE_HZ * 3 // 4 :]
        begun, rest = np.split(speech, [RATE_HZ // 2])
        send(connection, begun)
        events = until(connection, "response.done")
        names = [event.type for event in events]
        started = names.index("input_audio_buffer.speech_started")
        assert "response.output_audio.delta" not in names[started:]
        assert names[started + 1 :] == CUT
        response = events[-1].response
        assert response.status == "cancelled" and response.status_details.reason == "turn_detected"
        assert response.output[0].status == "incomplete"
        connection.conversation.item.truncate(item_id=response.output[0].id, content_index=0, audio_end_ms=200)
        assert connection.recv().type == "conversation.item.truncated"
        send(connection, rest)
        events = answer(connection)
        assert text_of(events) == ANSWERS[1]


def test_who_must_not_interrupt_does_not(server):
    detection = {"type": "server_vad", "interrupt_response": False, "create_response": False}
    with connected(server, audio={"input": {"turn_detection": detection}}) as connection:
        ask(connection, "Say a blue star and 17.")
        connection.response.create()
        until(connection, "response.created")
        send(connection, said(sample()))
        events: list = []
        while not {"response.done", "input_audio_buffer.committed"} <= {event.type for event in events}:
            events += until(connection, "response.done", "input_audio_buffer.committed")
        (response,) = [event.response for event in events if event.type == "response.done"]
        assert response.status == "completed" and text_of(events) == "a blue star and 17"
        assert "response.created" not in kinds(events)


def test_cancelled_by_its_client(server):
    with connected(server) as connection:
        ask(connection, LONG)
        connection.response.create()
        until(connection, "response.output_audio.delta")
        connection.response.cancel()
        events = answer(connection)
        assert kinds(events)[-len(CUT) :] == CUT
        response = events[-1].response
        assert (response.status, response.status_details.reason) == ("cancelled", "client_cancelled")
        ask(connection, "What is 4 + 5?")
        connection.response.create()
        assert text_of(answer(connection)) == "9"


def test_what_was_not_heard_is_forgotten(server):
    with connected(server) as connection:
        ask(connection, "Say a blue star and 17.")
        connection.response.create()
        events = answer(connection)
        (item,) = events[-1].response.output
        whole_ms = len(sound_of(events)) // 24

        def cut(end_ms):
            connection.conversation.item.truncate(item_id=item.id, content_index=0, audio_end_ms=end_ms)

        def text():
            connection.conversation.item.retrieve(item_id=item.id)
            return connection.recv().item.content[0].transcript

        cut(whole_ms + 1)
        assert error_of(connection).param == "audio_end_ms"
        cut(whole_ms)
        assert connection.recv().audio_end_ms == whole_ms and text() == "a blue star and 17"
        cut(whole_ms // 2)
        assert connection.recv().type == "conversation.item.truncated"
        half = text()
        assert half in ("a", "a blue", "a blue star") and half
        connection.response.create()
        shorter = answer(connection)[-1].response.usage.input_tokens
        cut(0)
        connection.recv()
        assert text() == ""
        connection.conversation.item.truncate(item_id="x", content_index=0, audio_end_ms=0)
        assert error_of(connection).code == "item_truncate_invalid_item_id"
        assert shorter > 0


@pytest.mark.parametrize("turns", [None, {"type": "server_vad"}], ids=["push to talk", "VAD"])
def test_answers_are_those_to_the_same_sound_posted_whole(server, turns):
    """Seventeen seconds, of which two windows were read while they were spoken."""
    repeated = np.concatenate([sample(NUMBERS[n % 2]) for n in range(9)])[: round(17.3 * RATE_HZ)]
    with connected(server, instructions=QUESTION, audio={"input": {"turn_detection": turns}}) as connection:
        send(connection, said(repeated), piece=24_000)
        if turns is None:
            connection.input_audio_buffer.commit()
            connection.response.create()
        events = answer(connection)
        committed = next(event for event in events if event.type == COMMITTED[0])
        connection.conversation.item.retrieve(item_id=committed.item_id)
        heard = samples_of(connection.recv().item.content[0].audio)
    assert len(heard) > 16 * RATE_HZ
    file = io.BytesIO()
    soundfile.write(file, heard, RATE_HZ, "PCM_16", format="WAV")
    sound = {"type": "input_audio", "input_audio": {"data": base64.b64encode(file.getvalue()).decode(), "format": "wav"}}
    messages = [{"role": "system", "content": QUESTION}, {"role": "user", "content": [sound]}]
    whole = client(server).chat.completions.create(model="miniature", messages=messages, modalities=["text"])
    assert text_of(events) == whole.choices[0].message.content


def test_sound_as_an_item(server):
    with connected(server, output_modalities=["text"]) as connection:
        pcm = np.concatenate([silence(0.5), sample(), silence(0.3)])
        content = [{"type": "input_text", "text": QUESTION}, {"type": "input_audio", "audio": base64_of(pcm)}]
        connection.conversation.item.create(item={"type": "message", "role": "user", "content": content})
        assert "audio" not in connection.recv().item.content[1].to_dict()
        connection.recv()
        connection.response.create()
        assert text_of(answer(connection)) == "374"


def test_a_picture_as_an_item(server):
    from tests.serve.conftest import MINIATURE

    data = base64.b64encode((MINIATURE / "samples/star.jpg").read_bytes()).decode()
    content = [
        {"type": "input_text", "text": "What do you see?"},
        {"type": "input_image", "image_url": f"data:image/jpeg;base64,{data}"},
    ]
    with connected(server, output_modalities=["text"]) as connection:
        connection.conversation.item.create(item={"type": "message", "role": "user", "content": content})
        until(connection, "conversation.item.done")
        connection.response.create()
        events = answer(connection)
        assert text_of(events) == "an orange star"
        assert events[-1].response.usage.input_token_details.image_tokens > 4


@pytest.mark.slow
def test_a_long_question_is_read_while_it_is_spoken(server):
    """Most of it; how long the first sound takes then is measured by `tests/serve/first_sound.py`."""
    usages = [ask_aloud(server, question)[1] for question in questions()]
    short, long = (usage.input_tokens - usage.input_token_details.cached_tokens for usage in usages)
    assert usages[1].input_token_details.cached_tokens >= 128 and usages[1].input_tokens > 200
    assert long < short + 128
