"""What one number means, and how repetitions and two sides are put together."""

from dataclasses import dataclass
from statistics import median

SPREAD = ("first_token", "first_sound", "token")
"""Of which `serve` gives the median, the 95th percentile and the maximum."""
UNITS = {
    "load_s": ("s", "less"),
    "import_s": ("s", "less"),
    "peak_gb": ("GB", "less"),
    "encode_s": ("s", "less"),
    "tokens_per_s": ("tokens/s", "more"),
    "memory_gb_per_s": ("GB/s", "more"),
    "weights_gb_per_s": ("GB/s", "more"),
    "frames_per_s": ("frames/s", "more"),
    "token_s": ("s", "less"),
    "talker_s": ("s", "less"),
    "predictor_s": ("s", "less"),
    "real_time_factor": ("s/s", "less"),
    "first_token_s": ("s", "less"),
    "first_sound_s": ("s", "less"),
    "total_s": ("s", "less"),
    **{f"{what}_{which}_s": ("s", "less") for what in SPREAD for which in ("p50", "p95", "max")},
    "requests_per_s": ("requests/s", "more"),
    "sound_per_s": ("sound/s", "more"),
    "under_runs": ("times", "less"),
    "silence_s": ("s", "less"),
    "failed": ("times", "less"),
    "scheduling_percent": ("%", "less"),
    "prefills_s": ("s", "less"),
    "first_piece_s": ("s", "less"),
    "first_sound_share": ("x", "less"),
    "load": ("s/s", "less"),
    "prompt_tokens": ("tokens", "less"),
    "second_token_s": ("s", "less"),
    "second_alone_s": ("s", "less"),
    "second_share": ("x", "less"),
    "same_ids": ("of 1", "more"),
}
MEMORY = "peak_gb"


@dataclass(frozen=True)
class Summary:
    """Repetitions of one number: median, lowest, highest, and each of them in order."""

    median: float
    low: float
    high: float
    runs: tuple

    @classmethod
    def of(cls, runs):
        """runs: at least one number."""
        return cls(median(runs), min(runs), max(runs), tuple(runs))

    @property
    def spread(self):
        """(highest - lowest) / median; 0 for a median of 0."""
        return (self.high - self.low) / self.median if self.median else 0.0


@dataclass(frozen=True)
class Result:
    """One metric of one scenario; reference: None without one, or where it has no such number."""

    scenario: str
    part: str
    metric: str
    ours: Summary
    reference: Summary | None = None

    @property
    def unit(self):
        """Unit of the numbers."""
        return UNITS[self.metric][0]

    @property
    def ratio(self):
        """How many times better ours is: rates ours / reference, seconds reference / ours. For memory it is
        ours / reference, since one asks what share is left. None without a reference.
        """
        if self.reference is None or not self.reference.median or not self.ours.median:
            return None
        ours, other = self.ours.median, self.reference.median
        return ours / other if UNITS[self.metric][1] == "more" or self.metric == MEMORY else other / ours


def combine(scenario, part, ours, reference=()):
    """`Result` per metric from the repetitions of both sides, each a dict {metric: number}."""
    results = []
    for metric in (name for name in UNITS if ours and name in ours[0]):
        other = [run[metric] for run in reference if metric in run]
        results.append(
            Result(scenario, part, metric, Summary.of([run[metric] for run in ours]), Summary.of(other) if other else None)
        )
    return results


def derived(results):
    """Figures that compare two results: [(what, value, unit), ...]; what cannot be computed is left out."""
    at = {(item.scenario, item.metric): item for item in results}
    found = []

    def pair(what, first, second, change=lambda a, b: a / b, unit="x"):
        if first in at and second in at:
            found.append((what, change(at[first].ours.median, at[second].ours.median), unit))

    pair(
        "decode cost of a token: growth from 100 to 1,000 cached tokens",
        ("cached/1000", "token_s"),
        ("cached/100", "token_s"),
        lambda a, b: 100 * (a / b - 1),
        "%",
    )
    pair("decode: tokens/s of batch 16 over batch 1", ("decode/16", "tokens_per_s"), ("decode/1", "tokens_per_s"))

    memory = at.get(("memory", "memory_gb_per_s"))
    for item in results if memory is not None else ():
        if item.metric == "weights_gb_per_s":
            share = 100 * item.ours.median / memory.ours.high
            rows = item.scenario.partition("/")[2]
            found.append((f"decode, batch {rows}: weights read, share of the machine's memory bandwidth", share, "%"))

    def beside(what, first, second):
        if first in at and second in at and at[second].reference is not None:
            found.append((what, at[first].ours.median / at[second].reference.median, "x"))

    tokens, frames = ("writing/16", "tokens_per_s"), at.get(("speaking/8", "frames_per_s"))
    pair("tokens/s of 16 rows over one row", tokens, ("writing/1", "tokens_per_s"))
    beside("tokens/s of 16 rows over one row of the reference", tokens, ("decode/1", "tokens_per_s"))
    parts = [at.get(("speech", name)) for name in ("talker_s", "predictor_s")]
    if frames is not None and None not in parts:  # of one row without its prompt, which the others have read before
        found.append(("frames/s of 8 rows over one row", frames.ours.median * sum(part.ours.median for part in parts), "x"))
        if all(part.reference is not None for part in parts):
            alone_s = sum(part.reference.median for part in parts)
            found.append(("frames/s of 8 rows over one row of the reference", frames.ours.median * alone_s, "x"))
    total = at.get(("answer", "total_s"))
    first = at.get(("answer", "first_sound_s"))
    if first is not None and total is not None and total.reference is not None:
        found.append(
            ("time to first sound over the reference's total time", first.ours.median / total.reference.median, "x")
        )
    return found
