"""What each process of the job does: sums over all of them, checked and timed. Started by msrun (see `communication.py`)."""

import json

import numpy as np

from ms_omni.doctor import speed
from ms_omni.parallel import hccl, start
from ms_omni.parallel.collectives import Collectives
from ms_omni.runtime import card, setup

SMALL = 1024  # elements of a token's row
LARGE = {"CPU": 1 << 20, "Ascend": 1 << 26}


def main():
    """Prints "sum is right", and rank 0 also what it measured as JSON; or raises."""
    runtime = setup()
    mesh = start()
    from mindspore import Tensor

    comm = Collectives(mesh)
    total = comm.all_reduce(Tensor(np.full(4, mesh.rank + 1, np.float32))).asnumpy()
    expected = np.full(4, mesh.size * (mesh.size + 1) / 2, np.float32)
    if mesh.size < 2 or not np.array_equal(total, expected):
        raise SystemExit(f"the sum over {mesh.size} processes is {total.tolist()}, expected {expected.tolist()}")
    print("sum is right", flush=True)
    small, large = (Tensor(np.zeros(size, np.float32)) for size in (SMALL, LARGE[runtime.device]))
    wait = speed.waiter(runtime.device)
    # A fixed number of times: all processes must call the same.
    sums, gathers, calls = (
        speed.repeated(lambda x=x, run=run: run(x), wait, times)
        for x, run, times in ((large, comm.all_reduce, 5), (large, comm.all_gather, 5), (small, comm.all_reduce, 50))
    )
    found = {
        "all_reduce_gb_per_s": large.nbytes / sums / 1e9,
        "all_gather_gb_per_s": mesh.size * large.nbytes / gathers / 1e9,
        "collective_us": 1e6 * calls,
    }
    if mesh.speaks:
        known, name = card()
        settings = list(hccl.in_force(known))
        print("measured " + json.dumps({"card": known, "name": name, "found": found, "hccl": settings}), flush=True)


if __name__ == "__main__":
    main()
