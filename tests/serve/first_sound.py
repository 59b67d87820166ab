"""How long the first sound of an answer takes, behind a short question and a long one, each spoken at its own speed:
`python -m tests.serve.first_sound [REPETITIONS]`.
"""

import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.serve.conftest import Running, start
from tests.serve.talking import RATE_HZ, base64_of, connected, sample, silence

LISTENING = {"input": {"turn_detection": {"type": "server_vad"}}}
QUESTION = "What number do you hear?"
PIECE = 960
SHORT_S, LONG_S = 2, 18


def questions() -> Iterator[np.ndarray]:
    """Of about 2 s and of 18 s, int16 of 24 kHz."""
    speech = sample()[6_000:-4_000]  # without the silence at its ends
    for seconds in (SHORT_S, LONG_S):
        yield np.concatenate([speech] * max(seconds * RATE_HZ // len(speech), 2))


def ask_aloud(server: Running, question: np.ndarray) -> tuple[float, Any]:
    """Seconds from the end of a question to the first sound of the answer, and the usage."""
    found, events = {}, []

    def read(connection):
        for event in connection:
            found.setdefault(event.type, time.perf_counter())
            if event.type == "response.done":
                events.append(event)
                return

    with connected(server, instructions=QUESTION, audio=LISTENING) as connection:
        reader = threading.Thread(target=read, args=(connection,))
        reader.start()
        sound = np.concatenate([question, silence(1.5)])
        began, sent = time.perf_counter(), 0
        for part in np.split(sound, range(PIECE, len(sound), PIECE)):
            sent += len(part)
            time.sleep(max(began + sent / RATE_HZ - time.perf_counter(), 0))
            connection.input_audio_buffer.append(audio=base64_of(part))
            if "response.output_audio.delta" in found:
                break
        reader.join(60)
    waited_s = found["response.output_audio.delta"] - began - len(question) / RATE_HZ
    return waited_s, events[0].response.usage


def main(repetitions: int = 5) -> None:
    with tempfile.TemporaryDirectory() as folder:
        server = start(Path(folder))
        try:
            server.wait()
            waits = [[ask_aloud(server, question)[0] for question in questions()] for _ in range(repetitions)]
        finally:
            server.process.terminate()
            server.process.wait(60)
    short_s, long_s = np.median(waits, axis=0)
    print(f"first sound after {SHORT_S} s: {short_s:.3f} s, after {LONG_S} s: {long_s:.3f} s, {long_s / short_s:.2f} times")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
