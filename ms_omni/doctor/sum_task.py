"""What each of the two processes does: a sum over both, checked. Started by msrun (see `communication.py`)."""

import numpy as np

from ms_omni.parallel import start
from ms_omni.parallel.collectives import Collectives
from ms_omni.runtime import setup


def main():
    """Prints "sum is right", or raises."""
    setup()
    mesh = start()
    from mindspore import Tensor

    rank = np.full(4, mesh.rank + 1, np.float32)
    total = Collectives(mesh).all_reduce(Tensor(rank)).asnumpy()
    if mesh.size != 2 or not np.array_equal(total, np.full(4, 3, np.float32)):
        raise SystemExit(f"the sum over {mesh.size} processes is {total.tolist()}, expected 3")
    print("sum is right", flush=True)


if __name__ == "__main__":
    main()
