"""Long texts cut where a reader would breathe, into pieces that a talker can say in one go."""

import re
import unicodedata
from itertools import pairwise

PIECE_S = 60.0
"""As long as a piece may take to say: far below what talkers are limited to, for nobody knows how slowly one speaks."""
LETTER_S, WIDE_S, DIGIT_S = 0.08, 0.3, 0.4
MARKS = (r"\n\s*", r"[.!?…]+[\"'”’)\]]*\s+|[。！？…]+[”’」』）]*\s*", r"[;:]\s+|[；：]", r",\s+|[，、]", r"\s+")  # noqa: RUF001
"""What a piece may end with, the best first."""


def estimated_s(text: str) -> float:
    """About how long it takes to say a text."""
    return sum(_seconds(letter) for letter in text)


def pieces(text: str, most_s: float = PIECE_S, marks: tuple[str, ...] = MARKS) -> list[str]:
    """A text in parts that take at most `most_s` to say, as few as can be at the best places; joined they are the text."""
    if estimated_s(text) <= most_s:
        return [text]
    if not marks:
        return _slices(text, most_s)
    found: list[str] = []
    for part in _parts(text, marks[0]):
        if found and estimated_s(found[-1]) + estimated_s(part) <= most_s:
            found[-1] += part
        else:
            found += pieces(part, most_s, marks[1:])
    return found


def _parts(text, mark):
    ends = [match.end() for match in re.finditer(mark, text)]
    places = [0, *ends, len(text)]
    return [text[start:stop] for start, stop in pairwise(places) if start < stop]


def _slices(text, most_s):
    found, left = [""], most_s
    for letter in text:
        seconds = _seconds(letter)
        if seconds > left:
            found.append("")
            left = most_s
        found[-1] += letter
        left -= seconds
    return found


def _seconds(letter):
    if letter.isdigit():
        return DIGIT_S
    return WIDE_S if unicodedata.east_asian_width(letter) in "WF" else LETTER_S
