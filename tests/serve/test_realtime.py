"""Realtime conversations by `openai`'s client as it is: turns, their events and their order."""

import asyncio
import json

import pytest
from openai import AsyncOpenAI

from tests.serve.conftest import KEY
from tests.serve.talking import (
    COMMITTED,
    HEARD,
    PUSH_TO_TALK,
    SPOKEN,
    WRITTEN,
    answer,
    ask,
    client,
    connected,
    error_of,
    kinds,
    said,
    sample,
    send,
    sound_of,
    text_of,
    until,
)

QUESTION = "What number do you hear?"


def test_turn_in_writing(server):
    with connected(server, output_modalities=["text"]) as connection:
        ask(connection, "What is 4 + 5?")
        connection.response.create()
        events = answer(connection)
        assert kinds(events) == WRITTEN and text_of(events) == "9"
        response = events[-1].response
        assert response.status == "completed" and response.output[0].content[0].text == "9"
        usage = response.usage
        assert usage.total_tokens == usage.input_tokens + usage.output_tokens
        assert usage.output_token_details.audio_tokens == 0
        ids = [event.event_id for event in events]
        assert len(set(ids)) == len(ids)


def test_push_to_talk(server):
    with connected(server, instructions=QUESTION) as connection:
        send(connection, said(sample()))
        connection.input_audio_buffer.commit()
        connection.response.create()
        events = answer(connection)
        assert kinds(events) == [*COMMITTED, *SPOKEN] and text_of(events) == "374"
        usage, sound = events[-1].response.usage, sound_of(events)
        assert usage.output_token_details.audio_tokens == -(-len(sound) // 1920) > 3
        assert usage.input_token_details.audio_tokens > 30
        first = [event.type for event in events]
        assert first.index("response.output_audio_transcript.delta") < first.index("response.output_audio.delta")
        (item,) = events[-1].response.output
        assert item.role == "assistant" and item.content[0].transcript == "374"


def test_speech_is_noticed(server):
    with connected(server, instructions=QUESTION, audio={"input": {"turn_detection": {"type": "server_vad"}}}) as connection:
        send(connection, said(sample()))
        events = answer(connection)
        assert kinds(events) == [*HEARD, *SPOKEN] and text_of(events) == "374"
        started, stopped, committed, added = events[:4]
        assert started.item_id == stopped.item_id == committed.item_id == added.item.id
        assert 400 < started.audio_start_ms < 800 and 2000 < stopped.audio_end_ms < 2500


def test_asynchronous_client(server):
    async def converse():
        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY).realtime.connect(model="miniature") as connection:
            await connection.session.update(session={**PUSH_TO_TALK, "output_modalities": ["text"]})
            await connection.conversation.item.create(
                item={"type": "message", "role": "user", "content": [{"type": "input_text", "text": "What is 2 + 3?"}]}
            )
            await connection.response.create()
            async for event in connection:
                if event.type == "response.output_text.done":
                    return event.text

    assert asyncio.run(converse()) == "5"


def test_strangers_are_turned_away(server):
    from websockets.exceptions import InvalidStatus

    for key, model, status in (("wrong", "miniature", 401), (KEY, "another", 404)):
        with pytest.raises(InvalidStatus) as refused, client(server, key).realtime.connect(model=model):
            pass
        assert refused.value.response.status_code == status
        assert b'"error"' in refused.value.response.body


def test_a_second_response_has_to_wait(server):
    with connected(server) as connection:
        ask(connection, "Say a blue star and 17.")
        connection.response.create()
        connection.response.create()
        events = until(connection, "error")
        assert events[-1].error.code == "conversation_already_has_active_response"
        assert answer(connection)[-1].response.status == "completed"
        connection.response.cancel()
        assert error_of(connection).code == "response_cancel_not_active"


def test_a_function_that_must_be_called(server):
    pytest.importorskip("llguidance")
    shape = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"]}
    tool = {"type": "function", "name": "paint", "description": "Paints the wall.", "parameters": shape}
    with connected(server, tools=[tool], tool_choice="required") as connection:
        ask(connection, "Say blue.")
        connection.response.create()
        events = answer(connection)
        (call,) = events[-1].response.output
        assert (call.type, call.name) == ("function_call", "paint")
        assert json.loads(call.arguments)["colour"] in ("red", "blue")
        assert "response.output_audio.delta" not in kinds(events)
        connection.conversation.item.create(item={"type": "function_call_output", "call_id": call.call_id, "output": "done"})
        assert connection.recv().previous_item_id == call.id
        connection.recv()
        connection.response.create(response={"tool_choice": "none"})
        assert answer(connection)[-1].response.status == "completed"


def test_what_was_said_is_written_down(server):
    audio = {"input": {"turn_detection": None, "transcription": {"model": "whisper-1"}}}
    with connected(server, audio=audio) as connection:
        send(connection, said(sample()))
        connection.input_audio_buffer.commit()
        kind = "conversation.item.input_audio_transcription"
        events = until(connection, f"{kind}.completed", f"{kind}.failed")
        whole = events[-1]
        assert whole.type == f"{kind}.completed" and whole.transcript
        assert whole.transcript == "".join(event.delta for event in events if event.type == f"{kind}.delta").strip()
        assert whole.item_id == events[0].item_id and whole.usage.total_tokens > 30
