"""What the model writes, parsed as it comes: text before a stop text, thoughts, content, and tool calls.

pieces --StopText--> --Thoughts--> thoughts, text --Calls--> content, calls

Each stage holds back what could be the beginning of something else, and gives it out at the end; so the parts do not depend on how
the text is cut into pieces.
"""

import json
import re
import secrets
from collections.abc import Sequence
from typing import Any

from ..input.interface import parse_tool_calls

THINK, END_THINK = "<think>", "</think>"
OPEN, CLOSE = "<tool_call>", "</tool_call>"
_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\{)', re.DOTALL)


def overlap(text: str, marks: Sequence[str]) -> int:
    """How many characters at the end of a text could be the beginning of a mark."""
    longest = max(map(len, marks), default=0) - 1
    return next((n for n in range(min(longest, len(text)), 0, -1) if any(m.startswith(text[-n:]) for m in marks)), 0)


class StopText:
    """Ends a text before the first of some texts; found: whether one came."""

    def __init__(self, stops: Sequence[str]):
        self.stops, self._pending, self.found = tuple(stops), "", False

    def push(self, piece: str) -> str:
        """What is sure not to be a part of a stop text."""
        if self.found or not self.stops:
            return "" if self.found else piece
        text = self._pending + piece
        starts = [start for start in map(text.find, self.stops) if start >= 0]
        if starts:
            self.found, self._pending = True, ""
            return text[: min(starts)]
        count = overlap(text, self.stops)
        self._pending = text[len(text) - count :]
        return text[: len(text) - count]

    def rest(self) -> str:
        """What was held back."""
        text, self._pending = self._pending, ""
        return text


class Thoughts:
    """Separates `<think>...</think>` at the beginning of an answer from what follows.

    thinking: the prompt has opened it already. White space around the marks belongs to neither.
    """

    def __init__(self, thinking: bool):
        self.thinking, self._begun, self._started = thinking, thinking, False
        self._pending = self._space = ""
        self._stripping = False

    def push(self, piece: str) -> tuple[str, str]:
        """-> thoughts, text."""
        text = self._pending + piece
        self._pending = ""
        if not self._begun:
            start = text.lstrip()
            if THINK.startswith(start[: len(THINK)]) and len(start) < len(THINK):
                self._pending = text
                return "", ""
            self._begun = True
            if start.startswith(THINK):
                self.thinking, text = True, start[len(THINK) :]
        if not self.thinking:
            return "", self._follow(text)
        thought, mark, after = text.partition(END_THINK)
        if not mark:
            count = overlap(thought, (END_THINK,))
            self._pending = thought[len(thought) - count :]
            return self._think(thought[: len(thought) - count]), ""
        self.thinking, self._stripping = False, True
        return self._think(thought), self._follow(after)

    def rest(self) -> tuple[str, str]:
        """What was held back."""
        text, self._pending = self._pending, ""
        return (self._think(text), "") if self.thinking else ("", self._follow(text))

    def _think(self, text):
        """Without the white space at its ends: what may be the last waits until something follows."""
        text = self._space + text
        if not self._started:
            text = text.lstrip()
        stripped = text.rstrip()
        self._space = text[len(stripped) :]
        self._started = self._started or bool(stripped)
        return stripped

    def _follow(self, text):
        """Without the white space behind the thoughts."""
        if self._stripping:
            text = text.lstrip()
            self._stripping = not text
        return text


class Calls:
    """Separates tool calls from content.

    limit: how many there may be; what follows the last is left out, and `full` says so. A call is given out as OpenAI streams it:
    `{"index", "id", "type", "function": {"name", "arguments"}}` first, then pieces of the arguments.
    """

    def __init__(self, limit: int | None = None):
        self.limit, self.count = limit, 0
        self._pending = self._space = ""
        self._call: _Call | None = None
        self._started = False

    @property
    def full(self) -> bool:
        """Whether no more calls are taken."""
        return self._call is None and self.count == self.limit

    def push(self, piece: str) -> tuple[str, list[dict[str, Any]]]:
        """-> content, deltas of calls."""
        text, content, deltas = self._pending + piece, "", []
        self._pending = ""
        while text and not self.full:
            if self._call is None:
                before, mark, text = text.partition(OPEN)
                if not mark:
                    count = overlap(before, (OPEN,))
                    self._pending = before[len(before) - count :]
                    content += self._content(before[: len(before) - count])
                    break
                content += self._content(before)
                self._call = _Call(self.count)
            body, mark, after = text.partition(CLOSE)
            count = 0 if mark else overlap(body, (CLOSE,))
            self._pending = body[len(body) - count :]
            deltas += self._call.push(body[: len(body) - count])
            if not mark:
                break
            text = after
            content += self._close(deltas, True)
        return content, deltas

    def rest(self, cut: bool) -> tuple[str, list[dict[str, Any]]]:
        """What was held back; cut: the text ends too early, so that a call whose arguments have not begun is left out."""
        deltas = []
        text, self._pending = self._pending, ""
        if self._call is None:
            content = self._content(text)
            return (content if self.count else content + self._space), deltas
        deltas += self._call.push(text)
        content = self._close(deltas, False)
        return "" if cut else content, deltas

    def _close(self, deltas, closed):
        """Ends the call; returns it as content where it is none."""
        call, self._call = self._call, None
        assert call is not None
        more, text = call.close(closed)
        deltas += more
        self.count = call.index
        return self._content(text) if text else ""

    def _content(self, text):
        """White space waits until content follows: it is left out before and behind calls."""
        text = self._space + text
        stripped = text.rstrip()
        self._space = text[len(stripped) :]
        if self.count and not self._started:
            stripped = stripped.lstrip()
        self._started = self._started or bool(stripped)
        return stripped


class _Call:
    """The block of one call; index: how many came before it, and behind `close` how many there are with those in it."""

    def __init__(self, index):
        self.index, self._body = index, ""
        self._arguments: _JsonObject | None = None
        self._read = 0  # characters of the body that the arguments have seen

    def push(self, piece):
        """Deltas: the name as soon as the arguments begin, then they, as they are written."""
        self._body += piece
        deltas = []
        if self._arguments is None:
            head = _HEAD.match(self._body)
            if head is None:
                return []
            self._read, self._arguments = head.end(), _JsonObject()
            deltas.append(_name_delta(self.index, json.loads(head[1], strict=False)))
        text, self._read = self._arguments.push(self._body[self._read :]), len(self._body)
        return [*deltas, _arguments_delta(self.index, text)] if text else deltas

    def close(self, closed):
        """-> deltas, and the block as text where it holds no call."""
        if self._arguments is not None:
            self.index += 1
            missing = self._arguments.missing if closed else ""
            return ([_arguments_delta(self.index - 1, missing)] if missing else []), ""
        text, calls = parse_tool_calls(OPEN + self._body + (CLOSE if closed else ""))
        deltas = []
        for call in calls:
            arguments = json.dumps(call["arguments"], ensure_ascii=False)
            deltas += [_name_delta(self.index, call["name"]), _arguments_delta(self.index, arguments)]
            self.index += 1
        return deltas, "" if calls else text


class _JsonObject:
    """A JSON object as it comes, up to its last brace; missing: what it takes to close it."""

    def __init__(self):
        self._open, self._in_text, self._escaped, self._complete = [], False, False, False

    def push(self, text):
        """The part of a text that belongs to it."""
        for number, letter in enumerate(text):
            if self._complete:
                return text[:number]
            if self._in_text:
                self._in_text = self._escaped or letter != '"'
                self._escaped = letter == "\\" and not self._escaped
            elif letter == '"':
                self._in_text = True
            elif letter in "{[":
                self._open.append("}" if letter == "{" else "]")
            elif letter in "}]" and self._open:
                self._open.pop()
                self._complete = not self._open
        return text

    @property
    def missing(self):
        return ('"' if self._in_text else "") + "".join(reversed(self._open))


def _name_delta(index, name):
    id = f"call_{secrets.token_hex(12)}"
    return {"index": index, "id": id, "type": "function", "function": {"name": name, "arguments": ""}}


def _arguments_delta(index, arguments):
    return {"index": index, "function": {"arguments": arguments}}
