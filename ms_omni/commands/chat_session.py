"""A conversation as messages of OpenAI's API, and where its spoken answers go: a player of this machine, or files."""

import asyncio
import base64
import contextlib
import json
import mimetypes
import shutil
import tempfile
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import numpy as np

from ..api_client import chunks
from ..errors import InputError
from ..files import open_regular, write_text
from ..outputs import SPEECH_RATE_HZ
from .speech_output import SpeechOutput

MEDIA = ("image", "audio", "video")
SETTINGS = {
    **dict.fromkeys(("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty"), float),
    **dict.fromkeys(("top_k", "max_tokens", "seed", "max_pixels"), int),
    "fps": float,
    "use_audio_in_video": bool,
}
"""Fields of a request that /set sets, and what they are."""
FILE_BYTES = 180 << 20
"""A body takes 256 MiB, and base64 four bytes for three."""
ROLES = ("system", "user", "assistant")
TYPES = {
    ".webp": "image/webp",
    ".flac": "audio/flac",
    ".opus": "audio/ogg",
    ".mkv": "video/x-matroska",
    ".webm": "video/webm",
}
"""That not every Python knows."""
STREAMED = {
    "aplay": ("-q", "-t", "raw", "-f", "S16_LE", "-r", f"{SPEECH_RATE_HZ}", "-c", "1", "-"),
    "paplay": ("--raw", "--format=s16le", f"--rate={SPEECH_RATE_HZ}", "--channels=1"),
    "ffplay": ("-loglevel", "quiet", "-nodisp", "-autoexit", "-f", "s16le", "-sample_rate", f"{SPEECH_RATE_HZ}", "-i", "-"),
}
"""Programs that play what they read, while it comes, and their arguments."""
WHOLE = "afplay"
"""Plays files."""
ORDER = ("aplay", "paplay", WHOLE, "ffplay")


class Session:
    """client, base: of a server; model: its name there; system: a message that comes first; messages: the conversation after it;
    shown: parts for the next question; question: one that has no answer yet; voice: None for answers in text.
    """

    def __init__(self, client: Any, base: str, model: str, system: str | None = None):
        self.client, self.base, self.model, self.system = client, base, model, system
        self.messages: list[dict[str, Any]] = []
        self.shown: list[dict[str, Any]] = []
        self.question: dict[str, Any] | None = None
        self.settings: dict[str, Any] = {}
        self.voice = "Ethan"
        self.speaks = False

    def show(self, kind: str, where: str) -> None:
        """Puts a picture, sound or video before the next question. Raises `InputError` for a file that cannot be read."""
        self.shown.append(part(kind, where))

    def ask(self, text: str) -> None:
        """Makes the next question, of what is shown and a text."""
        content = [*self.shown, {"type": "text", "text": text}] if self.shown else text
        self.question, self.shown = {"role": "user", "content": content}, []

    def again(self) -> None:
        """Makes the last question the next one, and forgets its answer. Raises `InputError` where there was none."""
        if self.question is not None:
            return
        asked = [number for number, message in enumerate(self.messages) if message["role"] == "user"]
        if not asked:
            raise InputError("nothing was asked yet")
        self.question, self.messages = self.messages[asked[-1]], self.messages[: asked[-1]]

    def clear(self) -> None:
        """Forgets the conversation and the media for the next question."""
        self.messages, self.shown, self.question = [], [], None

    async def answer(self, output: Any) -> None:
        """Sends the question, and gives `output` what comes: `output.thought(text)`, `output.text(text)`, `output.sound(pcm16 bytes)`.

        What came is stored, whatever ends it; a question without any answer stays `question`. Raises as `chunks` does.
        """
        answer = ""
        async with aclosing(chunks(self.client, self.base, self._body())) as found:
            try:
                async for chunk in found:
                    for choice in chunk.get("choices") or ():
                        answer += _pass_on(choice.get("delta") or {}, output)
            finally:
                if answer:
                    self.messages += [self.question, {"role": "assistant", "content": answer}]
                    self.question = None

    def _body(self) -> dict[str, Any]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        speech = {"modalities": ["text", "audio"], "audio": {"voice": self.voice, "format": "pcm16"}} if self.speaks else {}
        messages = [*system, *self.messages, self.question]
        return {"model": self.model, "messages": messages, "stream": True, **speech, **self.settings}

    def set(self, name: str, value: str) -> None:
        """Sets a field of all requests to come; "off" leaves it to the server. Raises `InputError`."""
        if name not in SETTINGS:
            raise InputError(f"there is no setting {name!r}; there are {', '.join(SETTINGS)}")
        if value == "off":
            self.settings.pop(name, None)
            return
        kind, words = SETTINGS[name], {"true": True, "false": False}
        try:
            self.settings[name] = words[value.lower()] if kind is bool else kind(value)
        except (ValueError, KeyError):
            kinds = {float: "a number", int: "a whole number", bool: "true or false"}
            raise InputError(f"{name} takes {kinds[kind]}, or 'off' for the server's own, got {value!r}") from None

    def save(self, path: str) -> None:
        """Writes all messages as JSON, media in them. Raises `InputError`."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        try:
            write_text(path, json.dumps([*system, *self.messages], ensure_ascii=False, indent=1) + "\n")
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror or error}") from None

    def load(self, path: str) -> None:
        """Goes on with the messages of a file. Raises `InputError` for one that holds none."""
        try:
            with open_regular(path) as file:
                messages = json.loads(file.read())
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror or error}") from None
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is not JSON: {error}") from None
        if not isinstance(messages, list) or not all(_is_message(message) for message in messages):
            raise InputError(f'{path}: expected a list of {{"role": "system"|"user"|"assistant", "content": ...}}')
        first = messages[0] if messages and messages[0]["role"] == "system" else None
        if first is not None and not isinstance(first["content"], str):
            raise InputError(f"{path}: the content of its system message has to be a text")
        self.clear()
        self.system, self.messages = first and first["content"], messages[first is not None :]


def part(kind: str, where: str) -> dict[str, Any]:
    """A part of a message: what is behind an address, or in a file. Raises `InputError` for a file that cannot be read."""
    if where.startswith(("http://", "https://", "data:")):
        return {"type": f"{kind}_url", f"{kind}_url": {"url": where}}
    path = Path(where).expanduser()
    try:
        with open_regular(path) as file:
            content = file.read(FILE_BYTES + 1)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    if not content or len(content) > FILE_BYTES:
        raise InputError(
            f"{path} " + ("is empty" if not content else f"has over {FILE_BYTES >> 20} MiB, which no request takes")
        )
    data, ending = base64.b64encode(content).decode(), path.suffix.lower()
    if kind == "audio" and ending in (".wav", ".mp3"):
        return {"type": "input_audio", "input_audio": {"data": data, "format": ending[1:]}}
    type = TYPES.get(ending) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return {"type": f"{kind}_url", f"{kind}_url": {"url": f"data:{type};base64,{data}"}}


def _pass_on(delta: dict[str, Any], output: Any) -> str:
    """Gives `output` what a delta holds; returns the text of the answer in it."""
    audio = delta.get("audio") or {}
    text = delta.get("content") or audio.get("transcript") or ""
    if thought := delta.get("reasoning_content"):
        output.thought(thought)
    if text:
        output.text(text)
    if data := audio.get("data"):
        output.sound(base64.b64decode(data))
    return text


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and message.get("role") in ROLES and isinstance(message.get("content"), (str, list))


def player() -> str:
    """The first program here that plays sound. Raises `InputError` where there is none."""
    for name in ORDER:
        if shutil.which(name):
            return name
    raise InputError(f"nothing here plays sound (looked for {', '.join(ORDER)}); '/speak FILE.wav' writes it to files")


class Played:
    """One answer, played by a program while it comes; an async context manager that ends when all has been played.

    Raises `InputError` at its end when the program failed.
    """

    def __init__(self, program: str):
        self.program, self._buffer = program, bytearray()
        self._process: Any = None

    async def __aenter__(self) -> "Played":
        if self.program != WHOLE:
            self._process = await _start(self.program, *STREAMED[self.program], stdin=asyncio.subprocess.PIPE)
        return self

    def write(self, pcm: bytes) -> None:
        """Samples of 16 bit; does not wait until they are played."""
        if self._process is None:
            self._buffer += pcm
        elif self._process.returncode is None:
            self._process.stdin.write(pcm)

    async def __aexit__(self, error: Any, *_: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            try:
                if error is None and self._buffer:
                    file = Path(folder) / "answer.wav"
                    with SpeechOutput(file) as output:
                        output.write(samples_of(self._buffer))
                    self._process = await _start(self.program, str(file))
                if self._process is not None:
                    self._check(error is None and await self._ended())
            finally:
                if self._process is not None and self._process.returncode is None:
                    with contextlib.suppress(ProcessLookupError):
                        self._process.terminate()
                    await self._process.wait()

    async def _ended(self) -> int:
        if self._process.stdin is not None:
            self._process.stdin.close()
        return await self._process.wait()

    def _check(self, code: int) -> None:
        if code:
            raise InputError(f"{self.program} cannot play here (it ended with {code}); '/speak FILE.wav' writes files")


class Written:
    """One answer in a file of its own; an async context manager, which reports at its end what is in it."""

    def __init__(self, path: Path, notify: Callable[[str], None]):
        self._path, self._notify = path, notify
        self._output = SpeechOutput(path)

    async def __aenter__(self) -> "Written":
        self._output.__enter__()
        return self

    def write(self, pcm: bytes) -> None:
        """Samples of 16 bit."""
        self._output.write(samples_of(pcm))

    async def __aexit__(self, *error: Any) -> None:
        self._output.__exit__(*error)
        self._notify(f"{self._output.seconds:.2f} s of speech -> {self._path}")


def free_name(path: Path) -> Path:
    """`path`, or the first of path-2, path-3, ... where there is a file of that name."""
    free, number = path, 1
    while free.exists():
        number += 1
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return free


def samples_of(pcm: bytes | bytearray) -> np.ndarray:
    """float32 `[n]` in [-1, 1], of samples of 16 bit."""
    return np.frombuffer(bytes(pcm), "<i2").astype(np.float32) / 32767


async def _start(*command: str, **options: Any) -> asyncio.subprocess.Process:
    """A process that ctrl-C at the terminal does not reach; the caller ends it."""
    return await asyncio.create_subprocess_exec(
        *command, start_new_session=True, stderr=asyncio.subprocess.DEVNULL, **options
    )
