"""Events that clients send: what is wrong with them is said, and the conversation goes on; older spellings are understood."""

import json

import numpy as np
import pytest
from websockets.sync.client import connect

from tests.serve.conftest import KEY
from tests.serve.talking import answer, ask, base64_of, connected, error_of, kinds, sample, send, silence, text_of

MESSAGE = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "What is 1 + 1?"}]}


def settings(**values):
    return {"type": "session.update", "session": {"type": "realtime", **values}}


def item(**values):
    return {"type": "conversation.item.create", "item": {**MESSAGE, **values}}


def hearing(**values):
    return settings(audio={"input": values})


WRONG = {
    "unknown type": ({"type": "session.change"}, "type", "invalid_value"),
    "no type": ({"session": {}}, "type", "missing_required_parameter"),
    "unknown field": ({"type": "response.cancel", "why": 1}, "why", "unknown_parameter"),
    "unknown setting": (settings(mood="good"), "session.mood", "unknown_parameter"),
    "another model": (settings(model="gpt-realtime"), "session.model", "invalid_value"),
    "only transcription": (settings(type="transcription"), "session.type", "invalid_value"),
    "unknown voice": (settings(audio={"output": {"voice": "alloy"}}), "session.audio.output.voice", "invalid_value"),
    "both modalities": (settings(output_modalities=["text", "audio"]), "session.output_modalities", "invalid_value"),
    "semantic turns": (
        hearing(turn_detection={"type": "semantic_vad"}),
        "session.audio.input.turn_detection",
        "invalid_value",
    ),
    "threshold": (
        hearing(turn_detection={"type": "server_vad", "threshold": 2}),
        "session.audio.input.turn_detection.threshold",
        "invalid_value",
    ),
    "noise": (hearing(noise_reduction={"type": "near_field"}), "session.audio.input.noise_reduction", "invalid_value"),
    "rate": (hearing(format={"type": "audio/pcm", "rate": 16000}), "session.audio.input.format", "invalid_value"),
    "said twice": (settings(voice="Ethan", audio={"output": {"voice": "Ethan"}}), "session.voice", "invalid_value"),
    "tokens": (settings(max_output_tokens=0), None, "invalid_value"),
    "no base64": ({"type": "input_audio_buffer.append", "audio": "!"}, "audio", "invalid_value"),
    "half a sample": ({"type": "input_audio_buffer.append", "audio": "AAAA"}, "audio", "invalid_value"),
    "nothing to append": ({"type": "input_audio_buffer.append"}, "audio", "missing_required_parameter"),
    "nothing to commit": ({"type": "input_audio_buffer.commit"}, None, "input_audio_buffer_commit_empty"),
    "no item": ({"type": "conversation.item.delete", "item_id": "x"}, "item_id", "item_delete_invalid_item_id"),
    "nothing to see": ({"type": "conversation.item.retrieve", "item_id": "x"}, "item_id", "item_retrieve_invalid_item_id"),
    "no place": ({**item(), "previous_item_id": "x"}, "previous_item_id", "item_not_found"),
    "a file": (
        item(content=[{"type": "input_image", "image_url": "file:///etc/passwd"}]),
        "item.content.0",
        "invalid_value",
    ),
    "no picture": (
        item(content=[*MESSAGE["content"], {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}]),
        "item.content[1]",
        "invalid_value",
    ),
    "no sound": (item(content=[{"type": "input_audio", "audio": ""}]), "item.content[0]", "invalid_value"),
    "words of the assistant": (item(content=[{"type": "output_text", "text": "x"}]), "item", "invalid_value"),
    "a call without a name": (
        {"type": "conversation.item.create", "item": {"type": "function_call", "arguments": "{}"}},
        "item",
        "invalid_value",
    ),
    "nothing to cancel": ({"type": "response.cancel"}, None, "response_cancel_not_active"),
    "of another response": (
        {"type": "response.create", "response": {"colour": "red"}},
        "response.colour",
        "unknown_parameter",
    ),
    "WebRTC": ({"type": "output_audio_buffer.clear"}, "type", "invalid_value"),
}


def test_what_is_wrong_is_said(server):
    with connected(server, output_modalities=["text"]) as connection:
        for name, (event, param, code) in WRONG.items():
            connection.send({**event, "event_id": name})
            error = error_of(connection)
            assert (error.event_id, error.code) == (name, code), (name, error)
            assert error.type == "invalid_request_error" and len(error.message) > 20, (name, error)
            assert param is None or error.param == param, (name, error)
        ask(connection, "What is 1 + 1?")
        connection.response.create()
        assert text_of(answer(connection)) == "2"


def test_frames_that_are_no_events(server):
    url = server.url.replace("http", "ws") + "/v1/realtime"
    with connect(url, additional_headers=server.headers) as socket:
        assert json.loads(socket.recv())["type"] == "session.created"
        for frame in (
            "{",
            "[]",
            "1",
            b"\x00" * 9,
            "{" * 100_000,
            '{"type": 1}',
            '{"type": "response.cancel", "event_id": 3}',
        ):
            socket.send(frame)
            assert json.loads(socket.recv())["type"] == "error"
        socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": "A" * (24 << 20)}))
        error = json.loads(socket.recv())["error"]
        assert error["param"] == "audio" and "15728640" in error["message"]


def test_a_key_among_protocols(server):
    url = server.url.replace("http", "ws") + "/v1/realtime?model=miniature"
    with connect(url, subprotocols=["realtime", f"openai-insecure-api-key.{KEY}"]) as socket:
        assert socket.subprotocol == "realtime"
        assert json.loads(socket.recv())["type"] == "session.created"


def test_settings_change_one_by_one(server):
    def changed(**values):
        connection.session.update(session={"type": "realtime", **values})
        return connection.recv().session

    with connected(server) as connection:
        session = changed(instructions="Be brief.", tracing="auto", max_output_tokens=40)
        assert session.instructions == "Be brief." and session.tracing is None
        session = changed(audio={"input": {"turn_detection": {"type": "server_vad", "threshold": 0.7}}})
        detection = session.audio.input.turn_detection
        assert (detection.threshold, detection.silence_duration_ms, session.max_output_tokens) == (0.7, 500, 40)
        session = changed(audio={"output": {"voice": "chelsie"}})
        assert session.audio.output.voice == "Chelsie" and session.audio.input.turn_detection.threshold == 0.7
        session = changed(audio={"input": {"turn_detection": None}, "output": {"format": {"type": "audio/pcmu"}}})
        assert session.audio.input.turn_detection is None and session.audio.output.format.type == "audio/pcmu"


def test_older_spellings(server):
    with connected(server) as connection:
        connection.send(
            {
                "type": "session.update",
                "session": {
                    "modalities": ["text", "audio"],
                    "voice": "Chelsie",
                    "input_audio_format": "pcm16",
                    "output_audio_format": "g711_ulaw",
                    "input_audio_transcription": None,
                    "turn_detection": {"type": "server_vad", "threshold": 0.4},
                    "max_response_output_tokens": 30,
                    "temperature": 0.0,
                },
            }
        )
        session = connection.recv().session
        assert session.output_modalities == ["audio"] and session.max_output_tokens == 30
        assert (session.audio.output.voice, session.audio.output.format.type) == ("Chelsie", "audio/pcmu")
        assert session.audio.input.turn_detection.threshold == 0.4
        connection.send(item(role="assistant", content=[{"type": "text", "text": "Hello."}]))
        assert connection.recv().item.content[0].type == "output_text"
        connection.recv()
        ask(connection, "What is 3 + 5?")
        connection.send({"type": "response.create", "response": {"modalities": ["text"], "max_response_output_tokens": 9}})
        events = answer(connection)
        assert text_of(events) == "8" and events[-1].response.max_output_tokens == 9


@pytest.mark.parametrize("kind", ["audio/pcmu", "audio/pcma"])
def test_telephone_sound_both_ways(server, kind):
    import base64

    import soxr

    from ms_omni.serve.realtime.audio import encoded, samples_of
    from ms_omni.serve.realtime.settings import Format

    form = Format(type=kind)
    narrow = soxr.resample(np.concatenate([silence(0.5), sample(), silence(0.3)]), 24_000, 8_000)
    back = samples_of(encoded(narrow, form), form).astype(int)
    assert np.abs(back - narrow).max() <= np.abs(narrow).max() / 16
    audio = {"input": {"format": {"type": kind}, "turn_detection": None}, "output": {"format": {"type": kind}}}
    with connected(server, instructions="What number do you hear?", audio=audio) as connection:
        connection.input_audio_buffer.append(audio=encoded(narrow, form))
        connection.input_audio_buffer.commit()
        connection.response.create()
        events = answer(connection)
        assert text_of(events) in ("374", "3747")  # a telephone's sound was not in its training
        count = sum(len(base64.b64decode(event.delta)) for event in events if event.type == "response.output_audio.delta")
        frames = events[-1].response.usage.output_token_details.audio_tokens
        assert 0 < frames * 640 - count < 640


def test_items_are_put_seen_and_taken_away(server):
    with connected(server, output_modalities=["text"]) as connection:
        ids = {}
        for name, after in (("b", None), ("a", "root"), ("c", None), ("ab", "a")):
            connection.conversation.item.create(
                item={**MESSAGE, "id": name, "content": [{"type": "input_text", "text": name}]},
                **({"previous_item_id": after} if after else {}),
            )
            ids[name] = connection.recv().previous_item_id
            connection.recv()
        assert ids == {"b": None, "a": None, "c": "b", "ab": "a"}
        pcm = sample()
        send(connection, pcm)
        connection.input_audio_buffer.commit()
        committed = connection.recv()
        assert committed.previous_item_id == "c" and kinds([connection.recv(), connection.recv()])
        connection.conversation.item.retrieve(item_id=committed.item_id)
        (part,) = connection.recv().item.content
        assert part.audio == base64_of(pcm)
        for name in ("b", "a", "c", "ab", committed.item_id):
            connection.conversation.item.delete(item_id=name)
            assert connection.recv().item_id == name
        ask(connection, "What is 2 + 2?")
        connection.response.create()
        assert text_of(answer(connection)) == "4"


def test_answers_beside_the_conversation(server):
    with connected(server, output_modalities=["text"]) as connection:
        ask(connection, "What is 2 + 2?")
        asked = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "What is 4 + 4?"}]}
        connection.response.create(
            response={"conversation": "none", "input": [asked], "metadata": {"topic": "sum"}, "max_output_tokens": 1}
        )
        apart = answer(connection)
        assert "conversation.item.added" not in kinds(apart) and text_of(apart) == "8"
        response = apart[-1].response
        assert response.conversation_id is None and response.metadata == {"topic": "sum"}
        assert response.status == "incomplete" and response.status_details.reason == "max_output_tokens"
        connection.response.create()
        assert text_of(answer(connection)) == "4"
