"""One choice of a chat completion: the engine's events as OpenAI's deltas, and these together as a message."""

import base64
from collections.abc import Container, Sequence
from typing import Any

import numpy as np

from ..errors import CacheFull
from ..outputs import AudioChunk, StreamEnd, TextDelta
from .answer_text import Calls, StopText, Thoughts
from .logprobs import TokenTexts
from .sound import Encoder, encode
from .transcripts import Transcripts

Delta = dict[str, Any]
FRAME_SAMPLES = 1920
"""Of a codec frame, 80 ms at 24 kHz."""


class Choice:
    """Takes the events of one answer.

    stops: texts that end it; thinking: whether the prompt has opened its thoughts; calls: how many tool calls there may be (None:
    any number), 0 where there are no tools; format: of its sound, or None; transcripts: where what is said is remembered.

    texts: of tokens, where their log-probabilities are wanted.

    finish_reason: None as long as it goes on; tokens, thought_tokens: of the text; frames: of the codec; cached: tokens of the prompt.
    """

    def __init__(
        self,
        stops: Sequence[str] = (),
        thinking: bool = False,
        calls: int | None = 0,
        format: str | None = None,
        transcripts: Transcripts | None = None,
        talker_limit: int | None = None,
        stream: bool = False,
        texts: TokenTexts | None = None,
        end_ids: Container[int] = (),
    ):
        self.finish_reason: str | None = None
        self.tokens = self.thought_tokens = self.frames = self.cached = 0
        self._texts, self._end_ids, self._waiting, self._due = texts, end_ids, [], []
        self._stop, self._thoughts = StopText(stops), Thoughts(thinking)
        self._calls = None if calls == 0 else Calls(calls)
        self._format, self._transcripts, self._talker_limit = format, transcripts, talker_limit
        self.audio_id = transcripts.new_id() if transcripts is not None and format else None
        self._transcript: list[str] = []
        self._encoder = Encoder(format) if format and stream else None

    def take(self, event: Any) -> list[Delta]:
        """The deltas of an event; behind the last one `finish_reason` is set."""
        if isinstance(event, TextDelta):
            return self._token(event)
        if isinstance(event, AudioChunk):
            return self._sound(event.pcm[0, : event.samples[0]])
        if isinstance(event, StreamEnd):
            self.frames, self.cached = int(event.frames[0]), int(event.cached_tokens[0])
            cut = event.reasons[:1] in (("length",), ("time",)) and not self._stop.found
            spoken_out = self._talker_limit is not None and self.frames >= self._talker_limit
            return self.end("length" if cut or spoken_out else "stop")
        return []

    def end(self, reason: str) -> list[Delta]:
        """Ends it, "stop" or "length"; returns what was held back."""
        if self.finish_reason is not None:
            return []
        deltas = self._parts(*self._thoughts.push(self._stop.rest()))
        thought, text = self._thoughts.rest()
        deltas += self._parts(thought, text)
        if self._calls is not None:
            content, calls = self._calls.rest(cut=reason == "length")
            deltas += self._deltas("", content, calls)
            if self._calls.count and reason == "stop":
                reason = "tool_calls"
        if not self._stop.found:
            self._give_out()
        self.finish_reason = reason
        if self.audio_id is not None and self._transcripts is not None:
            self.expires_at = self._transcripts.keep(self.audio_id, "".join(self._transcript))
            deltas.append({"audio": {"id": self.audio_id, "expires_at": self.expires_at}})
        return deltas

    def fail(self, error: Exception) -> list[Delta]:
        """Ends it because the caches are full, which is a matter of length; raises any other error."""
        if not isinstance(error, CacheFull):
            raise error
        return self.end("length")

    @property
    def full(self) -> bool:
        """Whether nothing that follows is wanted."""
        return self._calls is not None and self._calls.full

    def logprobs(self) -> list[dict[str, Any]]:
        """Those of the tokens whose text was given out since the last call."""
        due, self._due = self._due, []
        return due

    def _token(self, event):
        self.tokens += 1
        token, thinking = int(event.token[0]), self._thoughts.thinking
        deltas = self._read(event.text[0] if event.text else "")
        self.thought_tokens += thinking
        if self._texts is not None and event.logprobs and not thinking and token not in self._end_ids:
            self._waiting.append(self._texts.entry(token, event.logprobs[0]))
        if deltas:
            self._give_out()
        return deltas

    def _give_out(self):
        self._due += self._waiting
        self._waiting = []

    def _read(self, piece):
        text = self._stop.push(piece)
        return self._parts(*self._thoughts.push(text)) if text else []

    def _parts(self, thought, text):
        calls = []
        if self._calls is not None:
            text, calls = self._calls.push(text) if text else ("", [])
        return self._deltas(thought, text, calls)

    def _deltas(self, thought, text, calls):
        deltas: list[Delta] = [{"reasoning_content": thought}] if thought else []
        if text and self.audio_id is not None:
            self._transcript.append(text)
            deltas.append({"audio": {"id": self.audio_id, "transcript": text}})
        elif text:
            deltas.append({"content": text})
        return deltas + [{"tool_calls": [call]} for call in calls]

    def _sound(self, samples):
        self.frames += -(-len(samples) // FRAME_SAMPLES)  # the end says it exactly
        if self._encoder is None:
            return [{"audio": {"samples": samples}}]
        data = self._encoder.write(samples)
        return [{"audio": {"id": self.audio_id, "data": base64.b64encode(data).decode()}}] if data else []


class Message:
    """Deltas of a choice put together; format: of its sound."""

    def __init__(self, format: str | None = None):
        self.format, self.texts = format, {"content": "", "reasoning_content": ""}
        self.calls: list[dict[str, Any]] = []
        self.audio: dict[str, Any] = {}
        self.samples: list[np.ndarray] = []

    def add(self, deltas: Sequence[Delta]) -> None:
        """More of them."""
        for delta in deltas:
            for name, value in delta.items():
                if name == "audio":
                    self._hear(value)
                elif name == "tool_calls":
                    self._call(value[0])
                else:
                    self.texts[name] += value

    def _hear(self, audio):
        if "samples" in audio:
            self.samples.append(audio["samples"])
            return
        self.audio |= audio | {"transcript": self.audio.get("transcript", "") + audio.get("transcript", "")}

    def _call(self, delta):
        if delta["index"] == len(self.calls):
            self.calls.append({"id": delta["id"], "type": "function", "function": dict(delta["function"])})
        else:
            self.calls[delta["index"]]["function"]["arguments"] += delta["function"]["arguments"]

    def body(self) -> dict[str, Any]:
        """As OpenAI has it; encodes the sound, which takes a while."""
        text = self.texts["content"]
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None, "annotations": []}
        if self.format is not None or (self.calls and not text):
            message["content"] = None
        if self.format is not None and (self.samples or not self.calls):
            samples = np.concatenate([np.zeros(0, np.float32), *self.samples])
            data = base64.b64encode(encode(samples, self.format)).decode()
            message["audio"] = {**self.audio, "data": data}
        if self.texts["reasoning_content"]:
            message["reasoning_content"] = self.texts["reasoning_content"]
        if self.calls:
            message["tool_calls"] = self.calls
        return message
