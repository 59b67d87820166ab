"""Features of sounds, each by itself and kept: a sound has the same ones in every turn of a conversation, whatever else is in it.

transformers' extractor pads the sounds of a call to the longest, and the last frame of each depends on what it is padded with. A
prompt that goes on from an earlier one would not begin as that did, and could not be found in the engine's cache.
"""

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np

KEPT_BYTES = 64 << 20
"""Twenty minutes of sound."""


class Mels:
    """An extractor for many threads, in the place of transformers'; kept_bytes: of features that may be asked for again."""

    def __init__(self, extractor: Any, kept_bytes: int = KEPT_BYTES):
        self._extractor, self._kept_bytes = extractor, kept_bytes
        self._kept: OrderedDict[bytes, np.ndarray] = OrderedDict()
        self._bytes, self._lock = 0, threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_extractor"], name)

    def __deepcopy__(self, memo: dict) -> "Mels":
        return self

    def __call__(self, raw_speech: Sequence[np.ndarray], *args: Any, **options: Any) -> Any:
        """input_features float32 `[n, mel, frames]` and attention_mask `[n, frames]`, shorter ones filled up with zeros."""
        if options.get("padding") is not True or options.get("truncation") or options.get("pad_to_multiple_of"):
            return self._extractor(raw_speech, *args, **options)
        found = [self._of(np.asarray(clip, np.float32), options) for clip in raw_speech]
        longest = max(mel.shape[1] for mel in found)
        features = np.zeros((len(found), found[0].shape[0], longest), np.float32)
        mask = np.zeros((len(found), longest), np.int32)
        for row, mel in enumerate(found):
            features[row, :, : mel.shape[1]], mask[row, : mel.shape[1]] = mel, 1
        return {"input_features": features, "attention_mask": mask}

    def _of(self, clip, options):
        key = hashlib.blake2b(clip.tobytes(), digest_size=16).digest()
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        mel = np.asarray(self._extractor([clip], **options)["input_features"], np.float32)[0]
        with self._lock:
            if key not in self._kept:
                self._kept[key] = mel
                self._bytes += mel.nbytes
            while self._bytes > self._kept_bytes and len(self._kept) > 1:
                self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return mel
