"""The process's lock: fair, reentrant, let go for the caller's code and by an interruption, and refused after a fork."""

import itertools
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from ms_omni.locking import Exclusive

LIMIT_S = 60  # of what hangs for ever if it is wrong; a busy machine takes 20 to import MindSpore
FORKED = """
import os, sys
from ms_omni.errors import InputError
from ms_omni.locking import exclusive
if sys.argv[1] == "used":
    with exclusive:
        pass
child = os.fork()
if child == 0:
    try:
        with exclusive:
            os._exit(0)
    except InputError as error:
        os._exit(3 if "spawn" in str(error) else 4)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.fixture
def lock():
    return Exclusive()


def in_thread(work):
    """Runs `work` in a thread; returns it with what says that it has come to its end."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def is_free(lock):
    """Whether another thread gets the lock."""
    got = []

    def take():
        with lock:
            got.append(True)

    in_thread(take).join(LIMIT_S)
    return bool(got)


def test_who_has_just_left_lets_the_others_go_first(lock):
    turns, start = [], threading.Barrier(3, timeout=LIMIT_S)

    def work(name):
        start.wait()
        for _ in range(20):
            with lock:
                turns.append(name)
                time.sleep(0.002)  # a step: the others have come to the door meanwhile

    threads = [in_thread(lambda name=name: work(name)) for name in "abc"]
    for thread in threads:
        thread.join(LIMIT_S)
    together = turns[:-20]  # while all three want it
    assert sum(one == two for one, two in itertools.pairwise(together)) <= 4


def test_code_of_the_caller_may_wait_for_a_thread_that_wants_the_lock(lock):
    def wait(expected):
        with lock:  # it may come back itself
            pass
        return is_free(lock) is expected

    with lock, lock:
        assert lock.released(wait, True)
        waiting = in_thread(lambda: lock.__enter__() or lock.__exit__())
        waiting.join(0.05)
        assert waiting.is_alive()
    waiting.join(LIMIT_S)
    assert is_free(lock)


def test_an_error_and_a_decorated_function_leave_it_free(lock):
    @lock
    def fail():
        raise ValueError("x")

    with pytest.raises(ValueError, match="x"):
        fail()
    with pytest.raises(ValueError, match="x"), lock:
        lock.released(fail)
    assert is_free(lock)


def test_no_interruption_leaves_it_held(lock):
    stop, caught = threading.Event(), 0

    def contend():
        while not stop.is_set():
            with lock:
                time.sleep(0.0003)

    other = in_thread(contend)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for number in range(40):
            timer = threading.Timer(0.0011 * (number % 7), os.kill, (os.getpid(), signal.SIGINT))
            try:
                timer.start()
                while timer.is_alive() or not caught > number:
                    with lock:
                        lock.released(int)
            except KeyboardInterrupt:
                caught += 1
            timer.join()
    finally:
        signal.signal(signal.SIGINT, before)
        stop.set()
    other.join(LIMIT_S)
    assert caught == 40 and not other.is_alive() and is_free(lock)


@pytest.mark.parametrize("parent,code", [("used", 3), ("idle", 0)])
def test_a_fork_of_a_process_that_has_computed_is_refused(parent, code):
    found = subprocess.run([sys.executable, "-c", FORKED, parent], capture_output=True, text=True, timeout=LIMIT_S)
    assert found.stdout.strip() == str(code), found.stderr
