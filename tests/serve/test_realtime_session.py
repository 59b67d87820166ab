"""A realtime session by itself, with an engine that is scripted: what is begun is ended, and what goes wrong ends nothing else."""

import asyncio
import json
from types import SimpleNamespace

import numpy as np
import pytest

from ms_omni.errors import InputError, MediaError
from ms_omni.outputs import AudioChunk
from ms_omni.serve.protocol import busy
from ms_omni.serve.realtime import input_audio, items, route
from ms_omni.serve.realtime.audio import Change
from ms_omni.serve.realtime.route import Outbox
from ms_omni.serve.realtime.session import Session
from tests.serve.talking import base64_of
from tests.serve.test_realtime_parts import Scripted

NO_DETECTION = {"audio": {"input": {"turn_detection": None}}, "output_modalities": ["text"]}


class Server:
    """room: of how many messages a prompt may be."""

    voices, speaks, grammars = ["Ethan"], True, None
    settings = SimpleNamespace(name="miniature")
    model = SimpleNamespace(
        config=SimpleNamespace(thinker_config=SimpleNamespace(audio_config=SimpleNamespace(n_window_infer=800)))
    )

    def __init__(self, room=10**6):
        self.room, self.drains, self.reason = room, False, "stop"
        self.answers, self.prepared = [], []
        self.processor = SimpleNamespace(tokenizer=None)
        self.call_token = None

    def check_ready(self):
        if self.drains:
            raise busy("the server is draining", 503, "unavailable")

    def opens_thoughts(self, ids):
        return False

    def prompt_tokens(self, ids):
        return {"text_tokens": ids.size, "audio_tokens": 0, "image_tokens": 0}

    async def in_pool(self, work):
        await asyncio.sleep(0)
        return work(self.processor)

    async def prepare(self, messages, **options):
        self.prepared.append(messages)
        if any(part.get("image") == "data:," for message in messages[-1:] for part in message["content"]):
            raise MediaError("The picture in a data: URI is empty (0 bytes).")
        return {"input_ids": np.ones((1, len(messages)), np.int64)}

    async def submit(self, inputs, draft=False, **options):
        if inputs["input_ids"].size > self.room:
            raise InputError(f"the answer needs {inputs['input_ids'].size} tokens in the cache, which holds {self.room}")
        self.answers.append(Scripted(["Yes."], self.reason))
        await asyncio.sleep(0)
        return self.answers[-1]


class Talk:
    """A session, and the events that it sends."""

    def __init__(self, **options):
        self.server, self.events = Server(**options), []
        self.session = Session(self.server, self.events.append)

    async def tell(self, type, **values):
        await self.session.handle(json.dumps({"type": type, **values}))

    async def hear(self, *changes):
        """Sound in which somebody is heard so."""
        found = [Change(kind, at) for kind, at in changes]
        self.session._detector = SimpleNamespace(push=lambda samples: found, end=lambda: None)
        await self.tell("input_audio_buffer.append", audio=base64_of(np.zeros(24_000, "<i2")))

    async def say(self, text):
        """A question, and its answer."""
        part = {"type": "input_text", "text": text}
        await self.tell("conversation.item.create", item={"type": "message", "role": "user", "content": [part]})
        await self.tell("response.create")
        while self.session.active is not None:
            await asyncio.sleep(0)

    def of(self, kind):
        return [event for event in self.events if event["type"] == kind]


def run(test):
    asyncio.run(asyncio.wait_for(test(), 30))


async def rest():
    for _ in range(20):
        await asyncio.sleep(0)


TURN = [("started", 0), ("quiet", 20_000), ("stopped", 20_000)]


@pytest.mark.parametrize("pause", [False, True], ids=["at once", "behind the draft"])
def test_a_kept_answer_ends_with_its_response(pause):
    """Also where it is cancelled before it could take what was begun for it."""

    async def test():
        talk = Talk()
        if pause:
            await talk.hear(*TURN[:2])
            await rest()
            assert len(talk.server.answers) == 1
            await talk.hear(TURN[2], ("started", 22_000))
        else:
            await talk.hear(*TURN, ("started", 22_000))
        await rest()
        assert all(answer.cancelled for answer in talk.server.answers) and len(talk.server.answers) == pause
        (done,) = talk.of("response.done")
        assert done["response"]["status"] == "cancelled" and not talk.of("error")
        assert done["response"]["usage"]["total_tokens"] == done["response"]["usage"]["input_tokens"] == 0

    run(test)


def test_a_kept_answer_ends_where_nobody_is_answered():
    async def test():
        talk = Talk()
        await talk.hear(*TURN[:2])
        await rest()
        talk.server.drains = True
        await talk.hear(TURN[2], ("started", 22_000))
        (answer,) = talk.server.answers
        assert answer.cancelled
        (error,) = talk.of("error")
        assert error["error"]["code"] == "unavailable"
        assert len(talk.of("input_audio_buffer.speech_started")) == 2  # the change behind the error is heard

    run(test)


def test_an_error_at_the_end_of_a_turn_loses_none_of_the_next():
    async def test():
        talk = Talk()
        detection = {"type": "server_vad", "interrupt_response": False}
        await talk.tell("session.update", session={"type": "realtime", "audio": {"input": {"turn_detection": detection}}})
        await talk.hear(*TURN)
        await talk.hear(("started", 22_000), ("quiet", 25_000), ("stopped", 25_000), ("started", 26_000))
        await talk.hear(("quiet", 30_000), ("stopped", 30_000))
        await rest()
        assert {event["error"]["code"] for event in talk.of("error")} <= {"conversation_already_has_active_response"}
        assert len(talk.of("input_audio_buffer.speech_stopped")) == len(talk.of("input_audio_buffer.committed")) == 3
        await talk.hear(("resumed", 1), ("quiet", 1), ("stopped", 1))  # of nothing
        assert len(talk.of("input_audio_buffer.committed")) == 3

    run(test)


def test_the_oldest_turns_are_left_out():
    """A fifth at once; the next answers begin with the same, and nothing is tried twice."""

    async def test():
        talk = Talk(room=20)
        await talk.tell("session.update", session={"type": "realtime", **NO_DETECTION})
        for number in range(12):
            await talk.say(f"question {number}")
        assert [event["response"]["status"] for event in talk.of("response.done")] == ["completed"] * 12
        firsts = [messages[0]["content"][0]["text"] for messages in talk.server.prepared]
        assert firsts == ["question 0"] * 11 + ["question 3"] * 2
        await talk.tell("session.update", session={"type": "realtime", "truncation": "disabled"})
        await talk.say("one more")
        error = talk.of("response.done")[-1]["response"]["status_details"]["error"]
        assert error["code"] == "context_length_exceeded" and len(talk.server.prepared) == 14

    run(test)


@pytest.mark.parametrize(
    "message",
    [
        r'{"type": "response.cancel", "event_id": "\ud800"}',
        r'{"type": "session.update", "session": {"tools": [{"type": "function", "name": "f", "parameters": {"\udfff": 1}}]}}',
        r'{"type": "session.update", "session": {"temperature": NaN}}',
        '{"type": "session.update", "session": ' + '{"a":' * 300 + "1" + "}" * 301,
    ],
)
def test_what_json_can_say_and_nobody_take(message):
    async def test():
        talk = Talk()
        await talk.session.handle(message)
        assert [event["type"] for event in talk.events] == ["session.created", "error"]
        assert talk.events[-1]["error"]["type"] == "invalid_request_error"

    run(test)


def test_whatever_is_to_be_sent_is_text():
    async def test():
        sent = []

        async def send_text(text):
            sent.append(text.encode())

        outbox = Outbox(SimpleNamespace(send_text=send_text), 5)
        outbox.put({"delta": "\ud800é"})
        outbox.close()
        assert await outbox.run() == "" and json.loads(sent[0])["delta"] == "\ud800é"

    run(test)


def test_an_event_of_any_size_can_be_sent(monkeypatch):
    """It is what waits behind it that nobody reads."""
    monkeypatch.setattr(route, "MAX_UNSENT_BYTES", 100)

    async def test(*events):
        async def send_text(text):
            await asyncio.sleep(0)

        outbox = Outbox(SimpleNamespace(send_text=send_text), 5)
        for event in events:
            outbox.put(event)
        outbox.close()
        return await outbox.run()

    assert asyncio.run(test({"audio": "A" * 500}, {"type": "x"})) == ""
    assert "not read" in asyncio.run(test({"type": "x"}, {"audio": "A" * 500}))


# -- what is kept ----------------------------------------------------------------------------------------------------


def test_a_conversation_has_room_for_so_much(monkeypatch):
    """Items are refused behind that; who only speaks goes on, and his oldest sounds are let go."""
    monkeypatch.setattr(items, "MAX_BYTES", 300_000)

    async def test():
        talk = Talk()
        await talk.tell("session.update", session={"type": "realtime", **NO_DETECTION})
        for _ in range(5):
            await talk.tell("input_audio_buffer.append", audio=base64_of(np.zeros(24_000, "<i2")))
            await talk.tell("input_audio_buffer.commit")
        conversation = talk.session.conversation
        assert [item.content[0].sound is not None for item in conversation] == [False] * 3 + [True] * 2
        conversation.items[1].content[0].text = "what was written down"
        parts = [part for message in items.messages("", conversation.recent()) for part in message["content"]]
        assert [part["type"] for part in parts] == ["text", "audio", "audio"]
        assert parts[0]["text"] == "what was written down"
        await talk.tell("conversation.item.retrieve", item_id=conversation.items[0].id)
        assert talk.events[-1]["item"]["content"] == [{"type": "input_audio", "transcript": None}]
        part = {"type": "input_text", "text": "a" * 100_000}
        await talk.tell("conversation.item.create", item={"type": "message", "role": "user", "content": [part]})
        assert talk.events[-1]["error"]["code"] == "conversation_too_large"
        for item in [*conversation]:
            await talk.tell("conversation.item.delete", item_id=item.id)
        assert conversation.size == 0
        await talk.tell("conversation.item.create", item={"type": "message", "role": "user", "content": [part]})
        assert talk.events[-1]["type"] == "conversation.item.done"

    run(test)


def test_who_speaks_without_end_is_heard(monkeypatch):
    monkeypatch.setattr(input_audio, "BUFFER_S", 2)

    async def test():
        talk = Talk()
        await talk.hear(("started", 0))
        await talk.hear()
        await talk.hear(("started", 48_000))  # of a new turn, behind the one that was too long
        kinds = [event["type"] for event in talk.events if event["type"].startswith("input_audio_buffer")]
        names = ["speech_started", "speech_stopped", "committed", "speech_started"]
        assert kinds == [f"input_audio_buffer.{name}" for name in names] and not talk.of("error")
        assert talk.of("input_audio_buffer.speech_stopped")[0]["audio_end_ms"] == 2_000

    run(test)


def test_what_cannot_be_decoded_is_no_item():
    async def test():
        talk = Talk()
        content = [{"type": "input_text", "text": "What is it?"}, {"type": "input_image", "image_url": "data:,"}]
        await talk.tell("conversation.item.create", item={"type": "message", "role": "user", "content": content})
        error = talk.events[-1]["error"]
        assert (error["param"], error["code"]) == ("item.content[1]", "invalid_value") and "empty" in error["message"]
        assert not talk.session.conversation.items

    run(test)


def test_a_commit_keeps_the_name_of_its_turn():
    async def test():
        talk = Talk()
        await talk.hear(("started", 0))
        await talk.tell("input_audio_buffer.commit")
        (started,), (committed,) = talk.of("input_audio_buffer.speech_started"), talk.of("input_audio_buffer.committed")
        assert started["item_id"] == committed["item_id"]

    run(test)


@pytest.mark.parametrize(
    "event",
    [
        {"type": "input_audio_buffer.commit"},
        {"type": "session.update", "session": {"type": "realtime", **NO_DETECTION}},
    ],
)
def test_nobody_is_idle_who_does_something(event):
    async def test():
        talk = Talk()
        detection = {"type": "server_vad", "idle_timeout_ms": 5_000}
        await talk.tell("session.update", session={"type": "realtime", "audio": {"input": {"turn_detection": detection}}})
        await talk.say("What is 1 + 1?")
        assert talk.session._idle is not None
        await talk.hear()
        assert talk.session._idle is not None
        await talk.tell(**event)
        assert talk.session._idle is None and not talk.of("error")

    run(test)


def test_a_draft_counts_when_it_is_taken():
    async def test():
        talk = Talk()
        await talk.hear(*TURN[:2])
        await rest()
        (answer,) = talk.server.answers
        assert not answer.wanted
        await talk.hear(TURN[2])
        await rest()
        assert answer.wanted == 1 and len(talk.server.answers) == 1
        assert talk.of("response.done")[0]["response"]["status"] == "completed"

    run(test)


def test_an_answer_of_so_many_tokens_was_said_whole():
    async def test():
        talk = Talk()
        talk.server.reason = "length"
        await talk.say("Count.")
        (item,) = [item for item in talk.session.conversation if item.role == "assistant"]
        assert item.status == "incomplete" and item.content[0].spoken.whole

    run(test)


def test_a_wrong_cut_ends_no_answer(monkeypatch):
    async def test():
        talk, goes_on = Talk(), asyncio.Event()
        speak = Scripted.__aiter__

        async def spoken(self):
            async for event in speak(self):
                yield event
                if isinstance(event, AudioChunk):
                    await goes_on.wait()

        monkeypatch.setattr(Scripted, "__aiter__", spoken)
        await talk.tell("response.create")
        await rest()
        active = talk.session.active
        cut = {"item_id": active.output[0].id, "content_index": 0}
        await talk.tell("conversation.item.truncate", **cut, audio_end_ms=81)
        assert talk.events[-1]["error"]["param"] == "audio_end_ms" and active.status == "in_progress"
        await talk.tell("conversation.item.truncate", **cut, audio_end_ms=80)
        assert active.status == "cancelled" and talk.events[-1]["type"] == "conversation.item.truncated"

    run(test)
