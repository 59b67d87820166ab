"""Where speech goes: a sound file in the format that its name says, or raw PCM on standard output."""

import os
import sys
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import Self

from ..errors import InputError
from ..outputs import SPEECH_RATE_HZ, pcm16

ENCODED = {
    ".flac": ("FLAC", "PCM_16"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
    ".ogg": ("OGG", "VORBIS"),
    ".opus": ("OGG", "OPUS"),
}


class SpeechOutput:
    """Context manager; `write` appends float32 samples. target: a path, "-" for raw PCM, or None for nowhere.

    The ending of the path chooses the format: .wav (16 bit), .flac, .mp3, .ogg (Vorbis) or .opus. A new WAV grows in place:
    it is valid at every moment, so that it can be played while it is written. The other formats, and what replaces an older
    file, go to `NAME.partial` and get their name at the end, or when the program fails after some speech; an older
    file stays when nothing was. Raises `InputError` for a target that cannot be written.
    """

    def __init__(self, target: str | Path | None) -> None:
        self.target: Any = target
        self.samples = 0
        self._file: Any = None
        self._writing_to: Any = None
        if target in (None, "-"):
            return
        if Path(target).is_dir() or not Path(target).absolute().parent.is_dir():
            raise InputError(f"cannot write speech to {target}: it must be a file in a folder that exists")
        self._open = _writer_of(Path(target))

    def __enter__(self) -> Self:
        if self.target not in (None, "-"):
            path = Path(self.target)
            grows = path.suffix.lower() == ".wav" and not os.path.lexists(path)
            self._writing_to = path if grows else path.with_name(path.name + ".partial")
            self._file = self._open(self._writing_to)
        return self

    def __exit__(self, error: type[BaseException] | None, *_: Any) -> None:
        if self._file is None:
            return
        self._file.close()
        if self._writing_to == Path(self.target):
            return
        if error is not None and not self.samples:
            self._writing_to.unlink()
        else:
            os.replace(self._writing_to, self.target)

    def write(self, samples: np.ndarray) -> None:
        """samples float32 `[n]` in [-1, 1]."""
        pcm = pcm16(samples)
        self.samples += len(samples)
        if self.target == "-":
            sys.stdout.buffer.write(pcm.tobytes())
            sys.stdout.buffer.flush()
        elif self._file is not None:
            self._file.write(pcm)

    @property
    def seconds(self) -> float:
        """Seconds of speech so far."""
        return self.samples / SPEECH_RATE_HZ

    def real_time_factor(self, end: Any) -> float | None:
        """Seconds of work per second of speech, or None without speech."""
        return round(end.total_s / self.seconds, 3) if self.samples else None

    def report(self, end: Any) -> None:
        """One line on standard error about the speech and how fast it came."""
        if self.target is None:
            return
        if not self.samples:
            print("nothing was said", file=sys.stderr)
            return
        print(
            f"{self.seconds:.2f} s of speech -> {self.target}; real-time factor {self.real_time_factor(end)}, "
            f"first sound after {end.first_audio_s:.2f} s",
            file=sys.stderr,
        )


def _writer_of(path: Path) -> Callable[[Path], Any]:
    """What opens a file for the ending of `path`. Raises `InputError` for an ending that names no format."""
    ending = path.suffix.lower()
    if ending == ".wav":
        return _GrowingWave
    if ending not in ENCODED:
        raise InputError(
            f"cannot write speech to {path}: the ending is {path.suffix!r}, expected .wav, {', '.join(ENCODED)} "
            "(or '-' for raw 16-bit PCM on standard output)"
        )
    import soundfile

    kind, subtype = ENCODED[ending]
    if kind not in soundfile.available_formats() or subtype not in soundfile.available_subtypes(kind):
        raise InputError(f"cannot write speech to {path}: the libsndfile of this machine has no {kind} {subtype}; take .wav")

    def encoded(name: Path) -> soundfile.SoundFile:
        return soundfile.SoundFile(name, "w", samplerate=SPEECH_RATE_HZ, channels=1, format=kind, subtype=subtype)

    return encoded


class _GrowingWave:
    """A WAV file whose header is true after every write."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "w+b")
        self._wave = wave.open(self._file, "wb")
        self._wave.setparams((1, 2, SPEECH_RATE_HZ, 0, "NONE", "not compressed"))
        self.write(np.zeros(0, "<i2"))

    def write(self, pcm: np.ndarray) -> None:
        self._wave.writeframes(pcm.tobytes())  # brings the header up to date as well
        self._file.flush()

    def close(self) -> None:
        self._wave.close()
        self._file.close()
