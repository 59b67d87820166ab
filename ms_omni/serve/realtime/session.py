"""One conversation over one socket: what each event of its client does."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from ...errors import OmniError
from ..grammar import MISSING
from ..protocol import ApiError, invalid
from ..server import Server
from ..worker import Answer
from . import events
from .events import Emit, GivenResponse, coded, decoded, new_id, parsed
from .input_audio import InputAudio
from .items import Conversation, Item, item_from
from .requests import Draft, Prompt, submit
from .response import CLIENT_CANCELLED, Plan, Response
from .settings import Audio, AudioOutput, Settings

LOG = logging.getLogger("ms_omni.serve")
MAX_DETACHED = 4
"""Responses at a time that do not belong to the conversation."""


class Session(InputAudio):
    """State of a socket. emit: sends an event."""

    def __init__(self, server: Server, emit: Emit):
        super().__init__()
        self.server, self._send = server, emit
        self.id = new_id("sess")
        voices = server.voices
        self.settings = Settings(
            model=server.settings.name,
            output_modalities=["audio"] if voices else ["text"],
            audio=Audio(output=AudioOutput(voice=voices[0] if voices else None)),
        )
        self.conversation = Conversation()
        self.active: Response | None = None
        self.detached: list[Response] = []
        self.voice_fixed = False
        self._reset_detection()
        self.emit({"type": "session.created", "session": self.shown()})

    def emit(self, event: dict[str, Any]) -> None:
        """Sends an event, with a name of its own."""
        self._send({"event_id": new_id("event"), **event})

    def shown(self) -> dict[str, Any]:
        """As clients see it."""
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
        """Sends an error event; the session goes on."""
        self.emit({"type": "error", "error": {**error.fields, "event_id": event_id}})

    def close(self) -> None:
        """Cancels what is under way."""
        self._close_input()
        for response in [*self.detached, *([self.active] if self.active else [])]:
            response.cancel(CLIENT_CANCELLED)

    # -- settings ----------------------------------------------------------------------------------------------------

    async def update(self, event: events.SessionUpdate) -> None:
        try:
            new = self.settings.updated(event.session)
        except ValueError as error:
            raise coded(error, "session.") from None
        new = self._checked(new, "session.")
        old, self.settings = self.settings, new
        try:
            self.buffer.change(new.audio.input.format)
        except ApiError:
            self.settings = old
            raise
        if new.audio.input != old.audio.input:
            self._reset_detection()
        self._drop_speculation()
        self.emit({"type": "session.updated", "session": self.shown()})

    def _checked(self, settings: Settings, prefix: str) -> Settings:
        """The settings, with the voice's name in our spelling. Raises `ApiError`."""
        output, known = settings.audio.output, self.server.voices
        if settings.speaks and not known:
            raise invalid("this server has no voice; output_modalities can be ['text']", prefix + "output_modalities")
        if output.voice is not None:
            voice = next((name for name in known if name.lower() == output.voice.lower()), None)
            if voice is None:
                names = ", ".join(known) or "none"
                raise invalid(f"there is no voice {output.voice!r:.80}; voices: {names}", prefix + "audio.output.voice")
            audio = settings.audio.model_copy(update={"output": output.model_copy(update={"voice": voice})})
            settings = settings.model_copy(update={"audio": audio})
        names = [tool.name for tool in settings.tools]
        if len(set(names)) < len(names):
            raise invalid("two tools have the same name; give each its own", prefix + "tools")
        if settings.tool_choice not in ("auto", "none"):
            if not settings.usable_tools:
                raise invalid("tool_choice names no tool that there is", prefix + "tool_choice")
            if self.server.grammars is None:
                raise invalid(f"tool_choice {MISSING}", prefix + "tool_choice", "unsupported_value")
        if self.voice_fixed and settings.audio.output.voice != self.settings.audio.output.voice:
            message = "the voice cannot change once something was said with it"
            raise invalid(message, prefix + "audio.output.voice", "cannot_update_voice")
        return settings

    # -- items -------------------------------------------------------------------------------------------------------

    async def create(self, event: events.ItemCreate) -> None:
        if event.item.type == "item_reference":
            raise invalid("an item_reference is for the input of a response", "item.type")
        item = item_from(event.item, self.settings.audio.input.format)
        self.conversation.check_room(item)
        await self._check_media(item)
        self._drop_draft()
        self._add(item, event.previous_item_id)

    async def _check_media(self, item):
        """What cannot be decoded would make every later answer fail. Raises `ApiError`."""
        for number, part in enumerate(item.content):
            if part.sound is None and part.image_url is None:
                continue
            try:
                await self.server.prepare([{"role": "user", "content": [part.message()]}])
            except OmniError as error:
                raise invalid(str(error), f"item.content[{number}]") from None

    async def retrieve(self, event: events.ItemRetrieve) -> None:
        item = self.conversation.get(event.item_id, "item_retrieve_invalid_item_id")
        shown = item.shown(self.settings.audio.input.format)
        self.emit({"type": "conversation.item.retrieved", "item": shown})

    async def delete(self, event: events.ItemDelete) -> None:
        self._check_complete(self.conversation.get(event.item_id, "item_delete_invalid_item_id"))
        self.conversation.delete(event.item_id)
        self._drop_draft()
        self.emit({"type": "conversation.item.deleted", "item_id": event.item_id})

    async def truncate(self, event: events.ItemTruncate) -> None:
        item = self.conversation.get(event.item_id, "item_truncate_invalid_item_id")
        if item.role != "assistant":
            raise invalid("only messages of the assistant can be truncated", "item_id")
        content = item.content[event.content_index] if event.content_index < len(item.content) else None
        spoken = content.spoken if content is not None else None
        if content is None or spoken is None:
            raise invalid(f"there is no sound at content_index {event.content_index}", "content_index")
        if event.audio_end_ms > spoken.duration_ms:
            raise invalid(
                f"the sound lasts {spoken.duration_ms} ms and cannot be cut at {event.audio_end_ms} ms", "audio_end_ms"
            )
        if self.active is not None and item in self.active.output:
            self.active.cancel(CLIENT_CANCELLED)
        content.text = spoken.text_until(event.audio_end_ms)
        content.spoken = spoken.cut(event.audio_end_ms)
        self._drop_draft()
        position = {"item_id": item.id, "content_index": event.content_index, "audio_end_ms": event.audio_end_ms}
        self.emit({"type": "conversation.item.truncated", **position})

    def _check_complete(self, item):
        if self.active is not None and item in self.active.output:
            raise invalid(f"item {item.id!r} is being written; cancel the response first", "item_id")

    # -- answers -----------------------------------------------------------------------------------------------------

    async def respond(self, event: events.ResponseCreate) -> None:
        given = event.response or GivenResponse()
        settings, in_conversation = self._settings_of(given), given.conversation == "auto"
        items = None if given.input is None else [self._input(item) for item in given.input]
        if not in_conversation and len(self.detached) >= MAX_DETACHED:
            raise invalid(f"{MAX_DETACHED} responses beside the conversation are at work already", code="too_many_responses")
        self._drop_draft()
        self._respond(Plan(settings, in_conversation, given.metadata), items)

    def _settings_of(self, given: GivenResponse) -> Settings:
        names = given.model_fields_set & Settings.model_fields.keys() - {"audio"}
        new = self.settings.model_copy(update={name: x for name in names if (x := getattr(given, name)) is not None})
        spoken = {name: value for name, value in given.audio.output if value is not None}
        if spoken:
            output = new.audio.output.model_copy(update=spoken)
            new = new.model_copy(update={"audio": new.audio.model_copy(update={"output": output})})
        return self._checked(new, "response.")

    def _input(self, given):
        if given.type == "item_reference":
            return self.conversation.get(given.id)
        return item_from(given, self.settings.audio.input.format)

    def _respond(self, plan: Plan | None = None, items: Sequence[Item] | None = None, draft: Draft | None = None):
        """Begins a response to the conversation as it is now, or to other items, or goes on with a draft. Raises `ApiError`."""
        plan, drop = plan or Plan(self.settings), draft.drop if draft is not None else lambda: None
        try:
            self._check_free(plan)
        except ApiError:
            drop()
            raise
        self._cancel_idle()
        begins = self.conversation.begin_with if items is None else lambda first: None
        items = self._prompt_items() if items is None else items

        async def answer() -> tuple[Prompt, Answer]:
            if draft is not None:
                try:
                    return await draft.claim()
                except (ApiError, ValueError):  # it may have come too early
                    pass
            return await submit(self.server, plan.settings, items, begins)

        response = Response(plan, self.conversation, self.emit, answer, self._ended, drop)
        if plan.in_conversation:
            self.active = response
        else:
            self.detached.append(response)
        response.start()

    def _check_free(self, plan):
        if plan.in_conversation and self.active is not None:
            raise invalid(
                f"the conversation has an active response, {self.active.id}; wait until it is done, or cancel it",
                code="conversation_already_has_active_response",
            )
        self.server.check_ready()

    def _ended(self, response):
        self.voice_fixed = self.voice_fixed or response.has_sound
        if response is self.active:
            self.active = None
            if response.status == "completed":
                self._start_idle_timer(response.sound_s)
        else:
            self.detached.remove(response)

    async def cancel(self, event: events.ResponseCancel) -> None:
        known = [*([self.active] if self.active else []), *self.detached]
        if event.response_id is not None:
            known = [response for response in known if response.id == event.response_id]
        elif self.active is None:
            known = []
        if not known:
            raise invalid(
                "there is no active response to cancel",
                "response_id" if event.response_id else None,
                "response_cancel_not_active",
            )
        known[0].cancel(CLIENT_CANCELLED)

    async def clear_output(self, event: events.OutputClear) -> None:
        raise invalid("output_audio_buffer.clear is for WebRTC; cancel the response and truncate its item", "type")


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
