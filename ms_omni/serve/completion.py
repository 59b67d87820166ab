"""The answers of a chat completion: the engine's events as OpenAI's deltas, and these put together as a message."""

import base64
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Container, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from ..errors import CacheFull
from ..outputs import FRAME_SAMPLES, AudioChunk, Logprobs, StreamEnd, StreamError, TextDelta
from .answer_text import Calls, StopText, Thoughts
from .metrics import LENGTH, end_reason
from .protocol import refuse
from .sound import Encoder, encode

Delta = dict[str, Any]
TRANSCRIPT_S = 3600
MAX_TRANSCRIPTS, MAX_TRANSCRIPT_BYTES = 10_000, 64 << 20
IMPOSSIBLE = -9999.0
"""Log-probability of a token that cannot come, as OpenAI has it: JSON knows no infinity."""


class Transcripts:
    """What spoken answers said, for later turns that name them by their ids: only the text, for an hour, and only for who knows the id.

    instance: name of this server among several. limit, max_bytes: stored at a time; the oldest are dropped first. clock: seconds since
    1970.
    """

    def __init__(
        self,
        instance: str | None = None,
        limit: int = MAX_TRANSCRIPTS,
        max_bytes: int = MAX_TRANSCRIPT_BYTES,
        clock: Callable[[], float] = time.time,
    ):
        self.instance, self.limit, self.max_bytes, self._clock = instance, limit, max_bytes, clock
        self._texts: OrderedDict[str, tuple[float, str]] = OrderedDict()
        self._bytes = 0

    def new_id(self) -> str:
        """An id that nobody can guess, and that names this server."""
        return "_".join(filter(None, ("audio", self.instance, secrets.token_hex(16))))

    def store(self, id: str, text: str) -> int:
        """Returns when it expires, as OpenAI's `expires_at`."""
        now = self._clock()
        self._texts[id] = now + TRANSCRIPT_S, text
        self._bytes += len(text.encode())
        while self._texts and (len(self._texts) > self.limit or self._bytes > self.max_bytes or self._first_expiry() <= now):
            _, (_, dropped) = self._texts.popitem(last=False)
            self._bytes -= len(dropped.encode())
        return int(now + TRANSCRIPT_S)

    def text(self, id: str, param: str) -> str:
        """Raises `ApiError` 400 for an id that is not, or no longer, known; param: where it stands in the body."""
        expires, text = self._texts.get(id, (0.0, ""))
        if expires <= self._clock():
            raise refuse(
                param,
                f"no spoken answer {id!r:.80} is known here, or it has expired (they are kept for an hour); send its "
                "transcript as the content of the message",
                "invalid_audio_id",
            )
        return text

    def _first_expiry(self):
        return next(iter(self._texts.values()))[0]


class TokenTexts:
    """Texts and bytes of single tokens of a byte-level tokenizer, for log-probabilities as OpenAI has them."""

    def __init__(self, tokenizer: Any):
        self._tokenizer, self._added = tokenizer, set(tokenizer.get_added_vocab().values())

    def entry(self, token: int, logprobs: Logprobs) -> dict[str, Any]:
        """The token that was chosen, with the likeliest beside it."""
        top = [self.single(int(id), float(value)) for id, value in zip(logprobs.ids, logprobs.logprobs)]
        return {**self.single(token, logprobs.chosen), "top_logprobs": top}

    def single(self, token: int, value: float) -> dict[str, Any]:
        """A token alone."""
        data = self._bytes(token)
        try:
            text = data.decode()
        except UnicodeDecodeError:
            text = "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
        return {"token": text, "logprob": max(value, IMPOSSIBLE), "bytes": list(data)}

    def _bytes(self, token):
        text = self._tokenizer.convert_ids_to_tokens(token) or ""
        letters = byte_letters()
        if token in self._added or not all(letter in letters for letter in text):
            return text.encode()
        return bytes(letters[letter] for letter in text)


@lru_cache(maxsize=1)
def byte_letters() -> dict[str, int]:
    """The letter that stands for each byte in a byte-level vocabulary: itself where it is printable, else one from 256 on."""
    printable = [byte for byte in range(256) if re.match(r"[!-~\u00a1-\u00ac\u00ae-\u00ff]", chr(byte))]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + number): byte for number, byte in enumerate(others)}


class Choice:
    """One answer from its events to deltas.

    stops: texts that end it; thinking: whether the prompt has opened its thoughts; calls: how many tool calls there may be (None:
    any number), 0 where there are no tools; format: of its sound, or None; transcripts: where what is said is stored; talker_limit:
    of frames; stream: whether sound is sent as it comes; texts: of tokens, where their log-probabilities are wanted.

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
        self._texts, self._end_ids, self._waiting, self._ready = texts, end_ids, [], []
        self._stop, self._thoughts = StopText(stops), Thoughts(thinking)
        self._calls = None if calls == 0 else Calls(calls)
        self._format, self._transcripts, self._talker_limit = format, transcripts, talker_limit
        self.audio_id = transcripts.new_id() if transcripts is not None and format else None
        self._transcript: list[str] = []
        self._encoder = Encoder(format) if format and stream else None

    def take(self, event: Any) -> list[Delta]:
        """The deltas of an event; behind the last one `finish_reason` is set. Full caches end it as a matter of length, other errors
        are raised.
        """
        if isinstance(event, TextDelta):
            return self._token(event)
        if isinstance(event, AudioChunk):
            return self._sound(event.pcm[0, : event.samples[0]])
        if isinstance(event, StreamEnd):
            self.frames = int(event.frames[0])
            self.cached = 0 if event.cached_tokens is None else int(event.cached_tokens[0])
            cut = end_reason(event) == LENGTH and not self._stop.found
            talker_cut = self._talker_limit is not None and self.frames >= self._talker_limit
            return self.end("length" if cut or talker_cut else "stop")
        if isinstance(event, StreamError):
            if not isinstance(event.error, CacheFull):
                raise event.error
            return self.end("length")
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
            self._release_logprobs()
        self.finish_reason = reason
        if self.audio_id is not None and self._transcripts is not None:
            expires_at = self._transcripts.store(self.audio_id, "".join(self._transcript))
            deltas.append({"audio": {"id": self.audio_id, "expires_at": expires_at}})
        return deltas

    @property
    def full(self) -> bool:
        """Whether nothing that follows is wanted."""
        return self._calls is not None and self._calls.full

    def logprobs(self) -> list[dict[str, Any]]:
        """Those of the tokens whose text was given out since the last call."""
        ready, self._ready = self._ready, []
        return ready

    def _token(self, event):
        self.tokens += 1
        token, thinking = int(event.token[0]), self._thoughts.thinking
        deltas = self._parse(event.text[0] if event.text else "")
        self.thought_tokens += thinking
        if self._texts is not None and event.logprobs and not thinking and token not in self._end_ids:
            self._waiting.append(self._texts.entry(token, event.logprobs[0]))
        if deltas:
            self._release_logprobs()
        return deltas

    def _release_logprobs(self):
        self._ready += self._waiting
        self._waiting = []

    def _parse(self, piece):
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
                    self._add_audio(value)
                elif name == "tool_calls":
                    self._add_call(value[0])
                else:
                    self.texts[name] += value

    def _add_audio(self, audio):
        if "samples" in audio:
            self.samples.append(audio["samples"])
            return
        self.audio |= audio | {"transcript": self.audio.get("transcript", "") + audio.get("transcript", "")}

    def _add_call(self, delta):
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
