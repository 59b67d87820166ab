"""The child's end of the conversation: one JSON object per line in, one out, until the input ends.

    -> {"load": {...}}                                  <- {"done": {"load_s": ..., "versions": {...}}}
    -> {"run": "decode", "settings": {"batch": 4}}      <- {"done": {"tokens_per_s": 12.3}}  or  {"error": "..."}

It needs neither MindSpore nor PyTorch, so both sides use it.
"""

import json
import os
import resource
import sys
import traceback

MAXRSS_BYTES = 1024  # ru_maxrss counts KiB on Linux


def peak_gb():
    """Largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MAXRSS_BYTES / 1e9


def serve(load, run):
    """Answers requests: `load(**settings)` and `run(kind, settings)` each return a dict of numbers and strings."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints goes to the log and not between the answers
    for line in sys.stdin:
        request = json.loads(line)
        try:
            done = load(**request["load"]) if "load" in request else run(request["run"], request["settings"])
            answer = {"done": done}
        except Exception as error:  # the parent reports it and goes on with the next scenario
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
