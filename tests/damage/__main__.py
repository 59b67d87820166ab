"""Many cases by hand, or one again: its case and its traceback."""

import argparse
import json
import sys
import tempfile

from tests.damage.cases import World, run
from tests.damage.runner import run_cases


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.damage")
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0, help="of the first case; the next ones follow")
    parser.add_argument("--only", type=int, help="run the case of this seed in this process")
    arguments = parser.parse_args()
    if arguments.only is not None:
        with tempfile.TemporaryDirectory() as folder:
            print(run(arguments.only, World(folder)))
        return
    seeds = range(arguments.seed, arguments.seed + arguments.cases)
    faults, counts = run_cases(seeds, lambda found: found["fault"] and print(json.dumps(found), flush=True))
    for (kind, verdict), count in sorted(counts.items()):
        print(f"{kind:15s} {verdict:10s} {count}")
    print(f"{len(faults)} faults; one again: python -m tests.damage --only SEED")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
