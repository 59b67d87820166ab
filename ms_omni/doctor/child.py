"""One check in this process: `python -m ms_omni.doctor.child MODULE:FUNCTION [OPTIONS as JSON]`."""

import importlib
import json
import os
import sys
from dataclasses import asdict

from .finding import Options, error, one_line


def main(where, options="{}"):
    """Runs the check and prints its findings as JSON on the standard output that this process was given."""
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    module, _, function = where.partition(":")
    try:
        check = getattr(importlib.import_module(f"ms_omni.doctor.{module}"), function)
        findings = list(check(Options(**json.loads(options))))
    except MemoryError:
        findings = [error("there was too little memory for this check", "free memory, or raise the limit (ulimit -v)")]
    except Exception as reason:
        findings = [
            error(
                f"the check failed: {type(reason).__name__}: {one_line(reason)}",
                f"look at what it prints by itself: python -m ms_omni.doctor.child {where}",
            )
        ]
    json.dump([asdict(finding) for finding in findings], answer)
    answer.flush()
    os._exit(0)  # a library that crashes while it is unloaded does not change what was found


if __name__ == "__main__":
    main(*sys.argv[1:])
