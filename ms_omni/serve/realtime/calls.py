"""Calls of functions in what the model writes, found while it writes."""

from typing import Any

from ...input.tools import parse_tool_calls

OPEN, CLOSE = "<tool_call>", "</tool_call>"


class Calls:
    """Takes pieces of text and gives them back without the calls; what may be the beginning of one is held back."""

    def __init__(self) -> None:
        self._held = ""

    def push(self, piece: str) -> tuple[str, list[tuple[str, dict[str, Any]]]]:
        """The text that is none of a call for sure, and the calls `(name, arguments)` that are whole."""
        self._held += piece
        text, calls = "", []
        while True:
            start = self._held.find(OPEN)
            if start < 0:
                keep = next((n for n in range(len(OPEN) - 1, 0, -1) if self._held.endswith(OPEN[:n])), 0)
                cut = len(self._held) - keep
                text, self._held = text + self._held[:cut], self._held[cut:]
                return text.rstrip() if calls else text, calls
            stop = self._held.find(CLOSE)
            if stop < 0:
                text, self._held = text + self._held[:start].rstrip(), self._held[start:]
                return text, calls
            stop += len(CLOSE)
            rest, found = parse_tool_calls(self._held[start:stop])
            text += self._held[:start].rstrip() + ("" if found else rest)
            calls += [(call["name"], call["arguments"]) for call in found]
            self._held = self._held[stop:].lstrip() if found else self._held[stop:]

    def end(self) -> tuple[str, list[tuple[str, dict[str, Any]]]]:
        """The rest; nothing follows."""
        rest, found = parse_tool_calls(self._held)
        self._held = ""
        return "" if found else rest, [(call["name"], call["arguments"]) for call in found]
