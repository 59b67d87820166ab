"""The half of a session that receives sound: what its client's microphone sends becomes turns, and these items of the conversation."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ...input.audio import SAMPLING_RATE_HZ
from ..protocol import ApiError, invalid
from ..server import Server
from . import events
from .audio import Change, InputBuffer, Sound, Turns, samples_of
from .events import new_id
from .items import Content, Conversation, Item
from .requests import Draft, ReadAhead, transcribe
from .response import TURN_DETECTED, Plan, Response
from .settings import Settings

MIN_COMMIT_MS = 100
BUFFER_S, SILENT_S = 900, 60
"""Of sound that is not committed, and of that while nobody speaks."""
DROP_S = 10
"""Of the latter, what is too much is dropped in pieces of this length."""


@dataclass(eq=False)
class Turn:
    """Somebody speaks: the item that it will be, and where it begins in the input buffer."""

    id: str
    start: int


class InputAudio(ABC):
    """active: the response under way that belongs to the conversation."""

    server: Server
    settings: Settings
    conversation: Conversation
    active: Response | None

    def __init__(self) -> None:
        self.buffer = InputBuffer()
        self._detector: _TurnDetector | None = None
        self._turn: Turn | None = None
        self._draft: tuple[Draft, Item] | None = None
        self._read_ahead: ReadAhead | None = None
        self._transcriptions: set[asyncio.Task] = set()
        self._idle: asyncio.TimerHandle | None = None

    @abstractmethod
    def emit(self, event: dict[str, Any]) -> None:
        """Sends an event."""

    @abstractmethod
    def fail(self, error: ApiError, event_id: str | None = None) -> None:
        """Sends an error event."""

    @abstractmethod
    def _respond(self, plan: Plan | None = None, items: Sequence[Item] | None = None, draft: Draft | None = None) -> None:
        """Begins a response."""

    def _close_input(self):
        self._drop_speculation()
        self._cancel_idle()
        for task in self._transcriptions:
            task.cancel()

    def _reset_detection(self):
        """From now on, by the settings as they are."""
        detection = self.settings.audio.input.turn_detection
        self._turn = None
        self._cancel_idle()
        self._drop_speculation()
        self._detector = None if detection is None else _TurnDetector(Turns(detection), self.buffer)

    # -- events of the client ----------------------------------------------------------------------------------------

    async def append(self, event: events.AudioAppend) -> None:
        samples = samples_of(event.audio, self.settings.audio.input.format)
        full = len(self.buffer) + len(samples) > BUFFER_S * self.buffer.rate_hz
        if full and self._detector is not None and self._turn is not None:  # speech, or a noise that is taken for it
            self._apply(Change("stopped", self.buffer.stop), event.event_id)
            self._detector.end()
            full = len(self.buffer) + len(samples) > BUFFER_S * self.buffer.rate_hz
        if full:
            raise invalid(
                f"the input buffer holds {BUFFER_S} s of sound; commit or clear it", "audio", "input_audio_buffer_full"
            )
        self.buffer.append(samples)
        if self._detector is None:
            self._update_read_ahead(self.buffer.start)
            return
        for change in await asyncio.to_thread(self._detector.push, samples):
            self._apply(change, event.event_id)
        if self._turn is not None:
            self._update_read_ahead(self._turn.start)
        elif len(self.buffer) > (SILENT_S + DROP_S) * self.buffer.rate_hz:
            self.buffer.drop(self.buffer.stop - SILENT_S * self.buffer.rate_hz)

    async def commit(self, event: events.AudioCommit) -> None:
        buffer = self.buffer
        if len(buffer) * 1000 < MIN_COMMIT_MS * buffer.rate_hz:
            raise invalid(
                f"the input buffer holds {buffer.ms(len(buffer))} ms of sound, at least {MIN_COMMIT_MS} ms are needed",
                code="input_audio_buffer_commit_empty",
            )
        id = new_id("item") if self._turn is None else self._turn.id  # which the client may know already
        self._end_turn()
        self._commit(self._sound_item(id, buffer.start, buffer.stop), buffer.stop)

    async def clear(self, event: events.AudioClear) -> None:
        self._end_turn()
        self.buffer.drop(self.buffer.stop)
        self.emit({"type": "input_audio_buffer.cleared"})

    # -- turns -------------------------------------------------------------------------------------------------------

    def _apply(self, change: Change, event_id: str | None):
        """An error of one change does not stop those behind it."""
        try:
            self._change(change)
        except ApiError as error:
            self.fail(error, event_id)

    def _change(self, change):
        detection: Any = self.settings.audio.input.turn_detection
        turn = self._turn
        at = max(change.at, self.buffer.start)
        if change.kind == "started":
            self._cancel_idle()
            self._turn = turn = Turn(new_id("item"), at)
            start_ms = self.buffer.ms(at)
            self.emit({"type": "input_audio_buffer.speech_started", "audio_start_ms": start_ms, "item_id": turn.id})
            if detection.interrupt_response and self.active is not None:
                self.active.cancel(TURN_DETECTED)
        elif turn is None:  # it has been committed or cleared
            return
        elif change.kind == "resumed":
            self._drop_draft()
        elif change.kind == "quiet":
            self._begin_draft(turn, at, detection)
        elif change.kind == "stopped":
            self.emit({"type": "input_audio_buffer.speech_stopped", "audio_end_ms": self.buffer.ms(at), "item_id": turn.id})
            self._turn = None
            draft, item = self._draft or (None, self._sound_item(turn.id, turn.start, at))
            self._draft = None
            self._commit(item, at)
            if detection.create_response:
                self._respond(draft=draft)

    def _end_turn(self):
        self._turn = None
        self._drop_speculation()
        if self._detector is not None:
            self._detector.end()

    def _sound_item(self, id, first, last):
        sound = Sound(self.buffer.between(first, last), self.buffer.rate_hz)
        return Item(id, "message", role="user", content=[Content("input_audio", sound=sound)])

    def _commit(self, item, at):
        """The sound before a position becomes an item of the conversation."""
        self._cancel_idle()
        self._stop_read_ahead()
        self.buffer.drop(at)
        before = self.conversation.items[-1].id if self.conversation.items else None
        self.emit({"type": "input_audio_buffer.committed", "previous_item_id": before, "item_id": item.id})
        self._add(item)
        self.conversation.drop_audio()
        wanted = self.settings.audio.input.transcription
        if wanted is not None:
            task = asyncio.ensure_future(transcribe(self.server, wanted, item, self.emit))
            self._transcriptions.add(task)
            task.add_done_callback(self._transcriptions.discard)

    def _add(self, item, after=None):
        before = self.conversation.add(item, after)
        for kind in ("added", "done"):
            self.emit({"type": f"conversation.item.{kind}", "previous_item_id": before, "item": item.shown()})

    # -- before a turn has ended -------------------------------------------------------------------------------------

    def _prompt_items(self):
        """The items of the conversation that a prompt has."""
        return self.conversation.recent() if self.settings.truncation == "auto" else [*self.conversation]

    def _update_read_ahead(self, start):
        """Reads what was said since a position, unless an answer is under way, behind which it will stand."""
        if self.active is not None:
            return
        if self._read_ahead is None:
            self._read_ahead = ReadAhead(
                self.server,
                self.settings,
                lambda: [*self._prompt_items(), self._sound_item("", start, self.buffer.stop)],
            )
        self._read_ahead.update((self.buffer.stop - start) / self.buffer.rate_hz)

    def _begin_draft(self, turn, at, detection):
        """An answer to a turn that may be over; it is sent once it is certain."""
        self._drop_draft()
        if not detection.create_response or self.active is not None:
            return
        item = self._sound_item(turn.id, turn.start, at)
        items = [*self._prompt_items(), item]
        self._draft = Draft(self.server, self.settings, items, self.conversation.begin_with), item

    def _drop_draft(self):
        if self._draft is not None:
            self._draft[0].drop()
            self._draft = None

    def _stop_read_ahead(self):
        if self._read_ahead is not None:
            self._read_ahead.stop()
            self._read_ahead = None

    def _drop_speculation(self):
        self._stop_read_ahead()
        self._drop_draft()

    # -- nobody speaks -----------------------------------------------------------------------------------------------

    def _start_idle_timer(self, playing_s):
        """Where nobody speaks for some time behind an answer, the model says something, if its client wants that."""
        detection = self.settings.audio.input.turn_detection
        if detection is None or detection.idle_timeout_ms is None or self._turn is not None:
            return
        delay_s = playing_s + detection.idle_timeout_ms / 1000
        self._idle = asyncio.get_running_loop().call_later(delay_s, self._idle_timeout, detection.idle_timeout_ms)

    def _cancel_idle(self):
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def _idle_timeout(self, idle_ms):
        buffer = self.buffer
        start = max(buffer.start, buffer.stop - idle_ms * buffer.rate_hz // 1000)
        if (buffer.stop - start) * 1000 < MIN_COMMIT_MS * buffer.rate_hz:  # the microphone is off
            return
        item = self._sound_item(new_id("item"), start, buffer.stop)
        times = {"audio_start_ms": buffer.ms(start), "audio_end_ms": buffer.ms(buffer.stop)}
        self.emit({"type": "input_audio_buffer.timeout_triggered", **times, "item_id": item.id})
        self._commit(item, buffer.stop)
        try:
            self._respond()
        except ApiError as error:
            self.fail(error)


class _TurnDetector:
    """`Turns` of a buffer, at the buffer's positions."""

    def __init__(self, turns: Turns, buffer: InputBuffer):
        import soxr

        self._turns, self._buffer, self._base = turns, buffer, buffer.stop
        self._resampler = soxr.ResampleStream(buffer.rate_hz, SAMPLING_RATE_HZ, 1, dtype="float32", quality="HQ")

    def push(self, samples: np.ndarray) -> list[Change]:
        resampled = self._resampler.resample_chunk(samples.astype(np.float32) / 32768)
        return [replace(change, at=self._base + self._buffer.at(change.at)) for change in self._turns.push(resampled)]

    def end(self) -> None:
        self._turns.end()
