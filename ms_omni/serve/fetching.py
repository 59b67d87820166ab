"""Media at addresses, downloaded before a conversation is decoded: who sends slowly holds up those alone who wait for him."""

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

from ..errors import MediaError
from ..input.access import GIB, AccessPolicy
from ..input.load import open_source
from ..input.sources import DownloadDeadline

THREADS = 16
MOST_BYTES = GIB
"""Of one conversation's downloads together."""
WORDS = {"image": "picture", "audio": "sound", "video": "video"}


class Fetcher:
    """Threads that download; they have no processors, so there can be many."""

    def __init__(self, policy: AccessPolicy):
        self.policy = policy
        self._pool = ThreadPoolExecutor(THREADS, "fetch")
        self._waiting: set[DownloadDeadline] = set()

    async def fetched(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """A conversation with what its http(s) addresses lead to, within `policy.total_s` for all of them, the wait for a thread
        included. Downloads end when the caller is cancelled.

        Raises `MediaError` that says `where`.
        """
        messages = [dict(message) for message in messages]
        if not any(_address(part) for message in messages for part in _parts(message)):
            return messages
        deadline = DownloadDeadline(self.policy.total_s)
        self._waiting.add(deadline)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, partial(self._all, messages, deadline))
        finally:
            deadline.cancel()
            self._waiting.discard(deadline)

    def close(self) -> None:
        """Ends all downloads."""
        for deadline in tuple(self._waiting):
            deadline.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _all(self, messages, deadline):
        left = MOST_BYTES
        for number, message in enumerate(messages):
            parts = _parts(message)
            for place, part in enumerate(parts):
                kind = _address(part)
                if kind is None:
                    continue
                most = {
                    name: min(left, getattr(self.policy, name)) for name in ("image_bytes", "audio_bytes", "video_bytes")
                }
                try:
                    with deadline.in_force():
                        source = open_source(part[kind], WORDS[kind], replace(self.policy, **most))
                except MediaError as error:
                    error.where = f"message {number}, item {place} ({kind})"
                    raise
                left -= source.size_bytes()
                parts = [*parts[:place], {**part, kind: source}, *parts[place + 1 :]]
            if parts:
                message["content"] = parts
        return messages


def _parts(message):
    content = message.get("content")
    return content if isinstance(content, list) else []


def _address(part):
    """The kind of a part that is at an http(s) address, else None."""
    kind = part.get("type")
    value = part.get(kind) if kind in WORDS else None
    found = isinstance(value, str) and value[:1000].strip().lower().startswith(("http://", "https://"))
    return kind if found else None
