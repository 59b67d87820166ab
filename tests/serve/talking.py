"""What the tests of realtime conversations share: a client, sound to send, and the documented order of events."""

import base64
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import soundfile
import soxr
from openai import OpenAI

from tests.serve.conftest import KEY, MINIATURE, Running

RATE_HZ = 24_000
LIMIT_S = 120
"""For a whole conversation."""
PUSH_TO_TALK = {"type": "realtime", "audio": {"input": {"turn_detection": None}}}
OPENED = [
    "response.created",
    "rate_limits.updated",
    "response.output_item.added",
    "conversation.item.added",
    "response.content_part.added",
]
CLOSED = ["response.content_part.done", "conversation.item.done", "response.output_item.done", "response.done"]
SPOKEN = [
    *OPENED,
    *("response.output_audio_transcript.delta", "response.output_audio.delta"),
    *("response.output_audio.done", "response.output_audio_transcript.done"),
    *CLOSED,
]
WRITTEN = [*OPENED, "response.output_text.delta", "response.output_text.done", *CLOSED]
COMMITTED = ["input_audio_buffer.committed", "conversation.item.added", "conversation.item.done"]
HEARD = ["input_audio_buffer.speech_started", "input_audio_buffer.speech_stopped", *COMMITTED]
DELTAS = ("response.output_audio.delta", "response.output_audio_transcript.delta", "response.output_text.delta")


def client(server: Running, key: str = KEY) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key=key)


@contextmanager
def connected(server: Running, **settings: Any) -> Iterator[Any]:
    """A conversation of `openai`'s client with push to talk, its first two events behind it."""
    with client(server).realtime.connect(model="miniature") as connection:
        hung = threading.Timer(LIMIT_S, connection.close)
        hung.start()
        assert connection.recv().type == "session.created"
        connection.session.update(session={**PUSH_TO_TALK, **settings})
        assert connection.recv().type == "session.updated"
        try:
            yield connection
        finally:
            hung.cancel()


def sample(name: str = "digits.wav") -> np.ndarray:
    """A spoken number, int16 of 24 kHz."""
    samples, rate_hz = soundfile.read(MINIATURE / "samples" / name, dtype="float32")
    return np.round(soxr.resample(samples, rate_hz, RATE_HZ) * 32767).astype("<i2")


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * RATE_HZ), "<i2")


def said(*parts: np.ndarray) -> np.ndarray:
    """With silence around it that ends a turn."""
    return np.concatenate([silence(0.5), *parts, silence(0.8)])


def base64_of(samples: np.ndarray) -> str:
    return base64.b64encode(samples.tobytes()).decode()


def samples_of(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), "<i2")


def send(connection: Any, samples: np.ndarray, piece: int = 2400) -> None:
    """As a microphone does, but faster."""
    for start in range(0, len(samples), piece):
        connection.input_audio_buffer.append(audio=base64_of(samples[start : start + piece]))


def ask(connection: Any, text: str) -> None:
    """A question in writing; its two events are read."""
    connection.conversation.item.create(
        item={"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
    )
    assert [connection.recv().type for _ in range(2)] == ["conversation.item.added", "conversation.item.done"]


def until(connection: Any, *kinds: str) -> list[Any]:
    """Events up to the first of these kinds, which is the last."""
    found = []
    for event in connection:
        found.append(event)
        if event.type in kinds:
            return found
    raise AssertionError(f"the socket was closed before {kinds}")


def answer(connection: Any) -> list[Any]:
    return until(connection, "response.done")


def kinds(events: Sequence[Any]) -> list[str]:
    """Their types in the order of first appearance of deltas; all others as often as they are."""
    found: list[str] = []
    for event in events:
        if not (event.type in DELTAS and event.type in found):
            found.append(event.type)
    return found


def text_of(events: Sequence[Any]) -> str:
    """What was answered, once the deltas are seen to be the whole."""
    (done,) = [e for e in events if e.type in ("response.output_audio_transcript.done", "response.output_text.done")]
    whole = done.transcript if done.type.endswith("transcript.done") else done.text
    assert whole == "".join(e.delta for e in events if e.type in DELTAS[1:])
    return whole


def sound_of(events: Sequence[Any]) -> np.ndarray:
    return np.concatenate([silence(0), *(samples_of(e.delta) for e in events if e.type == "response.output_audio.delta")])


def error_of(connection: Any) -> Any:
    event = connection.recv()
    assert event.type == "error", event
    return event.error


def sum_of_two_and_three(asking: OpenAI) -> str:
    """The answer in a realtime conversation in writing, from whatever stands before a server."""
    with asking.realtime.connect(model="miniature") as connection:
        assert connection.recv().type == "session.created"
        connection.session.update(session={"type": "realtime", "output_modalities": ["text"]})
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "What is 2 + 3?"}]}
        connection.conversation.item.create(item=item)
        connection.response.create()
        for event in connection:
            if event.type == "response.done":
                return event.response.output[0].content[0].text
    raise AssertionError("the socket was closed before an answer")
