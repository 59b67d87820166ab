"""Is interrupted again and again while a graph runs, and in between; prints how often that became a KeyboardInterrupt."""

import os
import random
import signal
import threading
import time

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from ms_omni.locking import interruptible
from ms_omni.runtime import setup

SIDE = 400
TIMES = 12


class Graph(nn.Cell):
    def __init__(self):
        super().__init__()
        self.w = Parameter(Tensor(np.full((SIDE, SIDE), 1 / SIDE, np.float32)))

    @ms.jit
    def construct(self, x):
        for _ in range(20):
            x = ops.MatMul()(x, self.w)
        return x


def main():
    setup()
    graph, x, caught = Graph(), Tensor(np.ones((SIDE, SIDE), np.float32)), 0
    graph(x).asnumpy()  # compiled: whoever interrupts MindSpore 2.7.1 while it compiles may wait for ever for the next graph
    before = signal.getsignal(signal.SIGTERM)
    for seed in range(TIMES):
        timer = threading.Timer(random.Random(seed).uniform(0.0, 0.3), os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        try:
            while True:
                with interruptible():
                    y = graph(x)
                y.asnumpy()
                time.sleep(0.001)
        except KeyboardInterrupt:
            caught += 1
        timer.join()
        assert signal.getsignal(signal.SIGTERM) is before and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    print(caught)


if __name__ == "__main__":
    main()
