"""Which form of each operator is used on this device: compared once for an installation, cached and reported.

A separate process compares the forms (`ascend_check.py`), since a fault of a device ends the process, or leaves it unable to
compute. Each comparison has a time limit. The results are stored in the user's cache under all that they depend on. The forms
are chosen from these results alone, the same in every process:

    for each kind of arguments the first form that is right; a warning for every one that is not the first of all;
    `MS_OMNI_STRICT=1` makes such a warning an error; an operator without a right form for some kind always is an error

No operator communicates, so processes that chose differently would still call the same collectives.
"""

import contextlib
import hashlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mindspore as ms

from ...ascend import versions
from ...errors import DeviceError
from . import private_cache
from .ascend_cases import KINDS, Kind
from .ascend_check import GRAPH, TOLERANCE, Result, Row, forms, is_right, rows_of
from .ascend_step_cases import OF_CODES, STEPS
from .dispatch import boost_wanted
from .reference import Reference

EMULATION = "tests.ascend_emulation"  # see `dispatch.py`
ROOT = str(Path(__file__).resolve().parents[3])
COMMAND = [sys.executable, "-c", "from ms_omni.modeling.ops.ascend_check import main; main()"]
START_LIMIT_S, ROW_LIMIT_S = 300, 180  # start of MindSpore and the device; a comparison, in which its kernels are built
JOB = ("MS_ROLE", "MS_NODE_ID", "MS_WORKER_NUM", "MS_SCHED_HOST", "MS_SCHED_PORT", "RANK_ID", "RANK_SIZE", "RANK_TABLE_FILE")
"""Variables that make a process a rank of a job, which the one that compares is not."""


def settled(base: type[Reference], dtypes: frozenset[ms.Type]) -> type[Reference]:
    """A subclass of `base` in which each operator is, for every type and kind of arguments, a form that is right on this device.

    Raises `DeviceError` where there is none, or with `MS_OMNI_STRICT=1` where it is not the first one.
    """
    if os.environ.get("MS_SIMULATION_LEVEL"):  # MindSpore's dry run: nothing is computed that could be compared
        return base
    chosen: dict[str, list] = {}  # operator -> [(dtype, kind, number of the form), ...]
    outcomes, replaced, wrong = dict.fromkeys(KINDS, ""), [], set()
    for dtype in sorted(dtypes, key=str):
        results, where = load_results(dtype)
        full = any(row.mode == GRAPH for row in results)
        for operator, kinds in {**KINDS, **base.steps(dtype)}.items():
            for kind in kinds:
                number, reason = choose(base, operator, kind, dtype, results, full)
                if operator in KINDS:
                    chosen.setdefault(operator, []).append((dtype, kind, number))
                elif number:
                    wrong.add((dtype, operator))
                name = "decoder_step" if operator in ("boosted_step", *OF_CODES.values()) else operator
                outcomes[name] = "; ".join(filter(None, (outcomes.get(name), reason)))
                if number:
                    replaced.append(f"operator {reason} [known from {where}; remove it to compare again]")
    if replaced and os.environ.get("MS_OMNI_STRICT") == "1":
        raise DeviceError("MS_OMNI_STRICT=1 allows no replacement on this device: " + "; ".join(replaced))
    for text in replaced:
        warnings.warn(text, stacklevel=4)
    methods = {name: staticmethod(_method(name, rules, forms(base, name))) for name, rules in chosen.items()}
    mixtures = [forms(base, "experts")[number] for _, _, number in chosen["experts"]]
    rows = (Reference if Reference.experts in mixtures else base).GRAPH_EXPERT_ROWS
    own = {"GRAPH_EXPERT_ROWS": rows, "OUTCOMES": {**base.OUTCOMES, **outcomes}, "SETTLED": dtypes}
    own["WRONG_STEPS"] = frozenset(wrong)
    return type(base.__name__, (base,), {**methods, **own})


def choose(
    base: type[Reference], operator: str, kind: Kind, dtype: ms.Type, results: dict[Row, Result], full: bool
) -> tuple[int, str]:
    """The number of the first form that is right for a kind, and the results of it and those before it, in words."""
    candidates, complaints = forms(base, operator), []
    label = f"{operator}, {kind.name}" if len(KINDS.get(operator, ())) > 1 else operator
    for number, form in enumerate(candidates):
        rows, needed = rows_of(operator, kind, number, full)
        wrong = [_complaint(form, row, results.get(row), dtype) for row in rows if not is_right(results.get(row), dtype)]
        if not rows:
            return number, f"{label}: {name_of(form)} is used instead of {name_of(candidates[0])} ({'; '.join(complaints)})"
        if all(is_right(results.get(row), dtype) for row in needed):
            gap = max(result for row in needed if isinstance(result := results[row], float))
            instead = f"{name_of(form)} is used instead of {name_of(candidates[0])} ({'; '.join(complaints)}); it " * bool(
                number
            )
            spare = f" (not as part of a graph, which the model does not need: {wrong[0]})" if wrong else ""
            return (
                number,
                f"{label}: {instead}agrees with its formula, largest difference {gap:.1e} in {_short(dtype)}{spare}",
            )
        complaints += wrong
    raise DeviceError(
        f"operator {label}: no form of it works on this device in {_short(dtype)} ({'; '.join(complaints)}). See 'ms-omni doctor' for "
        "the versions of driver, CANN and MindSpore; they may not go together"
    )


def name_of(form: Callable) -> str:
    """The name of a form in messages: `reference` for one of `Reference`."""
    return "reference" if form.__qualname__.startswith("Reference.") else form.__qualname__


def _complaint(form, row, result, dtype):
    if isinstance(result, float):
        result = f"off by {result:.2g} of its scale, allowed {TOLERANCE[dtype]:g}"
    return f"{name_of(form)} {row.mode}: {result or 'never compared'}"


def _short(dtype):
    return str(dtype).lower()


# ---- the method that an operator becomes ---------------------------------------------------------------------------


def _method(operator, rules, candidates):
    """One form where it is right for all arguments, else a choice by their type and kind; both compile in graphs."""
    numbers = {number for *_, number in rules}
    if len(numbers) == 1:
        return candidates[numbers.pop()]
    method: Any = None
    for dtype, group in _by_dtype(rules):
        part: Any = None
        for kind, number in reversed(group):
            part = candidates[number] if part is None or kind.fits is None else _either(kind.fits, candidates[number], part)
        method = part if method is None else _typed(DTYPES.get(operator, _dtype), dtype, part, method)
    return method


def _by_dtype(rules):
    groups: dict = {}
    for dtype, kind, number in rules:
        groups.setdefault(dtype, []).append((kind, number))
    return groups.items()


def _either(fits, form, rest):
    def call(*args, **kwargs):
        return form(*args, **kwargs) if fits(*args, **kwargs) else rest(*args, **kwargs)

    return call


def _typed(dtype_of, dtype, form, rest):
    def call(*args, **kwargs):
        return form(*args, **kwargs) if dtype_of(*args) == dtype else rest(*args, **kwargs)

    return call


def _dtype(x, *_):
    return x.dtype


def _dtype_of_table(ids, weight, *_):
    return weight.dtype


def _dtype_of_parts(parts, *_):
    return parts[0].dtype


DTYPES = {"embedding": _dtype_of_table, "embedding_part": _dtype_of_table, "concat": _dtype_of_parts}
"""The type that an operator computes in, where it is not that of its first argument."""


# ---- stored results of this installation ---------------------------------------------------------------------------


def load_results(dtype: ms.Type) -> tuple[dict[Row, Result], str]:
    """Results of all comparisons in a type on this device, and the file with them; it is written if need be."""
    on_card = ms.get_context("device_target") == "Ascend"
    key = {"dtype": _short(dtype), "card": ms.hal.get_device_name(0) if on_card else "none", "mindspore": ms.__version__}
    key |= {**versions(), "forms": _digest(), "boost": boost_wanted()}
    if on_card and "unknown" in key.values():
        key["job"] = str(os.getppid())  # an unknown version may change, so the results hold for this job alone
    name = f"operators-{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]}.json"

    def make(path: str) -> None:
        if on_card:
            text = (
                f"ms_omni compares its operators on {key['card']} with their formulas in {key['dtype']}: once, some minutes"
            )
            print(text, file=sys.stderr, flush=True)
        results = run_comparison(dtype, full=on_card)
        Path(path).write_text(json.dumps({"of": key, "rows": list(results.items())}), encoding="utf-8")

    with private_cache.locked(name):  # one process of a job compares, and the others read its results
        path = private_cache.cached_file(name, make)
        text = Path(path).read_bytes()[: -private_cache.DIGEST_BYTES]
    return {Row(*row): result for row, result in json.loads(text)["rows"]}, path


def _digest():
    """A digest of all that decides what is compared: these files, and those of the kernels in numpy where they emulate a card."""
    folders = [Path(__file__).parent, *map(Path, getattr(sys.modules.get(EMULATION), "__path__", ()))]
    files = [file for folder in folders for file in sorted(folder.glob("*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


# ---- the process that compares -------------------------------------------------------------------------------------


def run_comparison(dtype: ms.Type, full: bool) -> dict[Row, Result]:
    """Results of all comparisons (full: see `examine`). A crash or a timeout is a result as well, and the others are run in a new process.

    Raises `DeviceError` if the process fails before its first comparison.
    """
    results: dict[Row, Result] = {}
    while True:
        before = len(results)
        with tempfile.TemporaryFile() as log, _process(log) as process:
            request = {"dtype": _short(dtype), "full": full, "known": list(results.items())}
            end, row = _read_results(process, json.dumps(request), results)
            log.seek(0)
            tail = " | ".join(log.read().decode(errors="replace").strip().splitlines()[-3:])
        if end is None:
            return results
        if row is not None:
            results[row] = end
        elif len(results) == before:
            raise DeviceError(f"the operators cannot be compared on this device: the process that does it {end}: {tail}")


def _read_results(process, request, results):
    """Reads results until the process is done: (None, None); or (how it ended, the row that it was comparing or None)."""
    row, limit_s, incomplete = None, START_LIMIT_S, b""
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(request.encode())
        process.stdin.close()
    while select.select([process.stdout], [], [], limit_s)[0]:
        piece = os.read(process.stdout.fileno(), 1 << 16)
        if not piece:
            code = process.wait()
            return f"ended with {signal.Signals(-code).name if code < 0 else f'exit code {code}'}", row
        *lines, incomplete = (incomplete + piece).split(b"\n")
        for line in lines:
            if line == b'"done"':
                return None, None
            of, result = _parse(line, row, results)
            if of is None:
                return f"said what is no result: {line[:100]!r}", row
            row, limit_s = of if result is None else None, ROW_LIMIT_S
            if result is not None:
                results[of] = result
    return f"did not get on within {limit_s} s", row


def _parse(line, row, results):
    """(row, its result or None before it) of a line, or (None, None) for one that cannot follow `row`."""
    with contextlib.suppress(ValueError, TypeError, LookupError, AttributeError):
        of, result = Row(*json.loads(line)[0]), json.loads(line)[1]
        fits = of not in results and of.operator in {**KINDS, **STEPS} and isinstance(result, float | str | None)
        if fits and row == (None if result is None else of):
            return of, result
    return None, None


@contextlib.contextmanager
def _process(log) -> Iterator[Any]:
    """The process that compares, in a session of its own, which is killed at the end."""
    on_card = ms.get_context("device_target") == "Ascend"
    environment = {name: value for name, value in os.environ.items() if name not in JOB}
    environment["MS_OMNI_OPS"] = "ascend" if on_card else "ascend-emulated"
    environment["PYTHONPATH"] = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), ROOT])
    if on_card:
        environment["DEVICE_ID"] = str(ms.get_context("device_id"))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
    process: Any = subprocess.Popen(COMMAND, env=environment, start_new_session=True, **pipes)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
        process.wait()
