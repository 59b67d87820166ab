"""The process that cases run in: reads seeds, writes one line of JSON for each."""

import json
import os
import resource
import sys
import tempfile
import traceback
import warnings

from tests.damage.cases import KINDS, World, run


def main():
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nothing else may speak there
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="damage") as folder:
        world = World(folder)
        assert world.model and world.processor  # what follows takes a case's time alone
        print(json.dumps({"ready": True}), file=answers)
        for line in sys.stdin:
            seed = int(line)
            try:
                kind, said = run(seed, world)
                fault = None
            except BaseException as error:
                kind, said, fault = KINDS[seed % len(KINDS)].__name__, None, f"{type(error).__name__}: {error}"[:400]
                traceback.print_exc()
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
            print(json.dumps({"seed": seed, "kind": kind, "said": said, "fault": fault, "peak": peak}), file=answers)


if __name__ == "__main__":
    main()
