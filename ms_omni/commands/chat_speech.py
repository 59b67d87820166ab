"""Where the answers of a conversation are heard: a player of this machine, or files."""

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from .speech_output import SAMPLE_RATE_HZ, SpeechOutput

STREAMED = {
    "aplay": ("-q", "-t", "raw", "-f", "S16_LE", "-r", f"{SAMPLE_RATE_HZ}", "-c", "1", "-"),
    "paplay": ("--raw", "--format=s16le", f"--rate={SAMPLE_RATE_HZ}", "--channels=1"),
    "ffplay": ("-loglevel", "quiet", "-nodisp", "-autoexit", "-f", "s16le", "-sample_rate", f"{SAMPLE_RATE_HZ}", "-i", "-"),
}
"""Programs that play what they read, while it comes, and their arguments."""
WHOLE = "afplay"
"""Plays files."""
ORDER = ("aplay", "paplay", WHOLE, "ffplay")


def player() -> str:
    """The first program here that plays sound. Raises `InputError` where there is none."""
    for name in ORDER:
        if shutil.which(name):
            return name
    raise InputError(f"nothing here plays sound (looked for {', '.join(ORDER)}); '/speak FILE.wav' writes it to files")


class Played:
    """One answer, heard by a program while it comes; an async context manager that ends when all has been heard.

    Raises `InputError` at its end when the program failed.
    """

    def __init__(self, program: str):
        self.program, self._kept = program, bytearray()
        self._process: Any = None

    async def __aenter__(self) -> "Played":
        if self.program != WHOLE:
            self._process = await _start(self.program, *STREAMED[self.program], stdin=asyncio.subprocess.PIPE)
        return self

    def write(self, pcm: bytes) -> None:
        """Samples of 16 bit; does not wait until they are heard."""
        if self._process is None:
            self._kept += pcm
        elif self._process.returncode is None:
            self._process.stdin.write(pcm)

    async def __aexit__(self, error: Any, *_: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            try:
                if error is None and self._kept:
                    file = Path(folder) / "answer.wav"
                    with SpeechOutput(file) as output:
                        output.write(samples_of(self._kept))
                    self._process = await _start(self.program, str(file))
                if self._process is not None:
                    self._heard(error is None and await self._ended())
            finally:
                if self._process is not None and self._process.returncode is None:
                    with contextlib.suppress(ProcessLookupError):
                        self._process.terminate()
                    await self._process.wait()

    async def _ended(self):
        if self._process.stdin is not None:
            self._process.stdin.close()
        return await self._process.wait()

    def _heard(self, code):
        if code:
            raise InputError(f"{self.program} cannot play here (it ended with {code}); '/speak FILE.wav' writes files")


class Written:
    """One answer in a file of its own; an async context manager, which says at its end what is in it."""

    def __init__(self, path: Path, tell: Callable[[str], None]):
        self._path, self._tell = path, tell
        self._output = SpeechOutput(path)

    async def __aenter__(self) -> "Written":
        self._output.__enter__()
        return self

    def write(self, pcm: bytes) -> None:
        """Samples of 16 bit."""
        self._output.write(samples_of(pcm))

    async def __aexit__(self, *error: Any) -> None:
        self._output.__exit__(*error)
        self._tell(f"{self._output.seconds:.2f} s of speech -> {self._path}")


def free_name(path: Path) -> Path:
    """`path`, or the first of path-2, path-3, ... where there is a file of that name."""
    found, number = path, 1
    while found.exists():
        number += 1
        found = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return found


def samples_of(pcm: bytes | bytearray) -> np.ndarray:
    """float32 `[n]` in [-1, 1], of samples of 16 bit."""
    return np.frombuffer(bytes(pcm), "<i2").astype(np.float32) / 32767


async def _start(*command, **options):
    """A process that ctrl-C at the terminal does not reach: whoever started it ends it."""
    return await asyncio.create_subprocess_exec(
        *command, start_new_session=True, stderr=asyncio.subprocess.DEVNULL, **options
    )
