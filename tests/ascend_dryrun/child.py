"""One dry run in a process of its own: `python -m tests.ascend_dryrun.child FOLDER WHAT [PLAN [STORAGE]]`, in `stub.environment`.

Leaves FOLDER/result.json, what `run.py` prints, and MindSpore's log beside it.
"""

import json
import os
import sys
import traceback
from pathlib import Path

from .kernel_log import KernelLog

ROOT = Path(__file__).parents[2]


def main(folder: Path, what: str, plan: str = "", storage: str = "") -> None:
    log = KernelLog(folder / "log")
    result = folder / "result.json"
    found = {"raised": {}}
    try:
        import mindspore

        mindspore.set_device("Ascend", 0)
        found["mindspore"] = mindspore.__version__
        if what.startswith("forms"):
            forms(log, what, result, found)
        elif what == "whole":
            answers(log, found)
        else:
            part(log, what, plan, storage, found)
    except Exception as error:
        found["raised"][what] = said(error)
    result.write_text(json.dumps(found))
    sys.stdout.flush()
    os._exit(0)  # the stand-ins cannot be taken down in order


def part(log: KernelLog, what: str, plan: str, storage: str, found: dict) -> None:
    """A part of the model; with a plan on one rank of several, and the memory of the whole model there."""
    from . import parts

    group, bits = None, parts.BITS.get(storage)
    if plan:
        from .ranks import join, memory

        group = join(plan)
        found["memory"] = memory(group, bits)
    if what in parts.SPREAD:
        counted = parts.SPREAD[what](log, group, bits)
    else:
        counted = parts.PARTS[what](log, bits)
    found.update(described(counted.launches))
    found["launches_per_layer"] = {name: launches.total for name, launches in counted.per_layer.items()}
    found["layers"] = {name: described(launches) for name, launches in counted.per_layer.items()}


def answers(log: KernelLog, found: dict) -> None:
    """The miniature, loaded anew for each question, `{"answers": {kind: ...}}`."""
    from .run import WHOLE
    from .whole import whole

    found["answers"] = {}
    for kind in WHOLE:
        try:
            found["answers"][kind] = described(whole(kind, log))
        except Exception as error:
            found["raised"][f"whole, {kind}"] = said(error)


def described(launches) -> dict:
    return {"kernels": launches.kinds, "names": launches.names, "launches": launches.total}


def forms(log: KernelLog, what: str, result: Path, found: dict) -> None:
    """The same for every form, `{"forms": {label: {"eager": ..., "graph": ...}}}`, or one of both ("forms:eager"). Before
    each the file holds what there is: a form that ends the process is the last that raised, and one that is there at the
    start is not run again.
    """
    from .forms import every_form, run_form

    found.update(json.loads(result.read_text()) if result.exists() else {"forms": {}})
    only = what.partition(":")[2]
    for label, operator, form in every_form():
        if label in found["forms"]:
            continue
        found["forms"][label] = {}
        for way in (only,) if only else ("eager", "graph"):
            found["raised"][f"{label}, {way}"] = "the process ended"
            result.write_text(json.dumps(found))
            try:
                found["forms"][label][way] = described(run_form(log, operator, form, way == "graph"))
                del found["raised"][f"{label}, {way}"]
            except Exception as error:
                found["raised"][f"{label}, {way}"] = said(error)


def said(error: Exception) -> str:
    """Type, the first line that says something, and the lines of the project that it passed through last."""
    frames = traceback.extract_tb(error.__traceback__)
    mine = [
        f"{Path(frame.filename).relative_to(ROOT)}:{frame.lineno}"
        for frame in frames
        if frame.filename.startswith(str(ROOT))
    ]
    lines = [line for line in str(error).splitlines() if line.strip(" -")]
    return f"{type(error).__name__}: {(lines or [''])[0][:300]} ({', '.join(mine[-3:])})"


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
