"""One conversation over one socket: what each event of its client does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import ApiError
from ..server import Server
from . import events
from .asking import Draft, ask
from .events import GivenResponse, coded, decoded, new_id, parsed
from .items import Content, Conversation, Item, made
from .response import CLIENT_CANCELLED, TURN_DETECTED, Emit, Plan, Response
from .settings import Audio, Settings, Speaking
from .sound import InputBuffer, Sound, samples_of
from .vad import Change, Turns

LOG = logging.getLogger("ms_omni.serve")
COMMIT_MS = 100
"""The least that can be committed."""
BUFFER_S, SILENT_S = 900, 60
"""Of sound that nobody has committed, and of that while nobody speaks."""
APART = 4
"""Responses beside the conversation's at a time."""


@dataclass(eq=False)
class Turn:
    """Somebody speaks: the item that it will be, and where it begins in the input buffer."""

    id: str
    start: int


class Session:
    """State of a socket. emit: sends an event."""

    def __init__(self, server: Server, emit: Emit):
        self.server, self._send = server, emit
        self.id = new_id("sess")
        voices = server.voices
        self.settings = Settings(
            model=server.settings.name,
            output_modalities=["audio"] if voices else ["text"],
            audio=Audio(output=Speaking(voice=voices[0] if voices else None)),
        )
        self.conversation = Conversation()
        self.buffer = InputBuffer()
        self.active: Response | None = None
        self.apart: list[Response] = []
        self.voice_fixed = False
        self._turns: _Hearing | None = None
        self._turn: Turn | None = None
        self._draft: tuple[Draft, Item] | None = None
        self._hear()
        self.emit({"type": "session.created", "session": self.shown()})

    def emit(self, event: dict[str, Any]) -> None:
        """Sends an event, with a name of its own."""
        self._send({"event_id": new_id("event"), **event})

    def shown(self) -> dict[str, Any]:
        """As clients are told."""
        return {"object": "realtime.session", "id": self.id, **self.settings.shown()}

    async def handle(self, text: str) -> None:
        """Does what a message asks for; whatever is wrong with it is answered by an `error` event."""
        event_id = None
        try:
            message = decoded(text)
            given = message.get("event_id")
            event_id = given if isinstance(given, str) else None
            event = parsed(message)
            await HANDLERS[event.type](self, event)
        except ApiError as error:
            self.fail(error, event_id)
        except Exception as error:
            if not isinstance(error, ValueError):
                LOG.error("an event of a realtime session failed", exc_info=error)
            self.fail(coded(error), event_id)

    def fail(self, error: ApiError, event_id: str | None = None) -> None:
        """Tells the client; the session goes on."""
        told = {"type": error.type, "code": error.code, "message": error.message, "param": error.param, "event_id": event_id}
        self.emit({"type": "error", "error": told})

    def close(self) -> None:
        """Gives up what is under way."""
        self._drop_draft()
        for response in [*self.apart, *([self.active] if self.active else [])]:
            response.cancel(CLIENT_CANCELLED)

    # -- settings ----------------------------------------------------------------------------------------------------

    async def update(self, event: events.SessionUpdate) -> None:
        try:
            new = self.settings.changed(event.session)
        except ValueError as error:
            raise coded(error, "session.") from None
        new = self._checked(new, "session.")
        if self.voice_fixed and new.audio.output.voice != self.settings.audio.output.voice:
            raise ApiError(
                400,
                "the voice cannot change once something was said with it",
                "session.audio.output.voice",
                "cannot_update_voice",
            )
        old, self.settings = self.settings, new
        try:
            self.buffer.change(new.audio.input.format)
        except ApiError:
            self.settings = old
            raise
        if new.audio.input != old.audio.input:
            self._hear()
        self._drop_draft()
        self.emit({"type": "session.updated", "session": self.shown()})

    def _checked(self, settings: Settings, prefix: str) -> Settings:
        """With its voice as it is written here. Raises `ApiError`."""
        output, known = settings.audio.output, self.server.voices
        if settings.output_modalities == ["audio"] and not known:
            raise ApiError(
                400,
                "this server has no voice; output_modalities can be ['text']",
                prefix + "output_modalities",
                "invalid_value",
            )
        if output.voice is not None:
            voice = next((name for name in known if name.lower() == output.voice.lower()), None)
            if voice is None:
                names = ", ".join(known) or "none"
                raise ApiError(
                    400,
                    f"there is no voice {output.voice!r:.80}; voices: {names}",
                    prefix + "audio.output.voice",
                    "invalid_value",
                )
            audio = settings.audio.model_copy(update={"output": output.model_copy(update={"voice": voice})})
            settings = settings.model_copy(update={"audio": audio})
        choice = settings.tool_choice
        if choice not in ("auto", "none"):
            raise ApiError(400, "tool_choice can be 'auto' or 'none' here", prefix + "tool_choice", "invalid_value")
        return settings

    # -- sound in ----------------------------------------------------------------------------------------------------

    def _hear(self):
        """From now on, by the settings as they are."""
        detection = self.settings.audio.input.turn_detection
        self._turn = None
        self._drop_draft()
        self._turns = None if detection is None else _Hearing(Turns(detection), self.buffer)

    async def append(self, event: events.AudioAppend) -> None:
        samples = samples_of(event.audio, self.settings.audio.input.format)
        if len(self.buffer) + len(samples) > BUFFER_S * self.buffer.rate_hz:
            raise ApiError(
                400, f"the input buffer holds {BUFFER_S} s of sound; commit or clear it", "audio", "input_audio_buffer_full"
            )
        self.buffer.append(samples)
        if self._turns is None:
            return
        for change in await asyncio.to_thread(self._turns.hear, samples):
            self._changed(change)
        if self._turn is None and len(self.buffer) > SILENT_S * self.buffer.rate_hz:
            self.buffer.forget(self.buffer.stop - SILENT_S * self.buffer.rate_hz)

    def _changed(self, change: Change):
        detection, turn = self.settings.audio.input.turn_detection, self._turn
        at = max(change.at, self.buffer.start)
        if change.kind == "started":
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
            draft = self._draft
            item = draft[1] if draft is not None else self._heard(turn.id, turn.start, at)
            self._commit(item, at)
            if detection.create_response:
                self._answer()

    def _begin(self, turn, at, detection):
        """An answer to what may be all that is said, which is kept back until it is."""
        self._drop_draft()
        if not detection.create_response or self.active is not None:
            return
        item = self._heard(turn.id, turn.start, at)
        items = [*self.conversation, item]
        draft = Draft(self.server, self.settings, items, self.conversation.version)
        self._draft = draft, item

    def _drop_draft(self):
        if self._draft is not None:
            self._draft[0].drop()
            self._draft = None

    def _heard(self, id, first, last):
        sound = Sound(self.buffer.between(first, last), self.buffer.rate_hz)
        return Item(id, "message", role="user", content=[Content("input_audio", sound=sound)])

    def _commit(self, item, at):
        """What lies before a position is an item of the conversation from now on."""
        self.buffer.forget(at)
        before = self.conversation.items[-1].id if self.conversation.items else None
        self.emit({"type": "input_audio_buffer.committed", "previous_item_id": before, "item_id": item.id})
        self._add(item)

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
        self._turn_over()
        self._commit(self._heard(new_id("item"), buffer.start, buffer.stop), buffer.stop)

    async def clear(self, event: events.AudioClear) -> None:
        self._turn_over()
        self.buffer.forget(self.buffer.stop)
        self.emit({"type": "input_audio_buffer.cleared"})

    def _turn_over(self):
        self._turn = None
        self._drop_draft()
        if self._turns is not None:
            self._turns.turns.end()

    # -- items -------------------------------------------------------------------------------------------------------

    async def create(self, event: events.ItemCreate) -> None:
        if event.item.type == "item_reference":
            raise ApiError(400, "an item_reference is for the input of a response", "item.type", "invalid_value")
        item = made(event.item, self.settings.audio.input.format)
        self._drop_draft()
        self._add(item, event.previous_item_id)

    async def retrieve(self, event: events.ItemRetrieve) -> None:
        item = self.conversation.get(event.item_id)
        shown = item.shown(self.settings.audio.input.format)
        self.emit({"type": "conversation.item.retrieved", "item": shown})

    async def delete(self, event: events.ItemDelete) -> None:
        self._not_open(self.conversation.get(event.item_id))
        self.conversation.delete(event.item_id)
        self._drop_draft()
        self.emit({"type": "conversation.item.deleted", "item_id": event.item_id})

    async def truncate(self, event: events.ItemTruncate) -> None:
        item = self.conversation.get(event.item_id)
        if item.role != "assistant":
            raise ApiError(400, "only messages of the assistant can be truncated", "item_id", "invalid_value")
        if event.content_index >= len(item.content) or item.content[event.content_index].spoken is None:
            raise ApiError(
                400, f"there is no sound at content_index {event.content_index}", "content_index", "invalid_value"
            )
        if self.active is not None and item in self.active.output:
            self.active.cancel(CLIENT_CANCELLED)
        content = item.content[event.content_index]
        spoken = content.spoken
        if event.audio_end_ms > spoken.duration_ms:
            raise ApiError(
                400,
                f"the sound lasts {spoken.duration_ms} ms and cannot be cut at {event.audio_end_ms} ms",
                "audio_end_ms",
                "invalid_value",
            )
        content.text = spoken.heard(event.audio_end_ms)
        content.spoken = spoken.cut(event.audio_end_ms)
        self.conversation.version += 1
        self._drop_draft()
        told = {"item_id": item.id, "content_index": event.content_index, "audio_end_ms": event.audio_end_ms}
        self.emit({"type": "conversation.item.truncated", **told})

    def _not_open(self, item):
        if self.active is not None and item in self.active.output:
            raise ApiError(400, f"item {item.id!r} is being written; cancel the response first", "item_id", "invalid_value")

    # -- answers -----------------------------------------------------------------------------------------------------

    async def respond(self, event: events.ResponseCreate) -> None:
        given = event.response or GivenResponse()
        settings, kept = self._settings_of(given), given.conversation == "auto"
        items = None if given.input is None else [self._input(one) for one in given.input]
        if not kept and len(self.apart) >= APART:
            raise ApiError(400, f"{APART} responses beside the conversation are at work already", code="too_many_responses")
        self._answer(Plan(settings, kept, given.metadata), items)

    def _settings_of(self, given: GivenResponse) -> Settings:
        names = {name: getattr(given, name) for name in given.model_fields_set & Settings.model_fields.keys() - {"audio"}}
        new = self.settings.model_copy(update={name: value for name, value in names.items() if value is not None})
        spoken = {name: value for name, value in given.audio.output if value is not None}
        if spoken:
            output = new.audio.output.model_copy(update=spoken)
            new = new.model_copy(update={"audio": new.audio.model_copy(update={"output": output})})
        new = self._checked(new, "response.")
        if self.voice_fixed and new.audio.output.voice != self.settings.audio.output.voice:
            raise ApiError(
                400,
                "the voice cannot change once something was said with it",
                "response.audio.output.voice",
                "cannot_update_voice",
            )
        return new

    def _input(self, given):
        if given.type == "item_reference":
            return self.conversation.get(given.id)
        return made(given, self.settings.audio.input.format)

    def _answer(self, plan: Plan | None = None, items: Sequence[Item] | None = None):
        """Begins a response to a conversation as it is now, or to other items. Raises `ApiError` where it already has one."""
        plan = plan or Plan(self.settings)
        if plan.kept and self.active is not None:
            raise ApiError(
                400,
                f"the conversation has an active response, {self.active.id}; wait until it is done, or cancel it",
                code="conversation_already_has_active_response",
            )
        self.server.check_ready()
        draft, self._draft = self._draft, None
        items = [*self.conversation] if items is None else items

        async def asking():
            if draft is not None:
                try:
                    return await draft[0].take()
                except (ApiError, ValueError):  # it may have come too early
                    pass
            return await ask(self.server, plan.settings, items)

        tokenizer = self.server.processor.tokenizer
        response = Response(plan, self.conversation, self.emit, tokenizer, asking, self._ended)
        if plan.kept:
            self.active = response
        else:
            self.apart.append(response)
        response.start()

    def _ended(self, response):
        self.voice_fixed = self.voice_fixed or response.heard
        if response is self.active:
            self.active = None
        else:
            self.apart.remove(response)

    async def cancel(self, event: events.ResponseCancel) -> None:
        known = [*([self.active] if self.active else []), *self.apart]
        if event.response_id is not None:
            known = [response for response in known if response.id == event.response_id]
        elif self.active is None:
            known = []
        if not known:
            raise ApiError(
                400,
                "there is no active response to cancel",
                "response_id" if event.response_id else None,
                "response_cancel_not_active",
            )
        known[0].cancel(CLIENT_CANCELLED)

    async def clear_output(self, event: events.OutputClear) -> None:
        raise ApiError(
            400,
            "output_audio_buffer.clear is for WebRTC; cancel the response and truncate its item",
            "type",
            "invalid_value",
        )


class _Hearing:
    """`Turns` of a buffer, at the positions of that."""

    def __init__(self, turns: Turns, buffer: InputBuffer):
        import soxr

        self.turns, self.buffer, self.base = turns, buffer, buffer.stop
        self._stream = soxr.ResampleStream(buffer.rate_hz, 16_000, 1, dtype="float32", quality="HQ")

    def hear(self, samples: np.ndarray) -> list[Change]:
        heard = self._stream.resample_chunk(samples.astype(np.float32) / 32768)
        return [replace(change, at=self.base + self.buffer.at(change.at)) for change in self.turns.hear(heard)]


HANDLERS = {
    "session.update": Session.update,
    "input_audio_buffer.append": Session.append,
    "input_audio_buffer.commit": Session.commit,
    "input_audio_buffer.clear": Session.clear,
    "conversation.item.create": Session.create,
    "conversation.item.retrieve": Session.retrieve,
    "conversation.item.truncate": Session.truncate,
    "conversation.item.delete": Session.delete,
    "response.create": Session.respond,
    "response.cancel": Session.cancel,
    "output_audio_buffer.clear": Session.clear_output,
}
