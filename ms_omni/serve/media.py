"""Media of requests: downloads that hold up nobody else, and features of sounds that are the same in every turn."""

import asyncio
import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from ..errors import MediaError
from ..input.access import GIB, AccessPolicy
from ..input.load import open_source
from ..input.sources import DownloadDeadline

DOWNLOAD_THREADS = 16
MAX_DOWNLOAD_BYTES = GIB
"""Of one conversation's downloads together."""
KINDS = {"image": "picture", "audio": "sound", "video": "video"}
FEATURE_BYTES = 64 << 20
"""Of twenty minutes of sound."""


class Downloader:
    """Downloads media at addresses before a conversation is decoded, in threads of its own: a slow sender keeps only those waiting
    who have asked for him.
    """

    def __init__(self, policy: AccessPolicy):
        self.policy = policy
        self._pool = ThreadPoolExecutor(DOWNLOAD_THREADS, "fetch")
        self._running: set[DownloadDeadline] = set()

    async def downloaded(self, messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """A conversation with what its http(s) addresses lead to, within `policy.total_s` for all of them, the wait for a thread
        included. Downloads end when the caller is cancelled.

        Raises `MediaError` that says `where`.
        """
        messages = [dict(message) for message in messages]
        if not any(_remote_kind(part) for message in messages for part in _parts(message)):
            return messages
        deadline = DownloadDeadline(self.policy.total_s)
        self._running.add(deadline)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, partial(self._download, messages, deadline))
        finally:
            deadline.cancel()
            self._running.discard(deadline)

    def close(self) -> None:
        """Ends all downloads."""
        for deadline in tuple(self._running):
            deadline.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _download(self, messages, deadline):
        left = MAX_DOWNLOAD_BYTES
        for number, message in enumerate(messages):
            parts = list(_parts(message))
            for index, part in enumerate(parts):
                kind = _remote_kind(part)
                if kind is None:
                    continue
                limits = {
                    name: min(left, getattr(self.policy, name)) for name in ("image_bytes", "audio_bytes", "video_bytes")
                }
                try:
                    with deadline.in_force():
                        source = open_source(part[kind], KINDS[kind], replace(self.policy, **limits))
                except MediaError as error:
                    error.where = f"message {number}, item {index} ({kind})"
                    raise
                left -= source.size_bytes()
                parts[index] = {**part, kind: source}
            if parts:
                message["content"] = parts
        return messages


def _parts(message):
    content = message.get("content")
    return content if isinstance(content, list) else []


def _remote_kind(part):
    """The kind of a part that is at an http(s) address, else None."""
    kind = part.get("type")
    value = part.get(kind) if kind in KINDS else None
    return kind if isinstance(value, str) and value[:1000].strip().lower().startswith(("http://", "https://")) else None


class FeatureCache:
    """A feature extractor for many threads, in the place of transformers', which computes the features of each sound by itself.

    transformers' pads the sounds of a call to the longest, and the last frame of each depends on the padding. So a prompt that goes
    on from an earlier one would not begin as that did, and the engine's cache would not hold it.

    max_bytes: of features that are cached.
    """

    def __init__(self, extractor: Any, max_bytes: int = FEATURE_BYTES):
        self._extractor, self._max_bytes = extractor, max_bytes
        self._features: OrderedDict[bytes, np.ndarray] = OrderedDict()
        self._bytes, self._lock = 0, threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_extractor"], name)

    def __deepcopy__(self, memo: dict) -> "FeatureCache":
        return self

    def __call__(self, raw_speech: Sequence[np.ndarray], *args: Any, **options: Any) -> Any:
        """input_features float32 `[n, mel, frames]` and attention_mask `[n, frames]`, shorter ones padded with zeros."""
        if options.get("padding") is not True or options.get("truncation") or options.get("pad_to_multiple_of"):
            return self._extractor(raw_speech, *args, **options)
        mels = [self._mel(np.asarray(clip, np.float32), options) for clip in raw_speech]
        longest = max(mel.shape[1] for mel in mels)
        features = np.zeros((len(mels), mels[0].shape[0], longest), np.float32)
        mask = np.zeros((len(mels), longest), np.int32)
        for row, mel in enumerate(mels):
            features[row, :, : mel.shape[1]], mask[row, : mel.shape[1]] = mel, 1
        return {"input_features": features, "attention_mask": mask}

    def _mel(self, clip, options):
        key = hashlib.blake2b(clip.tobytes(), digest_size=16).digest()
        with self._lock:
            if key in self._features:
                self._features.move_to_end(key)
                return self._features[key]
        mel = np.asarray(self._extractor([clip], **options)["input_features"], np.float32)[0]
        with self._lock:
            if key not in self._features:
                self._features[key] = mel
                self._bytes += mel.nbytes
            while self._bytes > self._max_bytes and len(self._features) > 1:
                self._bytes -= self._features.popitem(last=False)[1].nbytes
        return mel
