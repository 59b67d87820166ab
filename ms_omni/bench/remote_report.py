"""A benchmark of a server: the figures, and what they were measured with, as reports."""

import time
from pathlib import Path

from .machine import describe_machine, other_load
from .remote import Wishes, measure
from .report import as_markdown, write_reports
from .session import show_progress


def benchmark(wishes: Wishes, out: Path) -> int:
    """Measures, prints the report and writes it to `out`. Returns the exit code: 1 if a call failed."""
    busy = other_load()
    model, outcome = measure(wishes, show_progress)
    head = {
        "server": wishes.base,
        "model": model,
        "seed": wishes.seed,
        "asked": asked(wishes),
        "axis": "callers at once" if wishes.rate is None else "callers",
        "repetitions": wishes.repetitions,
        "machine": describe_machine(),
        "when": time.strftime("%Y-%m-%d %H:%M"),
        "busy": busy,
    }
    show_progress("")
    print(as_markdown(head, outcome))
    for path in write_reports(out, head, outcome, "serve"):
        print(f"wrote {path}")
    return 1 if outcome.failures else 0


def asked(wishes: Wishes) -> str:
    """What the callers want, in words."""
    when = "each followed by the next" if wishes.rate is None else f"{wishes.rate:g} per second"
    return f"{wishes.count} callers, {when}, {100 * wishes.spoken:.0f} % of them to be answered in speech"
