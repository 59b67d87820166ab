"""Speech as it is sent: 16-bit samples in the containers that callers ask for, streamed or whole, and its tempo.

samples --Tempo (pitch kept)--> samples --pcm16--> Encoder --> bytes
"""

import io
import math
import struct
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.filter import Graph

from ..errors import InputError
from ..outputs import SPEECH_RATE_HZ, pcm16

SPEEDS = (0.25, 4.0)
UNKNOWN = 0xFFFFFFFF
"""The size in the header of a WAV that nobody knows the end of."""
WAV_MAX_BYTES = UNKNOWN - 36
BUFFER_BYTES = 1024


@dataclass(frozen=True)
class Format:
    """container: as FFmpeg calls it, None where the samples are sent as they are; codec: the same; options: of the container."""

    content_type: str
    container: str | None = None
    codec: str = ""
    bits_per_s: int | None = None
    options: dict[str, str] = field(default_factory=dict)


FORMATS = {
    "wav": Format("audio/wav"),
    "pcm": Format("audio/pcm"),
    "pcm16": Format("audio/pcm"),
    "flac": Format("audio/flac", "flac", "flac"),
    "mp3": Format("audio/mpeg", "mp3", "libmp3lame", 128_000),
    "aac": Format("audio/aac", "adts", "aac", 96_000),
    "opus": Format("audio/ogg", "ogg", "libopus", 64_000, {"page_duration": "20000"}),  # pages of a frame: they do not wait
}
"""By the names that OpenAI has for them; `pcm16` and `pcm` are the same."""


class Encoder:
    """Encodes one sound, piece by piece.

    format: a key of `FORMATS`; rate_hz: of the samples; samples: how many there will be, or None. With samples, what is returned
    makes a file whose header tells its length; without, the header of a WAV says that it is not known. Raises `InputError` for a
    format that does not exist.
    """

    def __init__(self, format: str, rate_hz: int = SPEECH_RATE_HZ, samples: int | None = None):
        self.format, self.rate_hz = sound_format(format), rate_hz
        self._container: Any = None
        self._sent = 0
        self._sink: Any = _Sink() if samples is None else io.BytesIO()  # where it cannot go back, a muxer writes no lengths
        if format == "wav":
            self._sink.write(_wav_header(rate_hz, samples))
        elif self.format.container is not None:
            self._open()

    @property
    def content_type(self) -> str:
        """For the header of an HTTP answer."""
        return self.format.content_type

    def write(self, samples: np.ndarray) -> bytes:
        """samples float32 `[n]` in [-1, 1] -> bytes that can be sent already, possibly none."""
        pcm = pcm16(samples)
        if self._container is None:
            self._sink.write(pcm.tobytes())
        elif len(pcm):
            frame = _frame(pcm[None], "s16", self.rate_hz, self._sent)
            self._container.mux(self._stream.encode(frame))
        self._sent += len(pcm)
        return self._output()

    def finish(self) -> bytes:
        """The rest; nothing can be written any more."""
        if self._container is not None:
            self._container.mux(self._stream.encode(None))
            self._container.close()
        return self._output(True)

    def _open(self):
        options = {"flush_packets": "1", **self.format.options}
        self._container = av.open(
            self._sink, "w", self.format.container, container_options=options, buffer_size=BUFFER_BYTES
        )
        self._stream: Any = self._container.add_stream(self.format.codec, rate=self.rate_hz)
        self._stream.layout = "mono"
        if self.format.bits_per_s is not None:
            self._stream.bit_rate = self.format.bits_per_s
        self._container.start_encoding()  # a header, even for no samples

    def _output(self, last=False):
        if isinstance(self._sink, _Sink):
            return self._sink.take()
        return self._sink.getvalue() if last else b""  # lengths in its head are known at the end


def sound_format(format: str) -> Format:
    """The format of a name. Raises `InputError` for one that does not exist."""
    if format not in FORMATS:
        raise InputError(f"there is no sound format {format!r}; expected one of {', '.join(FORMATS)}")
    return FORMATS[format]


def encode(samples: np.ndarray, format: str, rate_hz: int = SPEECH_RATE_HZ) -> bytes:
    """A whole sound; samples float32 `[n]` in [-1, 1]. Raises `InputError` for a format that does not exist."""
    encoder = Encoder(format, rate_hz, len(samples))
    return encoder.write(samples) + encoder.finish()


class Tempo:
    """Changes the tempo of speech at the same pitch, piece by piece.

    speed: how many times as fast, 0.25 to 4; at 1 nothing is changed. Raises `InputError` for others.
    """

    def __init__(self, speed: float = 1.0, rate_hz: int = SPEECH_RATE_HZ):
        if not SPEEDS[0] <= speed <= SPEEDS[1]:
            raise InputError(f"speed is {speed}, expected {SPEEDS[0]} to {SPEEDS[1]:g}")
        self.rate_hz, self._samples = rate_hz, 0
        self._graph: Any = None
        if speed == 1:
            return
        self._graph = Graph()
        chain: list[Any] = [
            self._graph.add_abuffer(sample_rate=rate_hz, format="flt", layout="mono", time_base=Fraction(1, rate_hz))
        ]
        count = max(math.ceil(abs(math.log2(speed))), 1)  # one filter does 0.5 to 2; beyond, it leaves samples out
        for _ in range(count):
            chain.append(self._graph.add("atempo", f"{speed ** (1 / count):.9f}"))
        chain.append(self._graph.add("abuffersink"))
        self._graph.link_nodes(*chain).configure()

    def write(self, samples: np.ndarray) -> np.ndarray:
        """samples float32 `[n]` -> samples that can be sent already."""
        if self._graph is None or not len(samples):
            return samples
        frame = _frame(np.ascontiguousarray(samples[None], np.float32), "flt", self.rate_hz, self._samples)
        self._samples += len(samples)
        self._graph.push(frame)
        return self._pulled()

    def finish(self) -> np.ndarray:
        """The rest."""
        if self._graph is None or not self._samples:
            return np.zeros(0, np.float32)
        self._graph.push(None)
        return self._pulled()

    def _pulled(self):
        pieces = []
        while True:
            try:
                pieces.append(self._graph.pull().to_ndarray()[0])
            except (BlockingIOError, EOFError):
                return np.concatenate(pieces) if pieces else np.zeros(0, np.float32)


class _Sink:
    """A file that can only be appended to, and that `take` empties."""

    def __init__(self):
        self._pieces: list[bytes] = []

    def write(self, data):
        self._pieces.append(bytes(data))
        return len(data)

    def take(self):
        pieces, self._pieces = self._pieces, []
        return b"".join(pieces)


def _frame(samples, format, rate_hz, first):
    """samples `[1, n]`, the first of them the one of number `first`."""
    frame = av.AudioFrame.from_ndarray(samples, format, "mono")
    frame.sample_rate, frame.pts, frame.time_base = rate_hz, first, Fraction(1, rate_hz)
    return frame


def _wav_header(rate_hz, samples):
    """44 bytes of a mono WAV of 16 bit."""
    nbytes = UNKNOWN if samples is None or 2 * samples > WAV_MAX_BYTES else 2 * samples
    whole = UNKNOWN if nbytes == UNKNOWN else nbytes + 36
    head = struct.pack("<4sI4s4sIHHIIHH", b"RIFF", whole, b"WAVE", b"fmt ", 16, 1, 1, rate_hz, 2 * rate_hz, 2, 16)
    return head + struct.pack("<4sI", b"data", nbytes)
