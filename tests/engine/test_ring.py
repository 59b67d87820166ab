"""Messages through shared memory: all arrive, in order and whole, whatever the sizes, and nobody waits for room."""

import contextlib
import os
import time
from pathlib import Path

import numpy as np
import pytest

from ms_omni.engine.ring import Channel

SHARED = Path("/dev/shm")


def left_behind(before, seconds=5):
    """Names of shared memory that are new and that no other living process has mapped: it may be another test's."""
    deadline = time.monotonic() + seconds
    while (found := _held_by_none(before)) and time.monotonic() < deadline:  # or is about to map or to remove
        time.sleep(0.1)
    return found


def _held_by_none(before):
    found = {*os.listdir(SHARED)} - {*before}
    for maps in Path("/proc").glob("[0-9]*/maps") if found else ():
        with contextlib.suppress(OSError):
            held = maps.read_text(errors="replace") if maps.parent.name != str(os.getpid()) else ""
            found = {name for name in found if f"{SHARED / name}" not in held}
    return found


def ends(size):
    ours, descriptors = Channel.pair(size)
    return ours, Channel.of(*descriptors)


@pytest.mark.parametrize("seed", range(8))
def test_random_messages_both_ways(seed):
    """Small rings, large messages; who sends, reads or does nothing is drawn."""
    rng = np.random.default_rng(seed)
    sides = ends(int(rng.integers(1, 300)))
    sent, got = ([], []), ([], [])
    step = 0
    while step < 400 or any(len(sent[side]) > len(got[side]) for side in (0, 1)):
        step, side = step + 1, int(rng.integers(2))
        assert step < 1_000_000
        if step < 400 and rng.random() < 0.3:
            shape = tuple(rng.integers(0, 12, rng.integers(0, 4)))
            kind = ["u1", "<f4", "<i8", "?"][rng.integers(4)]
            message = {"number": len(sent[side]), "text": "ü" * int(rng.integers(9))}, {"x": rng.random(shape).astype(kind)}
            sides[side].send(message[0], **message[1])
            sent[side].append(message)
        else:
            got[1 - side].extend(sides[side].pump())
    for side in (0, 1):
        for (header, arrays), (expected, values) in zip(got[side], sent[side], strict=True):
            assert header == expected and arrays.keys() == values.keys()
            assert arrays["x"].dtype == values["x"].dtype and np.array_equal(arrays["x"], values["x"])
            assert arrays["x"].shape == values["x"].shape and arrays["x"].flags.writeable
    assert not any(channel.queued for channel in sides)


def test_who_does_not_listen_stops_nobody():
    """More news than a socket holds, and more bytes than the ring does."""
    ours, theirs = ends(1 << 16)
    for number in range(3000):
        ours.send({"number": number}, x=np.full(8, number))
        assert ours.pump() == []
    assert ours.queued
    found = []
    while len(found) < 3000:
        found += theirs.pump()
        ours.pump()
    assert [header["number"] for header, _ in found] == list(range(3000))


def test_what_was_sent_before_the_end_arrives():
    ours, theirs = ends(64)
    theirs.send({"last": "word"})
    theirs.pump()
    theirs.close()
    assert ours.pump() == [({"last": "word"}, {})] and ours.closed
    ours.wait(None)  # does not wait
    ours.send({"number": 1}, x=np.zeros(1000))
    assert ours.pump() == []


def test_nothing_is_left_behind():
    before, shared = len(os.listdir("/proc/self/fd")), os.listdir(SHARED)
    for _ in range(10):
        ours, theirs = ends(4096)
        ours.send({"a": 1})
        ours.pump(), theirs.pump()
        ours.close(), theirs.close()
        del ours, theirs
    assert len(os.listdir("/proc/self/fd")) == before and not left_behind(shared)
