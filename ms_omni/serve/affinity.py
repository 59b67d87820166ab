"""Which of several engines a request should go to: the one whose cache has its conversation."""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from .protocol import ApiError, check_separators

_AUDIO_ID = re.compile(r"audio_([A-Za-z0-9]+)_[0-9a-f]+")


@dataclass(frozen=True)
class Affinity:
    """key: the same for all turns of a conversation; None goes anywhere. instance: the engine that must answer, if there is one."""

    key: str | None = None
    instance: str | None = None


ANY_ENGINE = Affinity()


def affinity_of(body: bytes) -> Affinity:
    """Of a chat request's JSON. What is not understood goes anywhere, and that engine says what is wrong with it.

    What stays the same as a conversation goes on is its model, its tools and its messages up to the first of the user; a caller may
    also name the conversation (`prompt_cache_key`). The id of a spoken answer leads to the engine that stores its transcript.
    """
    try:
        check_separators(body)
        request = json.loads(body)
        messages = [message for message in request["messages"] if isinstance(message, dict)]
    except (ValueError, TypeError, LookupError, RecursionError, ApiError):
        return ANY_ENGINE
    name = request.get("prompt_cache_key")
    same = [name] if name else [request.get("user"), request.get("tools"), list(_beginning(messages))]
    text = json.dumps([request.get("model"), *same], sort_keys=True)
    return Affinity(hashlib.sha256(text.encode()).hexdigest(), next(_instances(messages), None))


def _beginning(messages) -> Iterator[Any]:
    for message in messages:
        yield message
        if message.get("role") == "user":
            return


def _instances(messages) -> Iterator[str]:
    """Engines that store transcripts of the conversation, the latest first."""
    for message in reversed(messages):
        audio = message.get("audio")
        id = audio.get("id") if isinstance(audio, dict) else None
        match = _AUDIO_ID.fullmatch(id) if isinstance(id, str) else None
        if match:
            yield match[1]


def ranked(key: str, names: Sequence[str]) -> list[str]:
    """Engines by how much a conversation prefers them (rendezvous hashing): one that comes or goes moves only its own."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{key} {name}".encode()).digest())
