"""What the numbers mean, how repetitions and two sides are put together, and the results as JSON and Markdown."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from ..files import write_file, write_text

OURS, MEMORY = "ms_omni", "peak_gb"
SPEED = ("tokens_per_s", "frames_per_s")
COUNTED = "compiled"


class Metric(NamedTuple):
    """unit; label: empty where the scenario's own says it; more: more is better."""

    unit: str
    label: str = ""
    more: bool = False


METRICS = {
    "load_s": Metric("s", "load"),
    "import_s": Metric("s", "import of the software"),
    "peak_gb": Metric("GB", "peak memory"),
    "encode_s": Metric("s"),
    "tokens_per_s": Metric("tokens/s", more=True),
    "memory_gb_per_s": Metric("GB/s", more=True),
    "weights_gb_per_s": Metric("GB/s", "weights read", more=True),
    "frames_per_s": Metric("frames/s", more=True),
    "token_s": Metric("s", "per token"),
    "talker_s": Metric("s", "talker, per frame"),
    "predictor_s": Metric("s", "predictor, per frame"),
    "real_time_factor": Metric("s/s", "real-time factor"),
    "first_token_s": Metric("s", "first token"),
    "first_sound_s": Metric("s", "first sound"),
    "total_s": Metric("s", "total"),
    **{
        f"{what}_{which}_s": Metric("s", f"{what.replace('_', ' ')}, {name}")
        for what in ("first_token", "first_sound", "token")
        for which, name in (("p50", "median"), ("p95", "95th percentile"), ("max", "longest"))
    },
    "requests_per_s": Metric("requests/s", "requests per second", more=True),
    "sound_per_s": Metric("sound/s", "seconds of speech per second", more=True),
    "under_runs": Metric("times", "under-runs"),
    "silence_s": Metric("s", "silence in under-runs"),
    "failed": Metric("times", "failed"),
    "scheduling_percent": Metric("%", "scheduling, share of a tick"),
    "prefills_s": Metric("s", "prompts one after another"),
    "first_piece_s": Metric("s", "first piece of all together"),
    "first_sound_share": Metric("x", "longest first sound over the sum of both"),
    "load": Metric("s/s", "sum of real-time factors"),
    "prompt_tokens": Metric("tokens", "tokens of the prompt"),
    "second_token_s": Metric("s", "first token of the second question"),
    "second_alone_s": Metric("s", "the same without the first question"),
    "second_share": Metric("x", "second question over first"),
    "same_ids": Metric("of 1", "same ids both ways (1: yes)", more=True),
}
LABELS = {  # of scenarios, by their group
    "load": "",
    "memory": "memory, read by all threads",
    "prefill": "prefill, {} tokens",
    "decode": "decode, batch {}",
    "cached": "decode at {} cached tokens",
    "speech": "talker + predictor",
    "code2wav": "code2wav, {}",
    "answer": "spoken answer",
    "writing": "rows that write together, {}",
    "speaking": "rows that speak together, {}",
    "burst": "callers at once, {}",
    "again": "two questions about a video",
    "serve": "{} rows",
}
SERVED = {  # columns of the table of `serve`: metric, factor
    "first token, median ms": ("first_token_p50_s", 1e3),
    "95 %": ("first_token_p95_s", 1e3),
    "longest": ("first_token_max_s", 1e3),
    "first sound, median ms": ("first_sound_p50_s", 1e3),
    "95 % ": ("first_sound_p95_s", 1e3),
    "longest ": ("first_sound_max_s", 1e3),
    "per token, median ms": ("token_p50_s", 1e3),
    "real-time factor, median": ("real_time_factor", 1),
    "under-runs": ("under_runs", 1),
    "silent in them, s": ("silence_s", 1),
    "requests/s": ("requests_per_s", 1),
    "tokens/s": ("tokens_per_s", 1),
    "speech, s/s": ("sound_per_s", 1),
    "scheduling, % of a tick": ("scheduling_percent", 1),
    "failed": ("failed", 1),
}


class Summary(NamedTuple):
    """Repetitions of one number: median, lowest, highest, and each of them in order."""

    median: float
    low: float
    high: float
    runs: tuple[float, ...]


@dataclass(frozen=True)
class Result:
    """One metric of one scenario; reference: None without one, or where it has no such number."""

    scenario: str
    part: str
    metric: str
    ours: Summary
    reference: Summary | None = None

    @property
    def label(self) -> str:
        """What it is called in tables and pictures."""
        group, _, size = self.scenario.partition("/")
        return ": ".join(filter(None, [LABELS.get(group, self.scenario).format(size), METRICS[self.metric].label]))

    @property
    def shown_as(self) -> tuple[float, str]:
        """(factor, unit) in which it is printed: short times in milliseconds."""
        unit = METRICS[self.metric].unit
        return (1e3, "ms") if unit == "s" and self.ours.median < 1 else (1, unit)

    @property
    def ratio(self) -> float | None:
        """How many times better ours is: rates ours / reference, seconds reference / ours. For memory it is
        ours / reference, since one asks what share is left. None without a reference.
        """
        if self.reference is None or not self.reference.median or not self.ours.median:
            return None
        ours, other = self.ours.median, self.reference.median
        return ours / other if METRICS[self.metric].more or self.metric == MEMORY else other / ours


@dataclass
class Outcome:
    """counts {scenario: {name: number}}; failures: one line each; about {side: its description}; recompiled: graphs that were built
    in repetitions that were timed.
    """

    results: list[Result] = field(default_factory=list)
    counts: dict[str, dict[str, float]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    about: dict[str, dict[str, str]] = field(default_factory=dict)
    recompiled: int = 0

    @property
    def ours(self) -> dict[str, str]:
        """The description of our side."""
        return self.about.get(OURS, {})

    @property
    def other(self) -> str | None:
        """The name of the other side, if there is one."""
        return next((name for name in self.about if name != OURS), None)

    @property
    def served(self) -> dict[int, dict[str, float]]:
        """{rows of the engine, or callers at once: {metric: median}}, in ascending order."""
        rows: dict[int, dict[str, float]] = {}
        for result in self.results:
            group, _, size = result.scenario.partition("/")
            if group == "serve":
                rows.setdefault(int(size), {})[result.metric] = result.ours.median
        return dict(sorted(rows.items()))


def combine(
    scenario: str, part: str, ours: Sequence[Mapping[str, float]], reference: Sequence[Mapping[str, float]] = ()
) -> list[Result]:
    """`Result` per metric from the repetitions of both sides, each a dict {metric: number}."""

    def summary(runs: Sequence[Mapping[str, float]], metric: str) -> Any:
        numbers = tuple(run[metric] for run in runs if metric in run)
        return Summary(median(numbers), min(numbers), max(numbers), numbers) if numbers else None

    metrics = [metric for metric in METRICS if ours and metric in ours[0]]
    return [Result(scenario, part, metric, summary(ours, metric), summary(reference, metric)) for metric in metrics]


def derived(results: Iterable[Result]) -> list[tuple[str, float, str]]:
    """Figures that compare two results: [(what, value, unit), ...]; what cannot be computed is left out."""
    at = {(item.scenario, item.metric): item for item in results}

    def ours(scenario, metric):
        return at[scenario, metric].ours.median if (scenario, metric) in at else math.nan

    def theirs(scenario, metric):
        side = at[scenario, metric].reference if (scenario, metric) in at else None
        return side.median if side else math.nan

    memory = at.get(("memory", "memory_gb_per_s"))
    speed, rows_16, frames_8 = "tokens_per_s", ours("writing/16", "tokens_per_s"), ours("speaking/8", "frames_per_s")
    parts = ("talker_s", "predictor_s")  # of one row without its prompt, which rows that speak together have read before
    figures = [
        (
            "decode cost of a token: growth from 100 to 1,000 cached tokens",
            100 * (ours("cached/1000", "token_s") / ours("cached/100", "token_s") - 1),
            "%",
        ),
        ("decode: tokens/s of batch 16 over batch 1", ours("decode/16", speed) / ours("decode/1", speed), "x"),
        *(
            (
                f"decode, batch {scenario.partition('/')[2]}: weights read, share of the machine's memory bandwidth",
                100 * item.ours.median / memory.ours.high if memory else math.nan,
                "%",
            )
            for (scenario, metric), item in at.items()
            if metric == "weights_gb_per_s"
        ),
        ("tokens/s of 16 rows over one row", rows_16 / ours("writing/1", speed), "x"),
        ("tokens/s of 16 rows over one row of the reference", rows_16 / theirs("decode/1", speed), "x"),
        ("frames/s of 8 rows over one row", frames_8 * sum(ours("speech", part) for part in parts), "x"),
        ("frames/s of 8 rows over one row of the reference", frames_8 * sum(theirs("speech", part) for part in parts), "x"),
        (
            "time to first sound over the reference's total time",
            ours("answer", "first_sound_s") / theirs("answer", "total_s"),
            "x",
        ),
    ]
    return [figure for figure in figures if not math.isnan(figure[1])]


def digits(value: float | None) -> str:
    """Three significant digits, no exponent; whole numbers, which are counts, as they are."""
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    places = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 0.1 else 4
    return f"{value:,.{places}f}"


def as_json(head: Mapping[str, Any], outcome: Outcome) -> dict[str, Any]:
    """Everything that was measured, as plain data."""
    vectors, storage = _kernels_and_storage(outcome)

    def plain(result):
        sides = {side: (value := getattr(result, side)) and value._asdict() for side in ("ours", "reference")}
        row = {**asdict(result), "unit": METRICS[result.metric].unit, **sides}
        return {**row, "ratio": result.ratio, "vectors": vectors, "storage": storage}

    return {
        **head,
        "sides": outcome.about,
        "results": [plain(result) for result in outcome.results],
        "derived": [{"what": what, "value": value, "unit": unit} for what, value, unit in derived(outcome.results)],
        "counts": outcome.counts,
        "compiled_in_timed_repetitions": outcome.recompiled,
        "failures": outcome.failures,
    }


def as_markdown(head: Mapping[str, Any], outcome: Outcome) -> str:
    """A report that can be read as it is."""
    facts = {**head["machine"], "when": head["when"]}
    facts |= {name: head[name] for name in ("server", "parameters", "cards", "threads") if name in head}
    facts |= {f"{side}, {key}": value for side, about in outcome.about.items() for key, value in about.items()}
    counted = [
        f"- {name.replace('_', ' ')}: {value:g}"
        for counts in outcome.counts.values()
        for name, value in counts.items()
        if name != COUNTED
    ]
    sections = {
        f"Serving {head.get('asked')}": served_table(outcome, head.get("axis", "rows")),
        "Speed by part": [] if "server" in head else speed_table(head, outcome),
        "All figures": [] if "server" in head else full_table(outcome),
        "Compared": [f"- {what}: {digits(value)} {unit}" for what, value, unit in derived(outcome.results)],
        "Counted": [*counted, f"- graphs built in timed repetitions: {outcome.recompiled}"] if outcome.counts else [],
        "Failed": [f"- {line}" for line in outcome.failures],
    }
    lines = [f"# Benchmark of {head['model']}", "", *(f"- {key}: {value}" for key, value in facts.items())]
    lines += ["", f"**{head['busy']}**"] if head["busy"] else []
    for title, section in sections.items():
        lines += ["", f"## {title}", "", *section] if section else []
    return "\n".join(lines) + "\n"


def _table(columns, rows):
    lines = ["| " + " | ".join(row) + " |" for row in (columns, *rows)]
    return [lines[0], "|---" * len(columns) + "|", *lines[1:]]


def _kernels_and_storage(outcome):
    """Of every figure of ours: the width of the kernels' vectors, and how the weights lie in memory."""
    return [outcome.ours.get("vectors") or "-", outcome.ours.get("storage", "-")]


def served_table(outcome: Outcome, axis: str = "rows") -> list[str]:
    """A line per number of rows, without columns that nobody has a number for; nothing where nobody was served."""
    served = outcome.served
    columns = {name: at for name, at in SERVED.items() if any(at[0] in numbers for numbers in served.values())}
    rows = [
        [
            str(size),
            *(digits(numbers[metric] * factor if metric in numbers else None) for metric, factor in columns.values()),
        ]
        for size, numbers in served.items()
    ]
    return _table([axis, *map(str.strip, columns)], rows) if served else []


def speed_table(head: Mapping[str, Any], outcome: Outcome) -> list[str]:
    """The columns of mindone's table, vectors and storage; rates are medians, in tokens or codec frames per second."""
    about, how = outcome.ours, _kernels_and_storage(outcome)
    version = about.get("software", "").removeprefix("MindSpore ")
    names = "model|mindspore version|precision|cards|part|attention type|tokens/s|vectors|storage"
    before = [head["model"], version, about.get("precision", ""), str(head["cards"])]
    rows = [
        [*before, f"{result.label}{' (frames/s)' if result.metric == 'frames_per_s' else ''}"]
        + [about.get("attention", ""), digits(result.ours.median), *how]
        for result in outcome.results
        if result.metric in SPEED and result.part != "engine"
    ]
    return _table(names.split("|"), rows)


def full_table(outcome: Outcome) -> list[str]:
    """Median, lowest to highest, beside them the reference's and the ratio, vectors and storage."""
    other, how, rows = outcome.other, _kernels_and_storage(outcome), []
    for result in outcome.results:
        if result.scenario.startswith("serve/"):  # they have a table of their own
            continue
        factor, unit = result.shown_as
        cells = [result.part, result.label, *_median_and_range(result.ours, factor)]
        if other:
            times = digits(result.ratio)
            times = f"{times} of its memory" if result.metric == MEMORY and result.ratio else times
            cells += [*_median_and_range(result.reference, factor), unit, times]
        else:
            cells.append(unit)
        rows.append([*cells, *how])
    spread = "lowest to highest"
    sides = [OURS, spread, other, spread, "unit", "times as fast"] if other else ["median", spread, "unit"]
    return _table(["part", "what", *sides, "vectors", "storage"], rows)


def _median_and_range(side, factor):
    return (
        ["-", "-"]
        if side is None
        else [digits(side.median * factor), f"{digits(side.low * factor)} - {digits(side.high * factor)}"]
    )


def publish(folder: Path, head: Mapping[str, Any], outcome: Outcome, name: str) -> int:
    """Prints the report and writes it to `folder`. Returns the exit code: 1 if anything failed."""
    print(as_markdown(head, outcome))
    for path in write_reports(folder, head, outcome, name):
        print(f"wrote {path}")
    return 1 if outcome.failures else 0


def write_reports(folder: Path, head: Mapping[str, Any], outcome: Outcome, name: str = "benchmark") -> list[Path]:
    """name.json, name.md and name.png in `folder`, curves where callers were served; returns their paths."""
    from .pictures import draw_bars, draw_curves

    draw = draw_curves if outcome.served else draw_bars
    write_text(folder / f"{name}.json", json.dumps(as_json(head, outcome), indent=2) + "\n")
    write_text(folder / f"{name}.md", as_markdown(head, outcome))
    write_file(folder / f"{name}.png", lambda file: draw(head, outcome, file))
    return [folder / f"{name}.{suffix}" for suffix in ("json", "md", "png")]
