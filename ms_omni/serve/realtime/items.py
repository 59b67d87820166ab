"""What was said in a conversation: its items in order, and the messages that a model reads."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from ...outputs import SPEECH_RATE_HZ
from ..chat_request import LOW_PIXELS, call_arguments
from ..protocol import invalid
from .audio import Sound, encoded, samples_of
from .events import GivenItem, new_id
from .settings import Format

ROOT = "root"
MAX_BYTES, ITEM_BYTES = 256 << 20, 1 << 10
"""Of a conversation, which is forty minutes of a user's speech, and of an item without its contents."""


@dataclass(eq=False)
class Content:
    """A part of a message. text: also the transcript of sound, None where there is none; spoken: of an answer with sound, how far it
    was said.
    """

    type: str
    text: str | None = None
    sound: Sound | None = None
    image_url: str | None = None
    detail: str | None = None
    spoken: Spoken | None = None

    def shown(self, format: Format | None = None) -> dict[str, Any]:
        """As clients see it; with a format, sound as well."""
        result: dict[str, Any] = {"type": self.type}
        result["transcript" if self.type.endswith("_audio") else "text"] = self.text
        if self.type == "input_image":
            result = {"type": self.type, "image_url": self.image_url, "detail": self.detail or "auto"}
        if format is not None and self.sound is not None:
            result["audio"] = encoded(self.sound.at(format.rate_hz), format)
        return result

    @property
    def size(self) -> int:
        """Bytes, about."""
        return len(self.text or "") + len(self.image_url or "") + (0 if self.sound is None else self.sound.size)

    @property
    def lost(self) -> bool:
        """Whether it was sound that has been dropped, and there is no transcript."""
        return self.type == "input_audio" and self.sound is None and not self.text

    def message(self) -> dict[str, Any]:
        """As a processor reads it."""
        if self.sound is not None and self.type == "input_audio":
            return {"type": "audio", "audio": self.sound.for_model}
        if self.type == "input_image":
            pixels = {"max_pixels": LOW_PIXELS} if self.detail == "low" else {}
            return {"type": "image", "image": self.image_url, **pixels}
        return {"type": "text", "text": self.text or ""}


@dataclass(eq=False)
class Spoken:
    """How an answer was spoken: pieces of its text, one per token; samples of 24 kHz so far; whole: no more come."""

    pieces: list[str] = field(default_factory=list)
    samples: int = 0
    whole: bool = False

    FRAME_MS = 80
    TOKENS_PER_S = 3.0
    """Of speech that was cancelled, so that nobody knows how long it would have been."""

    @property
    def duration_ms(self) -> int:
        """Of the sound so far."""
        return self.samples * 1000 // SPEECH_RATE_HZ

    def text_until(self, end_ms: int) -> str:
        """The text that was spoken by then, in whole tokens."""
        return "".join(self.pieces[: self._count(end_ms)])

    def cut(self, end_ms: int) -> Spoken:
        """What is left of it."""
        return Spoken(self.pieces[: self._count(end_ms)], end_ms * SPEECH_RATE_HZ // 1000, True)

    def _count(self, end_ms):
        """Tokens that were spoken by then.

        The talker reads a token with each frame and says it some time after. So the letters of a whole answer are taken to be spread
        evenly over its sound, and one that was cancelled to be spoken at a usual pace; what the talker has not read it cannot have
        said.
        """
        if self.whole and end_ms >= self.duration_ms:
            return len(self.pieces)
        letters = [0, *accumulate(map(len, self.pieces))]
        if self.whole:
            said = sum(count * self.duration_ms <= end_ms * letters[-1] for count in letters[1:])
        else:
            said = int(end_ms * self.TOKENS_PER_S / 1000)
        return min(said, end_ms // self.FRAME_MS, len(self.pieces))


@dataclass(eq=False)
class Item:
    """A message, a call of a function, or its result. size: bytes, as they were counted when it was added."""

    id: str
    type: str
    status: str = "completed"
    role: str | None = None
    content: list[Content] = field(default_factory=list)
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | None = None
    size: int = 0

    def shown(self, format: Format | None = None) -> dict[str, Any]:
        """As clients see it; with a format, sound as well."""
        result: dict[str, Any] = {"id": self.id, "object": "realtime.item", "type": self.type, "status": self.status}
        if self.type == "message":
            return result | {"role": self.role, "content": [part.shown(format) for part in self.content]}
        if self.type == "function_call":
            return result | {"call_id": self.call_id, "name": self.name, "arguments": self.arguments}
        return result | {"call_id": self.call_id, "output": self.output}


def item_from(given: GivenItem, format: Format) -> Item:
    """An item as a client gives it, its sound in the format of the session's input. Raises `ApiError`."""
    content = [
        Content(
            part.type,
            part.transcript if part.type.endswith("_audio") else part.text,
            None if part.audio is None else Sound(samples_of(part.audio, format), format.rate_hz),
            part.image_url,
            part.detail,
        )
        for part in given.content or ()
    ]
    call_id = given.call_id or (new_id("call") if given.type == "function_call" else None)
    id = given.id or new_id("item")
    return Item(id, given.type, "completed", given.role, content, call_id, given.name, given.arguments, given.output)


class Conversation:
    """Items in their order, by their ids. first: the one with which prompts begin, where all items would be too long."""

    def __init__(self) -> None:
        self.id = new_id("conv")
        self.items: list[Item] = []
        self.first: Item | None = None
        self.size = 0

    def __iter__(self) -> Iterator[Item]:
        return iter(self.items)

    def add(self, item: Item, after: str | None = None) -> str | None:
        """Puts an item behind another one, "root": before all, None: behind all. Returns the id of the one before it. Raises `ApiError`."""
        if any(other.id == item.id for other in self.items):
            raise invalid(f"there is an item {item.id!r} already", "item.id", "item_already_exists")
        index = len(self.items) if after is None else 0 if after == ROOT else self._index(after, "previous_item_id") + 1
        self.items.insert(index, item)
        item.size = _size(item)
        self.size += item.size
        return self.items[index - 1].id if index else None

    def before(self, item: Item) -> str | None:
        """The id of the one before it."""
        index = next((number for number, other in enumerate(self.items) if other is item), 0)
        return self.items[index - 1].id if index else None

    def get(self, id: str, code: str = "item_not_found") -> Item:
        """Raises `ApiError`, with a code of OpenAI's for what the item is wanted for."""
        return self.items[self._index(id, "item_id", code)]

    def delete(self, id: str) -> None:
        """Raises `ApiError`."""
        index = self._index(id, "item_id")
        item = self.items.pop(index)
        self.size -= item.size
        if item is self.first:
            self.first = next((other for other in self.items[index:] if other.role == "user"), None)

    def check_room(self, item: Item) -> None:
        """Raises `ApiError` where there is none for one more item."""
        if self.size + _size(item) > MAX_BYTES:
            raise invalid(
                f"the items of a conversation may have {MAX_BYTES} bytes together; delete some that are not needed any more",
                "item",
                "conversation_too_large",
            )

    def drop_audio(self) -> None:
        """Makes room by dropping the oldest sounds, but not the last item's. Their transcripts stay."""
        for item in self.items[:-1]:
            for part in item.content:
                if self.size <= MAX_BYTES:
                    return
                if part.sound is not None:
                    item.size, self.size = item.size - part.sound.size, self.size - part.sound.size
                    part.sound = None

    def begin_with(self, item: Item) -> None:
        """From now on prompts leave out the turns before this one."""
        self.first = item

    def recent(self) -> list[Item]:
        """The items of a prompt."""
        return since(self.items, self.first)

    def _index(self, id, param, code="item_not_found"):
        for index, item in enumerate(self.items):
            if item.id == id:
                return index
        raise invalid(f"there is no item {id!r:.140} in this conversation", param, code)


def _size(item):
    return ITEM_BYTES + len(item.arguments or "") + len(item.output or "") + sum(part.size for part in item.content)


def since(items: Sequence[Item], first: Item | None) -> list[Item]:
    """The items from one on, with all of the system's; all, if it is not among them."""
    start = next((index for index, item in enumerate(items) if item is first), 0)
    return [item for index, item in enumerate(items) if index >= start or item.role == "system"]


def messages(instructions: str, items: Iterable[Item]) -> list[dict[str, Any]]:
    """The conversation for the processor. What an answer wrote and called is one message; empty answers are left out."""
    result: list[dict[str, Any]] = [{"role": "system", "content": instructions}] if instructions else []
    for item in items:
        if item.type == "function_call_output":
            result.append({"role": "tool", "content": item.output, "tool_call_id": item.call_id})
        elif item.type == "function_call":
            if not (result and result[-1]["role"] == "assistant"):
                result.append({"role": "assistant", "content": ""})
            call = {"name": item.name, "arguments": call_arguments(item.arguments)}
            result[-1].setdefault("tool_calls", []).append({"id": item.call_id, "type": "function", "function": call})
        elif item.role != "user":
            text = "".join(part.text or "" for part in item.content)
            if text:
                result.append({"role": item.role, "content": text})
        elif parts := [part.message() for part in item.content if not part.lost]:
            result.append({"role": "user", "content": parts})
    return result
