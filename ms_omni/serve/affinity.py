"""Which of several engines a request should go to: the one whose cache knows its conversation."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .bodies import check_separators
from .errors import ApiError

_SPOKEN = re.compile(r"audio_([A-Za-z0-9]+)_[0-9a-f]+")


@dataclass(frozen=True)
class Place:
    """key: the same for all turns of a conversation; None goes anywhere. instance: the engine that must answer, if there is one."""

    key: str | None = None
    instance: str | None = None


ANYWHERE = Place()


def place_of(body: bytes) -> Place:
    """Of a chat request's JSON. What is not understood goes anywhere, and that engine says what is wrong with it.

    What stays the same as a conversation goes on is its model, its tools and its messages up to the first of the user; who names
    the conversation himself (`prompt_cache_key`) is believed. The id of a spoken answer leads to the engine that keeps it.
    """
    try:
        check_separators(body)
        asked = json.loads(body)
        messages = [message for message in asked["messages"] if isinstance(message, dict)]
    except (ValueError, TypeError, LookupError, RecursionError, ApiError):
        return ANYWHERE
    named = asked.get("prompt_cache_key")
    same = [named] if named else [asked.get("user"), asked.get("tools"), list(_beginning(messages))]
    text = json.dumps([asked.get("model"), *same], sort_keys=True)
    return Place(hashlib.sha256(text.encode()).hexdigest(), next(_instances(messages), None))


def _beginning(messages) -> Iterator[Any]:
    for message in messages:
        yield message
        if message.get("role") == "user":
            return


def _instances(messages) -> Iterator[str]:
    """Engines that keep spoken answers of the conversation, the latest first."""
    for message in reversed(messages):
        audio = message.get("audio")
        id = audio.get("id") if isinstance(audio, dict) else None
        found = _SPOKEN.fullmatch(id) if isinstance(id, str) else None
        if found:
            yield found[1]


def ranked(key: str, names: Sequence[str]) -> list[str]:
    """Engines by how much a conversation prefers them (rendezvous hashing): one that comes or goes moves only its own."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{key} {name}".encode()).digest())
