"""The results as a picture: bars, ours above the reference, or curves over the rows of engines that callers met."""

from collections.abc import Mapping
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from .report import MEMORY, OURS, Outcome, Result, digits

WIDTH, MARGIN, LABEL_WIDTH, VALUE_WIDTH, RATIO_WIDTH = 1200, 30, 330, 110, 90
BAR, GAP, TITLE = 17, 13, 44
PANEL_HEIGHT, TOP, LEFT, BOTTOM = 260, 100, 60, 44  # of curves
INK, PALE, RULE, GOOD, BAD = "#1b1f24", "#6b7480", "#d9dee4", "#1a7f4b", "#b3402e"
BLUE, GREY, ORANGE = "#2f6fde", "#b9c2cd", "#d9822b"
TITLES = {
    "s": "seconds",
    "ms": "milliseconds",
    "GB": "gigabytes of memory",
    "s/s": "seconds of work per second of speech (real-time factor)",
}
CURVES = (  # title, {name of a curve: metric}, factor
    ("time to first token, ms", {"median": "first_token_p50_s", "95 %": "first_token_p95_s"}, 1e3),
    ("time to first sound, ms", {"median": "first_sound_p50_s", "95 %": "first_sound_p95_s"}, 1e3),
    ("time per token, ms", {"median": "token_p50_s", "95 %": "token_p95_s"}, 1e3),
    ("real-time factor", {"median": "real_time_factor"}, 1.0),
    ("tokens per second, all callers", {"": "tokens_per_s"}, 1.0),
    ("seconds of speech per second, all callers", {"": "sound_per_s"}, 1.0),
)


class Canvas:
    """A white picture with a head: what was measured, and with what."""

    def __init__(self, height: int, title: str, size: int, head: Mapping[str, Any], outcome: Outcome):
        self.picture = Image.new("RGB", (WIDTH, height), "white")
        self.draw = ImageDraw.Draw(self.picture)
        self.write((MARGIN, 22), title, size)
        words: list[str | None] = [
            outcome.ours.get(name) for name in ("software", "device", "precision", "vectors", "storage")
        ]
        words += [head["machine"]["processor"], f"{head['machine']['cores']} cores"]
        words += [f"{head['cards']} process(es)" if "cards" in head else None, head["when"]]
        self.write((MARGIN, 58), "  |  ".join(filter(None, words)), 14, PALE)

    def write(self, at: tuple[float, float], text: str, size: int, colour: str = INK, anchor: str = "la") -> None:
        """at: of the text's corner that `anchor` names (Pillow's letters)."""
        self.draw.text(at, text, fill=colour, font=ImageFont.load_default(size), anchor=anchor)

    def bar(self, x: float, y: float, length: float, value: float, colour: str) -> None:
        """A bar, and its value behind it."""
        self.draw.rectangle((x, y + 1, x + max(length, 1), y + BAR - 2), fill=colour)
        self.write((x + length + 8, y + BAR / 2), digits(value), 13, INK, "lm")


def draw_bars(head: Mapping[str, Any], outcome: Outcome, file: Any) -> None:
    """Writes the picture to `file` (.png): a panel per unit."""
    panels: dict[str, list[Result]] = {}
    for result in outcome.results:
        panels.setdefault(result.shown_as[1], []).append(result)
    row = (2 if outcome.other else 1) * BAR + GAP
    height = 120 + sum(TITLE + row * len(results) for results in panels.values()) + MARGIN
    canvas = Canvas(height, f"{OURS}: {head['model']}", 26, head, outcome)
    x, names = MARGIN, {OURS: BLUE, outcome.other: GREY} if outcome.other else {f"{OURS}, median": BLUE}
    for name, colour in names.items():
        canvas.draw.rectangle((x, 88, x + 14, 102), fill=colour)
        canvas.write((x + 20, 95), name, 14, INK, "lm")
        x += 40 + canvas.draw.textlength(name, font=ImageFont.load_default(14))
    if outcome.other:
        text = "right: how many times as fast as the reference (memory: share of the reference's)"
        canvas.write((WIDTH - MARGIN, 95), text, 13, PALE, "rm")
    top = 112
    for unit, results in panels.items():
        better = "more is better" if unit.endswith("/s") and unit != "s/s" else "less is better"
        canvas.write((MARGIN, top + 12), TITLES.get(unit, unit), 17)
        canvas.write((WIDTH - MARGIN, top + 15), better, 13, PALE, "ra")
        canvas.draw.line((MARGIN, top + TITLE - 6, WIDTH - MARGIN, top + TITLE - 6), fill=RULE)
        _bars(canvas, top + TITLE, row, results)
        top += TITLE + row * len(results)
    canvas.picture.save(file, format="PNG")


def _bars(canvas, top, row, results):
    start = MARGIN + LABEL_WIDTH
    sides = [[side and side.median * result.shown_as[0] for side in (result.ours, result.reference)] for result in results]
    scale = (WIDTH - start - VALUE_WIDTH - RATIO_WIDTH - MARGIN) / (max(value or 0 for side in sides for value in side) or 1)
    for result, (ours, other) in zip(results, sides):
        canvas.write((start - 12, top + (row - GAP) / 2), result.label, 15, INK, "rm")
        canvas.bar(start, top, scale * ours, ours, BLUE)
        if other is not None:
            canvas.bar(start, top + BAR, scale * other, other, GREY)
        if result.ratio is not None:
            good = result.ratio <= 1 if result.metric == MEMORY else result.ratio >= 1
            canvas.write((WIDTH - MARGIN, top + BAR), f"{digits(result.ratio)}x", 17, GOOD if good else BAD, "rm")
        top += row


def draw_curves(head: Mapping[str, Any], outcome: Outcome, file: Any) -> None:
    """Writes the picture to `file` (.png): every figure over the rows of the engine, or over the callers at once of a server."""
    height = TOP + PANEL_HEIGHT * -(-len(CURVES) // 2) + MARGIN
    canvas = Canvas(height, f"{head.get('server', OURS)}, {head['model']}: {head['asked']}", 18, head, outcome)
    width, axis = (WIDTH - 3 * MARGIN) // 2, head.get("axis", "rows of the engine")
    for number, (title, metrics, factor) in enumerate(CURVES):
        left, top = MARGIN + (number % 2) * (width + MARGIN), TOP + (number // 2) * PANEL_HEIGHT
        curves = {
            name: [(rows, numbers[metric] * factor) for rows, numbers in outcome.served.items() if metric in numbers]
            for name, metric in metrics.items()
        }
        canvas.write((left, top), title, 17)
        canvas.write((left + width - 10, top + PANEL_HEIGHT - BOTTOM + 22), axis, 12, PALE, "ra")
        _curves(canvas, left + LEFT, left + width - 10, top, curves)
    canvas.picture.save(file, format="PNG")


def _curves(canvas, left, right, top, curves):
    floor, ceiling = top + PANEL_HEIGHT - BOTTOM, top + 40
    points = [point for curve in curves.values() for point in curve]
    highest = max((value for _, value in points), default=0.0) or 1.0
    for share in (0.0, 0.5, 1.0):
        y = floor - share * (floor - ceiling)
        canvas.draw.line((left, y, right, y), fill=RULE)
        canvas.write((left - 8, y), digits(share * highest) if share else "0", 12, PALE, "rm")
    rows = sorted({row for row, _ in points})
    columns = {row: left + (right - left) * (number + 1) / (len(rows) + 1) for number, row in enumerate(rows)}
    for row, x in columns.items():
        canvas.write((x, floor + 6), f"{row}", 12, PALE, "ma")
    for number, ((name, curve), colour) in enumerate(zip(curves.items(), (BLUE, ORANGE))):
        line = [(columns[row], floor - value / highest * (floor - ceiling)) for row, value in curve]
        canvas.draw.line(line, fill=colour, width=2)
        for x, y in line:
            canvas.draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=colour)
        canvas.write((right - 90 * (len(curves) - number - 1), top + 4), name, 13, colour, "ra")
