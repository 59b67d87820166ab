"""The results as bars: one panel per unit, ours above the reference, the ratio at the right."""

from PIL import Image, ImageDraw, ImageFont

from .metrics import MEMORY
from .report import digits, label, shown

WIDTH, MARGIN, LABEL_WIDTH, VALUE_WIDTH, RATIO_WIDTH = 1200, 30, 330, 110, 90
BAR, GAP, TITLE = 17, 13, 44
INK, PALE, OURS, OTHER, GOOD, BAD = "#1b1f24", "#6b7480", "#2f6fde", "#b9c2cd", "#1a7f4b", "#b3402e"

TITLES = {
    "s": "seconds",
    "ms": "milliseconds",
    "GB": "gigabytes of memory",
    "s/s": "seconds of work per second of speech (real-time factor)",
}


def draw(head, outcome, file):
    """Writes the picture to `file` (.png)."""
    panels, other = panels_of(outcome.results), next((name for name in outcome.about if name != "ms_omni"), None)
    bars = 2 if other else 1
    row = bars * BAR + GAP
    height = 120 + sum(TITLE + row * len(results) for results in panels.values()) + MARGIN
    picture = Image.new("RGB", (WIDTH, height), "white")
    canvas = ImageDraw.Draw(picture)
    write_text(canvas, (MARGIN, 22), f"ms_omni: {head['model']}", 26)
    write_text(canvas, (MARGIN, 58), subtitle(head, outcome), 14, PALE)
    _legend(canvas, other)
    top = 112
    for unit, results in panels.items():
        top = _panel(canvas, top, unit, results, other, row)
    picture.save(file, format="PNG")


def panels_of(results):
    """{unit as shown: results}, in the order in which the units come up."""
    panels = {}
    for result in results:
        panels.setdefault(shown(result)[2], []).append(result)
    return panels


def _panel(canvas, top, unit, results, other, row):
    longest = max(max(shown(result)[0], shown(result)[1] or 0) for result in results) or 1
    better = "more is better" if unit.endswith("/s") and unit != "s/s" else "less is better"
    write_text(canvas, (MARGIN, top + 12), TITLES.get(unit, unit), 17)
    write_text(canvas, (WIDTH - MARGIN, top + 15), better, 13, PALE, "ra")
    top += TITLE
    canvas.line((MARGIN, top - 6, WIDTH - MARGIN, top - 6), fill="#d9dee4")
    start = MARGIN + LABEL_WIDTH
    space = WIDTH - start - VALUE_WIDTH - RATIO_WIDTH - MARGIN
    for result in results:
        ours, reference, _ = shown(result)
        write_text(canvas, (start - 12, top + (BAR * (2 if other else 1)) / 2), label(result), 15, INK, "rm")
        _bar(canvas, (start, top), ours, space * ours / longest, OURS)
        if other and reference is not None:
            _bar(canvas, (start, top + BAR), reference, space * reference / longest, OTHER)
            _ratio(canvas, top + BAR, result)
        top += row
    return top


def _bar(canvas, corner, value, length, colour):
    x, y = corner
    canvas.rectangle((x, y + 1, x + max(length, 1), y + BAR - 2), fill=colour)
    write_text(canvas, (x + length + 8, y + BAR / 2), digits(value), 13, INK, "lm")


def _ratio(canvas, middle, result):
    good = result.ratio <= 1 if result.metric == MEMORY else result.ratio >= 1
    write_text(canvas, (WIDTH - MARGIN, middle), f"{digits(result.ratio)}x", 17, GOOD if good else BAD, "rm")


def _legend(canvas, other):
    names = [("ms_omni", OURS), (other, OTHER)] if other else [("ms_omni, median", OURS)]
    x = MARGIN
    for name, colour in names:
        canvas.rectangle((x, 88, x + 14, 102), fill=colour)
        write_text(canvas, (x + 20, 95), name, 14, INK, "lm")
        x += 40 + canvas.textlength(name, font=_font(14))
    if other:
        text = "right: how many times as fast as the reference (memory: share of the reference's)"
        write_text(canvas, (WIDTH - MARGIN, 95), text, 13, PALE, "rm")


def subtitle(head, outcome):
    """What it was measured with."""
    about = outcome.about.get("ms_omni", {})
    words = [
        about.get("software"),
        about.get("device"),
        about.get("precision"),
        about.get("vectors"),
        about.get("storage"),
        head["machine"]["processor"],
        f"{head['machine']['cores']} cores",
        f"{head['cards']} process(es)" if "cards" in head else None,
        head["when"],
    ]
    return "  |  ".join(str(word) for word in words if word)


def _font(size):
    return ImageFont.load_default(size)


def write_text(canvas, place, text, size, colour=INK, anchor="la"):
    """place: of the text's corner that `anchor` names (Pillow's letters)."""
    canvas.text(place, text, fill=colour, font=_font(size), anchor=anchor)
