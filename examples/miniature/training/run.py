"""The whole training in one command; what is interrupted goes on where it was when the command is given again.

    python -m examples.miniature.training.run --folder build/miniature

Two lanes, one core each: the thinker; the vocoder and the talker. Then the checkpoint is written; `launch/evaluate.py`
examines it.
"""

import argparse
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from .settings import REPOSITORY

PACKAGE = __package__
CLIPS = {
    "heard": ({"digits": 9000, "sum": 2600, "outside": 1600}, 1),
    "unheard": ({"digits": 600, "sum": 150, "outside": 150}, 77),
}
# Module, its arguments, the file that tells that it is done, the file that it waits for; lane by lane.
LANES = (
    (
        ("thinker", ("--phase", "0"), "thinker.0.pt", ""),
        ("sight", (), "thinker.sight.pt", ""),
        ("thinker", ("--phase", "1"), "thinker.1.pt", ""),
        ("thinker", ("--phase", "2"), "thinker.2.pt", ""),
        ("thinker", ("--phase", "3"), "thinker.3.pt", ""),
    ),
    (
        ("vocoder", (), "vocoder.pt", ""),
        ("talker", ("--stage", "early"), "talker.early.pt", "thinker.sight.pt"),
        ("talker", ("--stage", "full"), "talker.pt", "thinker.1.pt"),
        ("talker", ("--stage", "digits"), "talker.digits.pt", "thinker.3.pt"),
    ),
)
TWO_CORES = ("thinker", "sight")


def run_lane(folder: Path, lane, failures: list) -> None:
    for module, arguments, result, needed in lane:
        while not (folder / needed).exists() and not failures:
            time.sleep(1)
        if (folder / result).exists() or failures:
            continue
        command = [sys.executable, "-m", f"{PACKAGE}.{module}", "--folder", str(folder), *arguments]
        environment = {**os.environ, "OMP_NUM_THREADS": "2" if module in TWO_CORES else "1", "GOMP_SPINCOUNT": "0"}
        begin, log = time.time(), folder / f"{module}.{result}.log"
        print(f"{module} {' '.join(arguments)}: see {log}", flush=True)
        with log.open("a") as output:
            code = subprocess.call(command, cwd=REPOSITORY, env=environment, stdout=output, stderr=output)
        print(f"{module} {' '.join(arguments)}: exit code {code} after {(time.time() - begin) / 60:.1f} min", flush=True)
        if code:
            failures.append(module)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="where clips, states and logs are kept")
    parser.add_argument("--target", type=Path, help="checkpoint to write (default: FOLDER/checkpoint)")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    from .voices import make_clips

    for name, (counts, seed) in CLIPS.items():
        make_clips(folder / "clips" / f"{name}.npz", counts, heard=name == "heard", seed=seed)
    failures: list = []
    lanes = [threading.Thread(target=run_lane, args=(folder, lane, failures)) for lane in LANES]
    for lane in lanes:
        lane.start()
    for lane in lanes:
        lane.join()
    if failures:
        return 1
    target = arguments.target or folder / "checkpoint"
    code = subprocess.call(
        [sys.executable, "-m", f"{PACKAGE}.export", "--folder", str(folder), "--target", str(target)], cwd=REPOSITORY
    )
    if code:
        return code
    print(f"now, where ms_omni runs: python launch/evaluate.py --model {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
