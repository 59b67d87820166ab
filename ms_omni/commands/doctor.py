"""`ms-omni doctor`: can this machine run the model, and if not, what is to be done."""

import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

from ..doctor.runner import MARKS
from . import Command
from .options import clear_status, status

DONE = ("This machine can run the model.", "This machine cannot run the model: ")


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--model", metavar="DIR", help="a checkpoint: does it fit into memory?")
    parser.add_argument("--only", type=lambda text: text.split(","), metavar="A,B", help="only these checks")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    parser.add_argument(
        "--report", metavar="FILE", help="also write a text file for a bug report, without names, paths and addresses"
    )
    parser.add_argument(
        "--ascend-root",
        default="/usr/local/Ascend",
        metavar="DIR",
        help="where the NPU driver is installed (default: /usr/local/Ascend)",
    )


def run(arguments: Namespace) -> int:
    from ..doctor.report import text_of
    from ..doctor.runner import CHECKS, ERROR, Options, run_all

    known = [check.name for check in CHECKS]
    unknown = [name for name in arguments.only or () if name not in known]
    if unknown:
        raise ValueError(f"there is no check {unknown[0]!r}; expected some of {', '.join(known)}")
    options = Options(arguments.model, arguments.ascend_root)
    with open(arguments.report, "w", encoding="utf-8") if arguments.report else nullcontext() as report:
        found = []
        for check, findings in run_all(options, arguments.only, lambda check: status(f"{check.title} ...")):
            clear_status()
            found.append((check, findings))
            if not arguments.json:
                show(check, findings)
        if report is not None:
            report.write(text_of(found, options))
    bad = [check.title for check, findings in found if any(finding.level == ERROR for finding in findings)]
    if arguments.json:
        checks = {check.name: [asdict(finding) for finding in findings] for check, findings in found}
        print(json.dumps({"runs": not bad, "checks": checks}, indent=2))
    else:
        print(DONE[1] + f"see {', '.join(bad)} above." if bad else DONE[0])
    return 1 if bad else 0


def show(check: Any, findings: Sequence[Any]) -> None:
    """A line per finding, and below it what to do."""
    for index, finding in enumerate(findings):
        print(f"{check.title if index == 0 else '':22s} {MARKS[finding.level]} {finding.what}")
        if finding.do:
            print(f"{'':22s}    -> {finding.do}")
    sys.stdout.flush()


DOCTOR = Command(
    "doctor",
    "Check this machine: versions, devices, operators, msrun, and a tiny model through every stage. Exit code 0: it runs.",
    add_arguments,
    run,
)
