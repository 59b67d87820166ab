"""A conversation as messages of OpenAI's API: what was said, what the next question shows, and how answers are to be."""

import base64
import json
import mimetypes
from contextlib import aclosing
from pathlib import Path
from typing import Any

from ..api_client import chunks
from ..errors import InputError
from ..files import open_regular, write_text

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


class Session:
    """client, base: of a server; model: its name there; system: a message that comes first; messages: what was said behind it;
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
        """Forgets what was said and shown."""
        self.messages, self.shown, self.question = [], [], None

    async def answer(self, heard: Any) -> None:
        """Asks the question, and tells `heard` what comes: `heard.thought(text)`, `heard.text(text)`, `heard.sound(pcm16 bytes)`.

        What came is kept, whatever ends it; a question that nothing was said to stays `question`. Raises as `chunks` does.
        """
        said = ""
        async with aclosing(chunks(self.client, self.base, self._body())) as found:
            try:
                async for chunk in found:
                    for choice in chunk.get("choices") or ():
                        said += _hear(choice.get("delta") or {}, heard)
            finally:
                if said:
                    self.messages += [self.question, {"role": "assistant", "content": said}]
                    self.question = None

    def _body(self):
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


def _hear(delta, heard):
    """Tells what a delta has; returns what was said with it."""
    audio = delta.get("audio") or {}
    said = delta.get("content") or audio.get("transcript") or ""
    if thought := delta.get("reasoning_content"):
        heard.thought(thought)
    if said:
        heard.text(said)
    if data := audio.get("data"):
        heard.sound(base64.b64decode(data))
    return said


def _is_message(message):
    return isinstance(message, dict) and message.get("role") in ROLES and isinstance(message.get("content"), (str, list))
