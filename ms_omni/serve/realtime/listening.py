"""The half of a session that listens: what its client's microphone sends becomes turns, and these items of the conversation."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...input.audio import SAMPLING_RATE_HZ
from ..errors import ApiError
from ..server import Server
from . import events
from .ahead import Ahead
from .asking import Draft
from .events import new_id
from .items import Content, Conversation, Item
from .response import TURN_DETECTED, Plan, Response
from .settings import Settings
from .sound import InputBuffer, Sound, samples_of
from .transcribing import transcribe
from .vad import Change, Turns

COMMIT_MS = 100
"""The least that can be committed."""
BUFFER_S, SILENT_S = 900, 60
"""Of sound that nobody has committed, and of that while nobody speaks."""
OFTEN_S = 10
"""What is too much of that is forgotten at once."""


@dataclass(eq=False)
class Turn:
    """Somebody speaks: the item that it will be, and where it begins in the input buffer."""

    id: str
    start: int


class Listening(ABC):
    """active: the response that belongs to the conversation and goes on."""

    server: Server
    settings: Settings
    conversation: Conversation
    active: Response | None

    def __init__(self) -> None:
        self.buffer = InputBuffer()
        self._turns: _Hearing | None = None
        self._turn: Turn | None = None
        self._draft: tuple[Draft, Item] | None = None
        self._ahead: Ahead | None = None
        self._tasks: set[asyncio.Task] = set()
        self._idle: asyncio.TimerHandle | None = None

    @abstractmethod
    def emit(self, event: dict[str, Any]) -> None:
        """Sends an event."""

    @abstractmethod
    def fail(self, error: ApiError, event_id: str | None = None) -> None:
        """Tells the client."""

    @abstractmethod
    def _answer(self, plan: Plan | None = None, items: Sequence[Item] | None = None, draft: Draft | None = None) -> None:
        """Begins a response."""

    def _stop_listening(self):
        self._stop_reading()
        self._drop_draft()
        self._not_idle()
        for task in self._tasks:
            task.cancel()

    def _hear(self):
        """From now on, by the settings as they are."""
        detection = self.settings.audio.input.turn_detection
        self._turn = None
        self._not_idle()
        self._stop_reading()
        self._drop_draft()
        self._turns = None if detection is None else _Hearing(Turns(detection), self.buffer)

    async def append(self, event: events.AudioAppend) -> None:
        samples = samples_of(event.audio, self.settings.audio.input.format)
        full = len(self.buffer) + len(samples) > BUFFER_S * self.buffer.rate_hz
        if full and self._turns is not None and self._turn is not None:  # somebody, or a noise that is taken for somebody
            self._follow(Change("stopped", self.buffer.stop), event.event_id)
            self._turns.turns.end()
            full = len(self.buffer) + len(samples) > BUFFER_S * self.buffer.rate_hz
        if full:
            raise ApiError(
                400, f"the input buffer holds {BUFFER_S} s of sound; commit or clear it", "audio", "input_audio_buffer_full"
            )
        self.buffer.append(samples)
        if self._turns is None:
            self._read_ahead(self.buffer.start)
            return
        for change in await asyncio.to_thread(self._turns.hear, samples):
            self._follow(change, event.event_id)
        if self._turn is not None:
            self._read_ahead(self._turn.start)
        elif len(self.buffer) > (SILENT_S + OFTEN_S) * self.buffer.rate_hz:
            self.buffer.forget(self.buffer.stop - SILENT_S * self.buffer.rate_hz)

    def _follow(self, change: Change, event_id: str | None):
        """What cannot be done about one change keeps none of those behind it."""
        try:
            self._changed(change)
        except ApiError as error:
            self.fail(error, event_id)

    def _changed(self, change):
        detection, turn = self.settings.audio.input.turn_detection, self._turn
        if turn is None and change.kind != "started":
            return
        at = max(change.at, self.buffer.start)
        if change.kind == "started":
            self._not_idle()
            self._turn = turn = Turn(new_id("item"), at)
            start_ms = self.buffer.ms(at)
            self.emit({"type": "input_audio_buffer.speech_started", "audio_start_ms": start_ms, "item_id": turn.id})
            if detection.interrupt_response and self.active is not None:
                self.active.cancel(TURN_DETECTED)
        elif change.kind == "resumed":
            self._drop_draft()
        elif change.kind == "quiet":
            self._begin(turn, at, detection)
        elif change.kind == "stopped":
            self.emit({"type": "input_audio_buffer.speech_stopped", "audio_end_ms": self.buffer.ms(at), "item_id": turn.id})
            self._turn = None
            draft, item = self._draft or (None, self._heard(turn.id, turn.start, at))
            self._draft = None
            self._commit(item, at)
            if detection.create_response:
                self._answer(draft=draft)

    def _read_ahead(self, start):
        """What was said since a position is read as far as it goes; where something is spoken meanwhile, it is not known behind what."""
        if self.active is not None:
            return
        if self._ahead is None:
            self._ahead = Ahead(
                self.server, self.settings, lambda: [*self._known(), self._heard("", start, self.buffer.stop)]
            )
        self._ahead.heard((self.buffer.stop - start) / self.buffer.rate_hz)

    def _stop_reading(self):
        if self._ahead is not None:
            self._ahead.stop()
            self._ahead = None

    def _begin(self, turn, at, detection):
        """An answer to what may be all that is said, which is kept back until it is."""
        self._drop_draft()
        if not detection.create_response or self.active is not None:
            return
        item = self._heard(turn.id, turn.start, at)
        items = [*self._known(), item]
        self._draft = Draft(self.server, self.settings, items, self.conversation.begin_with), item

    def _known(self):
        """Of the conversation, what the model is asked about."""
        return self.conversation.kept() if self.settings.truncation == "auto" else [*self.conversation]

    def _drop_draft(self):
        if self._draft is not None:
            self._draft[0].drop()
            self._draft = None

    def _heard(self, id, first, last):
        sound = Sound(self.buffer.between(first, last), self.buffer.rate_hz)
        return Item(id, "message", role="user", content=[Content("input_audio", sound=sound)])

    def _commit(self, item, at):
        """What lies before a position is an item of the conversation from now on."""
        self._not_idle()
        self._stop_reading()
        self.buffer.forget(at)
        before = self.conversation.items[-1].id if self.conversation.items else None
        self.emit({"type": "input_audio_buffer.committed", "previous_item_id": before, "item_id": item.id})
        self._add(item)
        self.conversation.let_go()
        wanted = self.settings.audio.input.transcription
        if wanted is not None:
            task = asyncio.ensure_future(transcribe(self.server, wanted, item, self.emit))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _add(self, item, after=None):
        before = self.conversation.add(item, after)
        for kind in ("added", "done"):
            self.emit({"type": f"conversation.item.{kind}", "previous_item_id": before, "item": item.shown()})

    async def commit(self, event: events.AudioCommit) -> None:
        buffer = self.buffer
        if len(buffer) * 1000 < COMMIT_MS * buffer.rate_hz:
            raise ApiError(
                400,
                f"the input buffer holds {buffer.ms(len(buffer))} ms of sound, at least {COMMIT_MS} ms are needed",
                code="input_audio_buffer_commit_empty",
            )
        id = new_id("item") if self._turn is None else self._turn.id  # of which its client may have been told
        self._turn_over()
        self._commit(self._heard(id, buffer.start, buffer.stop), buffer.stop)

    async def clear(self, event: events.AudioClear) -> None:
        self._turn_over()
        self.buffer.forget(self.buffer.stop)
        self.emit({"type": "input_audio_buffer.cleared"})

    def _turn_over(self):
        self._turn = None
        self._stop_reading()
        self._drop_draft()
        if self._turns is not None:
            self._turns.turns.end()

    # -- nobody speaks -----------------------------------------------------------------------------------------------

    def _wait_idle(self, playing_s):
        """Where nobody speaks for some time behind an answer, the model says something, if its client wants that."""
        detection = self.settings.audio.input.turn_detection
        if detection is None or detection.idle_timeout_ms is None or self._turn is not None:
            return
        delay_s = playing_s + detection.idle_timeout_ms / 1000
        self._idle = asyncio.get_running_loop().call_later(delay_s, self._timeout, detection.idle_timeout_ms)

    def _not_idle(self):
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def _timeout(self, idle_ms):
        buffer = self.buffer
        start = max(buffer.start, buffer.stop - idle_ms * buffer.rate_hz // 1000)
        if (buffer.stop - start) * 1000 < COMMIT_MS * buffer.rate_hz:  # its microphone is off
            return
        item = self._heard(new_id("item"), start, buffer.stop)
        times = {"audio_start_ms": buffer.ms(start), "audio_end_ms": buffer.ms(buffer.stop)}
        self.emit({"type": "input_audio_buffer.timeout_triggered", **times, "item_id": item.id})
        self._commit(item, buffer.stop)
        try:
            self._answer()
        except ApiError as error:
            self.fail(error)


class _Hearing:
    """`Turns` of a buffer, at the positions of that."""

    def __init__(self, turns: Turns, buffer: InputBuffer):
        import soxr

        self.turns, self.buffer, self.base = turns, buffer, buffer.stop
        self._resampler = soxr.ResampleStream(buffer.rate_hz, SAMPLING_RATE_HZ, 1, dtype="float32", quality="HQ")

    def hear(self, samples: np.ndarray) -> list[Change]:
        heard = self._resampler.resample_chunk(samples.astype(np.float32) / 32768)
        return [replace(change, at=self.base + self.buffer.at(change.at)) for change in self.turns.hear(heard)]
