"""A side for tests of the protocol: answers at once, fails, hangs, prints noise or ends, as it is asked."""

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ms_omni.bench.worker import serve


def load(**settings):
    print("noise of a library on standard output")
    return {
        "load_s": float((sys.argv + ["1"])[1]),
        "software": "fake",
        "threads": os.environ.get("OMP_NUM_THREADS", ""),
        **settings,
    }


def run(kind, settings):
    if kind == "fail":
        raise ValueError("out of luck")
    if kind == "hang":
        time.sleep(60)
    if kind == "end":
        os._exit(7)
    return {"token_s": float((sys.argv + ["1"])[1]), "processors": len(os.sched_getaffinity(0)), **settings}


if __name__ == "__main__":
    serve(load, run)
