"""What somebody says is encoded and read while he speaks, so that its length is no part of the wait for an answer.

    sound       |<---- 8 s: a window of the encoder ---->|<---- 8 s ---->|<- 1 s ->|
    is read                                                  at 9 s                    at 17 s

The encoder looks at windows of eight seconds, one by one. Once a second of the next one is there, what stands before it can only
change if a much louder sound comes, and then it is read again: the engine finds what it has read by its content.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from ...errors import OmniError
from ..errors import ApiError
from ..server import Server
from .asking import STRIDE, inputs_of
from .items import Item
from .settings import Settings

LOG = logging.getLogger("ms_omni.serve")
MEL_HZ = 100
MARGIN_S = 1.0


class Ahead:
    """Of one turn. items: the conversation with what was said so far."""

    def __init__(self, server: Server, settings: Settings, items: Callable[[], Sequence[Item]]):
        self._server, self._settings, self._items = server, settings, items
        self._window_s = server.model.config.thinker_config.audio_config.n_window_infer / MEL_HZ
        self._next_s = self._window_s + MARGIN_S
        self._task: asyncio.Task | None = None

    def heard(self, seconds: float) -> None:
        """So much was said."""
        if seconds < self._next_s or (self._task is not None and not self._task.done()):
            return
        self._next_s = (seconds - MARGIN_S) // self._window_s * self._window_s + self._window_s + MARGIN_S
        self._task = asyncio.ensure_future(self._read(list(self._items())))

    async def _read(self, items):
        try:
            inputs = await inputs_of(self._server, self._settings, items)
            answer = await self._server.read(inputs, prefill_tokens=STRIDE, grows=True)
            try:
                async for _ in answer:
                    pass
            finally:
                answer.cancel()
        except (ApiError, OmniError):  # whoever asks for the answer hears of it
            return
        except Exception:
            LOG.exception("reading ahead failed")

    def stop(self) -> None:
        """The turn is over."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
