"""One answer as events, in OpenAI's order:

response.created, rate_limits.updated
    response.output_item.added, conversation.item.added, response.content_part.added
        response.output_audio.delta, response.output_audio_transcript.delta ...
    response.output_audio.done, ..._transcript.done, response.content_part.done, conversation.item.done, response.output_item.done
response.done
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import CacheFull
from ...outputs import FRAME_SAMPLES, SPEECH_RATE_HZ, AudioChunk, StreamEnd, TextDelta
from ..answer_text import Calls, Thoughts
from ..metrics import LENGTH, end_reason
from ..protocol import api_error, is_ours
from ..worker import Answer
from .audio import OutputEncoder
from .events import Emit, new_id
from .items import Content, Conversation, Item, Spoken
from .requests import NO_PROMPT, Prompt
from .settings import Settings

LOG = logging.getLogger("ms_omni.serve")
TURN_DETECTED, CLIENT_CANCELLED = "turn_detected", "client_cancelled"


@dataclass(frozen=True)
class Plan:
    """What an answer is to be: its settings, whether it becomes part of the conversation, and the client's metadata."""

    settings: Settings
    in_conversation: bool = True
    metadata: dict[str, str] | None = None


class Response:
    """An answer; it begins with `start`. submit: returns the engine's answer; ended: called once, behind the last event; cancelled:
    called where it ends early, also before the engine got it.
    """

    def __init__(
        self,
        plan: Plan,
        conversation: Conversation,
        emit: Emit,
        submit: Callable[[], Awaitable[tuple[Prompt, Answer]]],
        ended: Callable[[Response], None],
        cancelled: Callable[[], None] = lambda: None,
    ):
        self.plan, self.conversation, self.id = plan, conversation, new_id("resp")
        self.status, self.details = "in_progress", None
        self.output: list[Item] = []
        self.usage: dict[str, Any] | None = None
        self._emit, self._submit, self._ended, self._cancelled = emit, submit, ended, cancelled
        self._thoughts: Thoughts | None = None
        self._calls = Calls() if plan.settings.usable_tools else None
        self._later: list[dict[str, Any]] = []  # deltas of calls, while a text before them is being spoken
        self._encoder = OutputEncoder(plan.settings.audio.output.format)
        self._prompt = NO_PROMPT
        self._answer: Answer | None = None
        self._open: Item | None = None
        self._tokens = self._samples = self._cached = 0
        self.task: asyncio.Task | None = None

    @property
    def speaks(self) -> bool:
        """Whether it has sound."""
        return self.plan.settings.speaks

    @property
    def has_sound(self) -> bool:
        """Whether sound of it was sent."""
        return self._samples > 0

    @property
    def sound_s(self) -> float:
        """How long that lasts."""
        return self._samples / SPEECH_RATE_HZ

    def shown(self) -> dict[str, Any]:
        """As clients see it."""
        settings, output = self.plan.settings, self.plan.settings.audio.output
        return {
            "object": "realtime.response",
            "id": self.id,
            "status": self.status,
            "status_details": self.details,
            "output": [item.shown() for item in self.output],
            "conversation_id": self.conversation.id if self.plan.in_conversation else None,
            "output_modalities": settings.output_modalities,
            "max_output_tokens": settings.max_output_tokens,
            "audio": {"output": {"format": output.format.shown(), "voice": output.voice}},
            "usage": self.usage,
            "metadata": self.plan.metadata,
        }

    def start(self) -> None:
        """Emits the first events, and begins."""
        self._emit({"type": "response.created", "response": self.shown()})
        self._emit({"type": "rate_limits.updated", "rate_limits": []})
        self.task = asyncio.ensure_future(self._run())

    def cancel(self, reason: str) -> None:
        """Ends it at once: no sound of it follows."""
        if self.status == "in_progress":
            self._stop()
            self._finish("cancelled", {"type": "cancelled", "reason": reason})

    def _stop(self):
        if self._answer is not None:
            self._answer.cancel()
        if self.task is not None:
            self.task.cancel()
        self._cancelled()

    async def _run(self):
        try:
            self._prompt, self._answer = await self._submit()
            self._thoughts = Thoughts(self._prompt.thinking)
            async for event in self._answer:
                if isinstance(event, TextDelta):
                    self._tokens += 1
                    self._read(event.text[0] if event.text else "")
                elif isinstance(event, AudioChunk):
                    self._sound(event.pcm[0, : event.samples[0]])
                elif isinstance(event, StreamEnd):
                    self._cached = int(event.cached_tokens[0]) if event.cached_tokens is not None else 0
                    self._end(cut=end_reason(event) == LENGTH)
        except CacheFull:
            self._end(cut=True)
        except Exception as error:
            self._fail(error)

    def _fail(self, error):
        problem = api_error(error)
        if is_ours(error):
            LOG.error("a response failed", exc_info=error)
        self._stop()
        shown = {"type": problem.type, "code": problem.code, "message": problem.message}
        self._finish("failed", {"type": "failed", "error": shown})

    # -- from the engine ----------------------------------------------------------------------------------------------

    def _read(self, piece):
        """A piece of text: clients see no thoughts, and calls of functions are items of their own."""
        assert self._thoughts is not None
        self._write(self._thoughts.push(piece)[1])

    def _write(self, piece):
        calls = ()
        if self._calls is not None:
            piece, calls = self._calls.push(piece)
        self._text(piece)
        for call in calls:
            self._call(call)

    def _text(self, piece):
        if self._open is None or self._open.type != "message":
            if not piece:
                return
            self._close("completed")
            self._begin()
        assert self._open is not None
        (content,) = self._open.content
        content.text += piece
        if content.spoken is not None:
            content.spoken.pieces.append(piece)
        if piece:
            name = "output_audio_transcript" if self.speaks else "output_text"
            self._part(f"response.{name}.delta", delta=piece)

    def _sound(self, pcm):
        """Sound comes behind its text; that of a call is not sent."""
        spoken = self._open.content[0].spoken if self._open is not None and self._open.content else None
        if spoken is None or not len(pcm):
            return
        spoken.samples += len(pcm)
        self._samples += len(pcm)
        delta = self._encoder(pcm)
        if delta:
            self._part("response.output_audio.delta", delta=delta)

    def _end(self, cut):
        """The engine has ended; cut: by a limit."""
        if self._thoughts is not None:
            self._write(self._thoughts.rest()[1])
        if self._calls is not None:
            text, calls = self._calls.rest(cut)
            self._text(text)
            for call in calls:
                self._call(call)
        if self._samples and self._open is not None and self._open.content:
            rest = self._encoder(np.zeros(0, np.float32), last=True)
            if rest:
                self._part("response.output_audio.delta", delta=rest)
        later, self._later = self._later, []
        if later:
            self._close("completed")
        for call in later:
            self._call(call)
        if cut:
            return self._finish("incomplete", {"type": "incomplete", "reason": "max_output_tokens"})
        self._finish("completed", None)

    # -- events ------------------------------------------------------------------------------------------------------

    def _begin(self):
        content = Content("output_audio" if self.speaks else "output_text", "", spoken=Spoken() if self.speaks else None)
        item = Item(new_id("item"), "message", "in_progress", "assistant")
        self._added(item)
        item.content.append(content)
        self._part("response.content_part.added", part=self._shown_part())

    def _added(self, item):
        self._open = item
        self.output.append(item)
        self._item("response.output_item.added", item)
        if self.plan.in_conversation:
            before = self.conversation.add(item)
            self._emit({"type": "conversation.item.added", "previous_item_id": before, "item": item.shown()})

    def _close(self, status, whole=True):
        """Ends the open item; whole: all of it was spoken."""
        item = self._open
        if item is None:
            return
        item.status = status
        if item.type == "function_call":
            self._argument("done", name=item.name, arguments=item.arguments)
        else:
            (content,) = item.content
            if content.spoken is not None:
                content.spoken.whole = whole
                self._part("response.output_audio.done")
                self._part("response.output_audio_transcript.done", transcript=content.text)
            else:
                self._part("response.output_text.done", text=content.text)
            self._part("response.content_part.done", part=self._shown_part())
        self._open = None
        if self.plan.in_conversation:
            before = self.conversation.before(item)
            self._emit({"type": "conversation.item.done", "previous_item_id": before, "item": item.shown()})
        self._item("response.output_item.done", item)

    def _call(self, delta):
        """A piece of a call: its name first, then its arguments."""
        if self._open is not None and self._open.content and self.speaks:
            self._later.append(delta)
            return
        function = delta["function"]
        if "name" in function:
            self._close("completed")
            name, call_id = function["name"], delta["id"]
            self._added(Item(new_id("item"), "function_call", "in_progress", call_id=call_id, name=name, arguments=""))
        if function["arguments"] and self._open is not None:
            self._open.arguments += function["arguments"]
            self._argument("delta", delta=function["arguments"])

    def _argument(self, kind, **values):
        item = self._open
        assert item is not None
        position = {"response_id": self.id, "item_id": item.id, "output_index": self.output.index(item)}
        self._emit({"type": f"response.function_call_arguments.{kind}", **position, "call_id": item.call_id, **values})

    def _shown_part(self):
        assert self._open is not None
        (content,) = self._open.content
        return {"type": "audio", "transcript": content.text} if self.speaks else {"type": "text", "text": content.text}

    def _item(self, kind, item):
        self._emit({"type": kind, "response_id": self.id, "output_index": self.output.index(item), "item": item.shown()})

    def _part(self, kind, **values):
        """An event of the one part of the open message."""
        item = self._open
        assert item is not None
        position = {"response_id": self.id, "item_id": item.id, "output_index": self.output.index(item), "content_index": 0}
        self._emit({"type": kind, **position, **values})

    def _finish(self, status, details):
        self._close("completed" if status == "completed" else "incomplete", whole=status in ("completed", "incomplete"))
        self.status, self.details = status, details
        self.usage = self._prompt.usage(self._tokens, -(-self._samples // FRAME_SAMPLES), self._cached)
        self._emit({"type": "response.done", "response": self.shown()})
        self._ended(self)
