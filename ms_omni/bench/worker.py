"""This model as one side of a benchmark, in a process of its own: `python -m ms_omni.bench.worker`.

One JSON object per line in, one out, until the input ends:

    -> {"load": {...}}                                  <- {"done": {"load_s": ..., "versions": {...}}}
    -> {"run": "decode", "settings": {"batch": 4}}      <- {"done": {"tokens_per_s": 12.3}}  or  {"error": "..."}

What is imported at the top needs neither MindSpore nor PyTorch: the reference answers in the same way.
"""

import json
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any

MAXRSS_BYTES = 1024  # ru_maxrss counts KiB on Linux
MEASURES: Any = None


def peak_gb() -> float:
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_BYTES / 1e9


def serve(load: Callable[..., dict[str, Any]], run: Callable[[str, dict[str, Any]], dict[str, Any]]) -> None:
    """Answers requests: `load(**settings)` and `run(kind, settings)` each return a dict of numbers and strings."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints goes to the log and not between the answers
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"done": load(**request["load"]) if "load" in request else run(request["run"], request["settings"])}
        except Exception as error:  # the parent reports it and goes on with the next scenario
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")


def part(arrays: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The arrays named `prefix.*`, without the prefix."""
    return {name[len(prefix) + 1 :]: arrays[name] for name in arrays if name.startswith(prefix + ".")}


def load(model: str, inputs: str, compile_steps: bool = True, **quantised: Any) -> dict[str, Any]:
    """Loads the model; says how long it took and what it runs on. Its numbers are those of a fresh process."""
    global MEASURES
    started = time.perf_counter()
    import numpy as np

    from ..model import Qwen3OmniMoeForConditionalGeneration

    imported = time.perf_counter()
    loaded = Qwen3OmniMoeForConditionalGeneration.from_pretrained(
        model, progress=False, compile_steps=compile_steps, **quantised
    )
    done = {"import_s": imported - started, "load_s": time.perf_counter() - imported, "peak_gb": peak_gb()}

    from .measures import Measures, description

    MEASURES = Measures(loaded, dict(np.load(inputs)))
    return {**done, **description(loaded)}


def run(kind: str, settings: dict[str, Any]) -> dict[str, Any]:
    """One repetition of a scenario."""
    return MEASURES.run(kind, settings)


if __name__ == "__main__":
    serve(load, run)
