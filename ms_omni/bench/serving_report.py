"""What `serve` found: a table with a line per number of rows, or of callers at once, and a picture with a curve per figure."""

from typing import Any

from PIL import Image, ImageDraw

from .metrics import Result
from .picture import INK, MARGIN, OURS, PALE, WIDTH, subtitle, write_text
from .report import digits

COLUMNS = {  # heading: metric, factor
    "first token, median ms": ("first_token_p50_s", 1e3),
    "95 %": ("first_token_p95_s", 1e3),
    "longest": ("first_token_max_s", 1e3),
    "first sound, median ms": ("first_sound_p50_s", 1e3),
    "95 % ": ("first_sound_p95_s", 1e3),
    "longest ": ("first_sound_max_s", 1e3),
    "per token, median ms": ("token_p50_s", 1e3),
    "real-time factor, median": ("real_time_factor", 1.0),
    "under-runs": ("under_runs", 1),
    "silent in them, s": ("silence_s", 1.0),
    "requests/s": ("requests_per_s", 1.0),
    "tokens/s": ("tokens_per_s", 1.0),
    "speech, s/s": ("sound_per_s", 1.0),
    "scheduling, % of a tick": ("scheduling_percent", 1.0),
    "failed": ("failed", 1),
}
PANELS = (  # title, {name of a curve: metric}, factor
    ("time to first token, ms", {"median": "first_token_p50_s", "95 %": "first_token_p95_s"}, 1e3),
    ("time to first sound, ms", {"median": "first_sound_p50_s", "95 %": "first_sound_p95_s"}, 1e3),
    ("time per token, ms", {"median": "token_p50_s", "95 %": "token_p95_s"}, 1e3),
    ("real-time factor", {"median": "real_time_factor"}, 1.0),
    ("tokens per second, all callers", {"": "tokens_per_s"}, 1.0),
    ("seconds of speech per second, all callers", {"": "sound_per_s"}, 1.0),
)
PANEL_HEIGHT, TOP, LEFT, BOTTOM = 260, 100, 60, 44
COLOURS = (OURS, "#d9822b")

Points = list[tuple[int, float]]


def by_rows(results: list[Result]) -> dict[int, dict[str, float]]:
    """{rows of the engine, or callers at once: {metric: median}}, in ascending order."""
    found: dict[int, dict[str, float]] = {}
    for result in results:
        group, _, rows = result.scenario.partition("/")
        if group == "serve":
            found.setdefault(int(rows), {})[result.metric] = result.ours.median
    return dict(sorted(found.items()))


def serving_lines(results: list[Result], axis: str = "rows") -> list[str]:
    """A table in Markdown, without columns that nobody has a number for; nothing where nobody was served."""
    found = by_rows(results)
    columns = {name: at for name, at in COLUMNS.items() if any(at[0] in numbers for numbers in found.values())}
    if not found:
        return []
    lines = [f"| {axis} | " + " | ".join(name.strip() for name in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for rows, numbers in found.items():
        cells = [digits(numbers[metric] * factor if metric in numbers else None) for metric, factor in columns.values()]
        lines.append(f"| {rows} | " + " | ".join(cells) + " |")
    return lines


def draw_curves(head: dict[str, Any], outcome: Any, file: Any) -> None:
    """Writes the picture to `file` (.png): every figure over the rows of the engine, or over the callers at once of a server."""
    axis = head.get("axis", "rows of the engine")
    found = by_rows(outcome.results)
    height = TOP + PANEL_HEIGHT * -(-len(PANELS) // 2) + MARGIN
    picture = Image.new("RGB", (WIDTH, height), "white")
    canvas = ImageDraw.Draw(picture)
    write_text(canvas, (MARGIN, 22), f"{head.get('server', 'ms_omni')}, {head['model']}: {head['asked']}", 18)
    write_text(canvas, (MARGIN, 58), subtitle(head, outcome), 14, PALE)
    width = (WIDTH - 3 * MARGIN) // 2
    for number, (title, metrics, factor) in enumerate(PANELS):
        curves = {
            name: [(rows, numbers[metric] * factor) for rows, numbers in found.items() if metric in numbers]
            for name, metric in metrics.items()
        }
        corner = MARGIN + (number % 2) * (width + MARGIN), TOP + (number // 2) * PANEL_HEIGHT
        _panel(canvas, corner, width, title, axis, curves)
    picture.save(file, format="PNG")


def _panel(canvas, corner: tuple[int, int], width: int, title: str, axis: str, curves: dict[str, Points]) -> None:
    left, top = corner
    write_text(canvas, corner, title, 17)
    right, floor, ceiling = left + width - 10, top + PANEL_HEIGHT - BOTTOM, top + 40
    left += LEFT
    rows = sorted({row for points in curves.values() for row, _ in points})
    highest = max((value for points in curves.values() for _, value in points), default=0.0) or 1.0
    for share in (0.0, 0.5, 1.0):
        y = floor - share * (floor - ceiling)
        canvas.line((left, y, right, y), fill="#d9dee4")
        write_text(canvas, (left - 8, y), digits(share * highest) if share else "0", 12, PALE, "rm")
    step = (right - left) / (len(rows) + 1)
    places = {row: left + step * (number + 1) for number, row in enumerate(rows)}
    for row, x in places.items():
        write_text(canvas, (x, floor + 6), f"{row}", 12, PALE, "ma")
    write_text(canvas, (right, floor + 22), axis, 12, PALE, "ra")
    for number, (name, points) in enumerate(curves.items()):
        line = [(places[row], floor - value / highest * (floor - ceiling)) for row, value in points]
        canvas.line(line, fill=COLOURS[number], width=2)
        for x, y in line:
            canvas.ellipse((x - 4, y - 4, x + 4, y + 4), fill=COLOURS[number])
        write_text(
            canvas, (right - 90 * (len(curves) - number - 1), top + 4), name, 13, COLOURS[number] if name else INK, "ra"
        )
