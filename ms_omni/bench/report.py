"""The results as JSON and as Markdown."""

import json

from ..files import write_file
from .metrics import MEMORY, SPREAD, derived

FACTORS = {"s": (1e3, "ms")}  # shown in another unit than measured
NAMES = {  # of a metric; empty where the scenario's own label says it
    "load_s": "load",
    "import_s": "import of the software",
    "peak_gb": "peak memory",
    "encode_s": "",
    "token_s": "per token",
    "tokens_per_s": "",
    "memory_gb_per_s": "",
    "weights_gb_per_s": "weights read",
    "frames_per_s": "",
    "talker_s": "talker, per frame",
    "predictor_s": "predictor, per frame",
    "real_time_factor": "real-time factor",
    "first_token_s": "first token",
    "first_sound_s": "first sound",
    "total_s": "total",
    **{
        f"{what}_{which}_s": f"{what.replace('_', ' ')}, {name}"
        for what in SPREAD
        for which, name in (("p50", "median"), ("p95", "95th percentile"), ("max", "longest"))
    },
    "requests_per_s": "requests per second",
    "sound_per_s": "seconds of speech per second",
    "under_runs": "under-runs",
    "silence_s": "silence in under-runs",
    "failed": "failed",
    "scheduling_percent": "scheduling, share of a tick",
    "prefills_s": "prompts one after another",
    "first_piece_s": "first piece of all together",
    "first_sound_share": "longest first sound over the sum of both",
    "load": "sum of real-time factors",
    "prompt_tokens": "tokens of the prompt",
    "second_token_s": "first token of the second question",
    "second_alone_s": "the same without the first question",
    "second_share": "second question over first",
    "same_ids": "same ids both ways (1: yes)",
}
LABELS = {
    "load": "",
    "memory": "memory, read by all threads",
    "image": "image",
    "audio": "audio",
    "video": "video",
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
SPEED = ("tokens_per_s", "frames_per_s")


def label(result):
    """What a result is called in tables and pictures."""
    group, _, size = result.scenario.partition("/")
    words = [LABELS.get(group, result.scenario).format(size), NAMES[result.metric]]
    return ": ".join(word for word in words if word)


def shown(result):
    """(ours, reference or None, unit) as they are printed: short times in milliseconds."""
    factor, unit = 1, result.unit
    if result.unit == "s" and result.ours.median < 1:
        factor, unit = FACTORS["s"]
    reference = None if result.reference is None else result.reference.median * factor
    return result.ours.median * factor, reference, unit


def digits(value):
    """Three significant digits, no exponent."""
    if value is None:
        return "-"
    if isinstance(value, int):  # counted
        return f"{value:,}"
    places = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 0.1 else 4
    return f"{value:,.{places}f}"


def as_json(head, outcome):
    """Everything that was measured, as plain data."""
    return {
        **head,
        "sides": outcome.about,
        "results": [_plain(result, *how(outcome)) for result in outcome.results],
        "derived": [{"what": what, "value": value, "unit": unit} for what, value, unit in derived(outcome.results)],
        "counts": outcome.counts,
        "compiled_in_timed_repetitions": outcome.recompiled,
        "failures": outcome.failures,
    }


def _plain(result, vectors, storage):
    def summary(side):
        return None if side is None else {"median": side.median, "low": side.low, "high": side.high, "runs": list(side.runs)}

    return {
        "scenario": result.scenario,
        "part": result.part,
        "metric": result.metric,
        "unit": result.unit,
        "ours": summary(result.ours),
        "reference": summary(result.reference),
        "ratio": result.ratio,
        "vectors": vectors,
        "storage": storage,
    }


def as_markdown(head, outcome):
    """A report that can be read as it is."""
    from .serving_report import serving_lines

    about = outcome.about.get("ms_omni", {})
    lines = [f"# Benchmark of {head['model']}", ""]
    facts = {
        **head["machine"],
        "when": head["when"],
        **{name: str(head[name]) for name in ("server", "parameters", "cards", "threads") if name in head},
        **{f"ms_omni, {key}": value for key, value in about.items()},
    }
    other = next((name for name in outcome.about if name != "ms_omni"), None)
    if other:
        facts |= {f"{other}, {key}": value for key, value in outcome.about[other].items()}
    lines += [f"- {key}: {value}" for key, value in facts.items()]
    if head["busy"]:
        lines += ["", f"**{head['busy']}**"]
    if served := serving_lines(outcome.results, head.get("axis", "rows")):
        lines += ["", f"## Serving {head['asked']}", "", *served]
    if "server" not in head:
        lines += ["", "## Speed by part", "", *speed_table(head, outcome)]
        lines += ["", "## All figures", "", *full_table(outcome, other)]
    found = derived(outcome.results)
    if found:
        lines += ["", "## Compared", "", *(f"- {what}: {digits(value)} {unit}" for what, value, unit in found)]
    if outcome.counts:
        lines += ["", "## Counted", "", *count_lines(outcome)]
    if outcome.failures:
        lines += ["", "## Failed", "", *(f"- {line}" for line in outcome.failures)]
    return "\n".join(lines) + "\n"


def how(outcome):
    """Of every figure of ours: the width of the kernels' vectors, and how the weights lie in memory."""
    about = outcome.about.get("ms_omni", {})
    return [about.get("vectors") or "-", about.get("storage", "-")]


def speed_table(head, outcome):
    """The columns of mindone's table, and `how`; rates are medians, in tokens or codec frames per second."""
    about = outcome.about.get("ms_omni", {})
    version = about.get("software", "").removeprefix("MindSpore ")
    rows = [
        "| model | mindspore version | precision | cards | part | attention type | tokens/s | vectors | storage |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in outcome.results:
        if result.metric in SPEED and result.part != "engine":
            part = f"{label(result)}{' (frames/s)' if result.metric == 'frames_per_s' else ''}"
            rows.append(
                f"| {head['model']} | {version} | {about.get('precision', '')} | {head['cards']} | {part} | "
                f"{about.get('attention', '')} | {digits(result.ours.median)} | {' | '.join(how(outcome))} |"
            )
    return rows


def full_table(outcome, other):
    """Median, lowest to highest, beside them the reference's and the ratio, and `how`."""
    rows = ["| part | what | median | lowest to highest | unit | vectors | storage |", "|---|---|---|---|---|---|---|"]
    if other:
        rows = [
            f"| part | what | ms_omni | lowest to highest | {other} | lowest to highest | unit | times as fast | vectors | storage |",
            "|---|---|---|---|---|---|---|---|---|---|",
        ]
    for result in outcome.results:
        if result.scenario.startswith("serve/"):  # they have a table of their own
            continue
        ours, reference, unit = shown(result)
        factor = 1 if unit == result.unit else FACTORS[result.unit][0]
        cells = [result.part, label(result), digits(ours), _range(result.ours, factor)]
        if other:
            cells += [digits(reference), "-" if result.reference is None else _range(result.reference, factor)]
        cells.append(unit)
        if other:
            times = digits(result.ratio)
            cells.append(f"{times} of its memory" if result.metric == MEMORY and result.ratio else times)
        rows.append("| " + " | ".join([*cells, *how(outcome)]) + " |")
    return rows


def _range(side, factor):
    return f"{digits(side.low * factor)} - {digits(side.high * factor)}"


def count_lines(outcome):
    """One line per figure that was counted."""
    lines = []
    for counts in outcome.counts.values():
        lines += [f"- {name.replace('_', ' ')}: {value:g}" for name, value in counts.items() if name != "compiled"]
    return [*lines, f"- graphs built in timed repetitions: {outcome.recompiled}"]


def write_reports(folder, head, outcome, name="benchmark"):
    """name.json, name.md and name.png in `folder`, curves where callers were served; returns their paths."""
    from .picture import draw
    from .serving_report import by_rows, draw_curves

    text, picture = json.dumps(as_json(head, outcome), indent=2) + "\n", draw_curves if by_rows(outcome.results) else draw
    page = as_markdown(head, outcome)
    write_file(folder / f"{name}.json", lambda file: file.write_text(text, encoding="utf-8"))
    write_file(folder / f"{name}.md", lambda file: file.write_text(page, encoding="utf-8"))
    write_file(folder / f"{name}.png", lambda file: picture(head, outcome, file))
    return [folder / f"{name}.{suffix}" for suffix in ("json", "md", "png")]
