"""Runs a part of the model on MindSpore's own Ascend backend, on a machine without an NPU, and counts its kernels.

Nothing is computed and CANN checks nothing. What is shown is that wrappers and types pass, which kernel each operator gets,
and how many are launched: the published geometry in bfloat16, or the miniature for `whole`. Exit code 1: something
raised. Where there is no such backend (other than x86-64 Linux) one line says so.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
if __name__ == "__main__":
    sys.path[0] = str(ROOT)

from tests.ascend_dryrun import stub  # noqa: E402

PARTS = ("thinker", "prefill", "talker", "frame", "sampler", "vocoder", "encoders")
SPREAD = PARTS[:2]
STORED = ("thinker", "prefill", "talker", "frame")
WHOLE = ("text", "image", "video", "audio", "speech")
"""Questions that the miniature is asked, with one medium or answered in speech."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    whats = ("forms", *PARTS, "whole")
    parser.add_argument("--what", required=True, choices=whats, metavar="PART", help=f"one of {', '.join(whats)}")
    parser.add_argument("--plan", choices=("ep", "zero3"), help=f"on one of several cards, with {' or '.join(SPREAD)}")
    parser.add_argument("--cards", type=int, help="number of cards for --plan")
    parser.add_argument("--rank", type=int, default=0, help="which of the cards (default: 0)")
    parser.add_argument("--storage", choices=("int8", "int4"), help=f"weights as codes, with {', '.join(STORED)}")
    parser.add_argument("--boost", action="store_true", help="with MS_OMNI_BOOST=1")
    parser.add_argument("--json", action="store_true", help="print one object instead of a report")
    arguments = parser.parse_args()
    plan, cards, rank = arguments.plan, arguments.cards, arguments.rank
    if (plan is None) != (cards is None) or (plan and arguments.what not in SPREAD):
        parser.error(f"--plan and --cards go together, with --what {' or '.join(SPREAD)}")
    if arguments.storage and (arguments.what not in STORED or plan == "zero3"):
        parser.error(f"--storage goes with --what {', '.join(STORED)}, and not with --plan zero3")
    if not 0 <= rank < (cards or 1):
        parser.error(f"--rank is {rank}, expected one of {cards or 1} cards")
    reason = stub.missing()
    if reason:
        print(json.dumps({"left_out": reason}) if arguments.json else f"The dry run is left out: {reason}.")
        return 0
    with tempfile.TemporaryDirectory(prefix="ascend-dryrun-") as folder:
        libraries = Path(folder, "libraries")
        stub.build(libraries)
        more = {"boost": arguments.boost, "storage": arguments.storage}
        result = dry_run(arguments.what, libraries, Path(folder, "work"), plan, cards or 1, rank, **more)
    print(json.dumps(result) if arguments.json else report(arguments.what, result))
    return 1 if result["raised"] else 0


def dry_run(
    what: str,
    libraries: Path,
    work: Path,
    plan: str | None = None,
    cards: int = 1,
    rank: int = 0,
    boost: bool = False,
    storage: str | None = None,
) -> dict:
    """What `--json` prints; libraries: what `stub.build` made; work: where MindSpore's log is left."""
    work.mkdir()
    result = work / "result.json"
    after, crashed = "", set()
    while True:
        before, code = after, _child(what, libraries, work, plan, cards, rank, boost, storage)
        after = result.read_text() if result.exists() else ""
        found = json.loads(after) if after else {"raised": {}}
        if code == 0:
            return found
        said = [line for line in (work / "log").read_text(errors="replace").splitlines() if not line.startswith("[")]
        goes_on = what.startswith("forms") and after != before
        at = list(found["raised"])[-1] if goes_on else what
        if code < 0 and at not in crashed:  # MindSpore's compiler does at times; who is at fault does so again
            crashed.add(at)
            found["raised"].pop(at, None)
            result.write_text(json.dumps(found)) if goes_on else result.unlink(missing_ok=True)
            after = ""
            continue
        found["raised"][at] = f"the process ended with {code}: {' | '.join(said[-4:])}"
        if not goes_on:
            return found
        result.write_text(json.dumps(found))  # the next process goes on behind this form


def _child(what, libraries, work, plan, cards, rank, boost, storage) -> int:
    variables = {**os.environ, **stub.environment(libraries), "MS_OMNI_OPS": "ascend", "MS_OMNI_BOOST": str(int(boost))}
    variables.update(PYTHONPATH=f"{ROOT}:{variables['PYTHONPATH']}", RANK_SIZE=str(cards), RANK_ID=str(rank))
    command = [sys.executable, "-m", "tests.ascend_dryrun.child", str(work), what, plan or "", storage or ""]
    return subprocess.run(command, env=variables, cwd=work, stdout=subprocess.DEVNULL).returncode


def report(what: str, result: dict) -> str:
    """The result in lines for a reader."""
    lines = [f"{what}, MindSpore {result.get('mindspore', '')}: run dry, nothing was computed and CANN checked nothing."]
    lines += [f"raised in {place}: {words}" for place, words in result["raised"].items()] or ["nothing raised"]
    counted = {what: result} if "kernels" in result else {}
    counted |= {f"a layer of {name}": found for name, found in result.get("layers", {}).items()}
    counted |= {f"an answer ({kind})": found for kind, found in result.get("answers", {}).items()}
    for label, ways in result.get("forms", {}).items():
        counted |= {f"{label}, {way}": found for way, found in ways.items()}
    lines += [f"{label}: {found['launches']} launches; {_kernels(found)}" for label, found in counted.items()]
    for kind, found in result.get("memory", {}).items():
        lines.append(f"{kind}: {found}")
    return "\n".join(lines)


def _kernels(found: dict) -> str:
    """ "aclnn: Cast 2, Dense; aclop: ..."."""
    kinds = []
    for kind, names in found["names"].items():
        kinds.append(f"{kind}: " + ", ".join(name if number == 1 else f"{name} {number}" for name, number in names.items()))
    return "; ".join(kinds)


if __name__ == "__main__":
    sys.exit(main())
