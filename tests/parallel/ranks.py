"""Ranks without processes: what they would send each other goes through memory."""

import threading

import numpy as np

from ms_omni.locking import exclusive


class Ranks:
    """Collectives of `size` ranks that are threads. No MindSpore inside: its operators want one thread."""

    def __init__(self, size):
        self.size = size
        self.barrier = threading.Barrier(size, timeout=20)
        self.box = [None] * size

    def run(self, work):
        """`[work(comm) of each rank]`; an error of a rank is raised here, the lowest rank's first."""
        results = [None] * self.size

        def attempt(rank):
            try:
                results[rank] = work(Comm(self, rank))
            except BaseException as error:  # KeyboardInterrupt is part of what is tested
                results[rank] = error

        threads = [threading.Thread(target=attempt, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


class Comm:
    """One rank's end, with the calls of `Collectives` that move arrays of the host. gathers: how many there were."""

    def __init__(self, ranks, rank):
        self.ranks, self.rank, self.size = ranks, rank, ranks.size
        self.gathers = 0

    def gather_array(self, array):
        self.gathers += 1
        self.ranks.box[self.rank] = np.array(array)
        exclusive.released(self.ranks.barrier.wait)  # real ranks are processes and have a lock each
        everything = np.stack(self.ranks.box)
        exclusive.released(self.ranks.barrier.wait)
        return everything

    def broadcast_array(self, array, root=0):
        return self.gather_array(array)[root]
