"""Rank 0 wakes the others, and nobody else does."""

import json
import socket
import threading

import pytest

from ms_omni.errors import InputError
from ms_omni.parallel.group import WakeUp


class Comm:
    """Ranks that are threads, of which the others learn where rank 0 listens."""

    def __init__(self, rank, size, place):
        self.rank, self.size, self.place = rank, size, place

    def broadcast_bytes(self, data):
        if self.rank:
            self.place["known"].wait()
        else:
            self.place["data"] = data
            stranger = socket.create_connection(tuple(json.loads(data)[:2]))  # comes first, and does not know the secret
            stranger.sendall(b"x" * 64)
            self.place["stranger"] = stranger
            self.place["known"].set()
        return self.place["data"]


@pytest.fixture
def wakeups():
    place, found = {"known": threading.Event()}, {}
    threads = [
        threading.Thread(target=lambda rank=rank: found.update({rank: WakeUp(Comm(rank, 3, place))})) for rank in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    yield found
    place["stranger"].close()


def test_all_others_are_woken_once_per_call(wakeups):
    assert len(wakeups[0]._others) == 2
    wakeups[0].send()
    wakeups[0].send()
    for rank in (1, 2, 1, 2):
        wakeups[rank].wait()


def test_who_waits_for_a_rank_0_that_has_left_is_told(wakeups):
    for line in wakeups.pop(0)._others:
        line.close()
    with pytest.raises(InputError, match="rank 0 has left"):
        wakeups[1].wait()
