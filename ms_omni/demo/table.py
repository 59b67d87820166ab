"""Questions and answers side by side, as lines of text that fit a terminal."""

import shutil
import textwrap

SHARES = (0.38, 0.34, 0.28)  # of the columns
HEAD = ("shown or said", "asked", "answered")
LEAST, MOST = 70, 120  # characters of a line


def head():
    """Names of the columns, underlined."""
    return f"{line(HEAD)}\n{'-' * (sum(_widths()) + 2 * len(SHARES) - 2)}"


def row(sample, answer):
    """One question: what was shown, what was asked, what came, and whether it is right."""
    right = answer.text == sample.answer
    return line((sample.shown, sample.question, answer.text if right else f"{answer.text}  (expected: {sample.answer})"))


def line(cells):
    """Cells in their columns, on as many lines as they need."""
    widths = _widths()
    wrapped = [textwrap.wrap(cell, width) or [""] for cell, width in zip(cells, widths)]
    height = max(map(len, wrapped))
    padded = [column + [""] * (height - len(column)) for column in wrapped]
    return "\n".join("  ".join(part.ljust(width) for part, width in zip(parts, widths)).rstrip() for parts in zip(*padded))


def _widths():
    whole = min(max(shutil.get_terminal_size().columns, LEAST), MOST) - 2 * (len(SHARES) - 1)
    return [int(whole * share) for share in SHARES]
