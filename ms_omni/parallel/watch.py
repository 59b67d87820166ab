"""A job of several processes ends as a whole: nobody waits for ever for a rank that died, hangs or never came.

MindSpore 2.7.1 alone notices a worker's death after 30 s and a hang never, names no rank, and blocks inside a collective
meanwhile; msrun leaves its workers behind when it is killed. So `start` puts a small process beside each process of the
job, see `supervisor.py`. Here is the worker's side: marks in a page of memory that the two share. Writing one costs a
fraction of a microsecond and no system call. `step()` counts collectives; `busy()` says that work goes on.

MS_OMNI_HANG_S: seconds without any progress that count as a hang (default 20; 0: never). MS_OMNI_WATCH=0: no supervision.
MS_OMNI_WATCH_PORT: where the supervisors meet on the scheduler's host (default: the scheduler's port plus 1009).
MS_OMNI_SECRET: what they prove to each other that they know; only needed where hosts share no home folder.
"""

import atexit
import contextlib
import faulthandler
import json
import mmap
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from .. import __version__
from ..errors import InputError

RANK, BUSY, STEPS, LEFT = range(4)  # rank + 1 once known; depth of `busy`; collectives so far; LEAVING or FAILED
LEAVING, FAILED = 1, 2
PAGE_BYTES = 8 * 4
PORT_OFFSET = 1009
HANG_S = 20.0
PORTS = range(1024, 65536)
Number = TypeVar("Number", int, float)
ROOT = Path(__file__).resolve().parents[2]
# Nothing that lies where the user happens to be may stand in for a module of Python's.
BEGIN = (
    f"import sys; sys.path = [{str(ROOT)!r}, *filter(None, sys.path)]; from ms_omni.parallel.supervisor import main; main()"
)

_marks = memoryview(bytearray(PAGE_BYTES)).cast("Q")  # this process's own until `start`
_counting = threading.Lock()
_supervised: int | None = None  # number of the process that is
_failed = False


def marks_at(descriptor: int) -> memoryview:
    """The counters in the shared memory behind a file descriptor, indexed by the constants above."""
    return memoryview(mmap.mmap(descriptor, PAGE_BYTES)).cast("Q")


def shared_marks() -> tuple[int, memoryview]:
    """`(descriptor, counters)` of a new page of zeros; the descriptor is for `pass_fds`."""
    descriptor = os.memfd_create("ms_omni-marks")
    os.ftruncate(descriptor, PAGE_BYTES)
    return descriptor, marks_at(descriptor)


def watch_port(scheduler_port: int) -> int:
    """The port of the supervisors of a job whose scheduler listens at `scheduler_port`. Raises `InputError`."""
    named = os.environ.get("MS_OMNI_WATCH_PORT")
    port = number("MS_OMNI_WATCH_PORT", int) if named else scheduler_port + PORT_OFFSET
    if port not in PORTS:
        port -= 2 * PORT_OFFSET
    if port not in PORTS or port == scheduler_port:
        raise InputError(
            f"MS_OMNI_WATCH_PORT is {named}, expected a port from {PORTS.start} to {PORTS.stop - 1} other than "
            f"the scheduler's, {scheduler_port}"
        )
    return port


def number(name: str, kind: Callable[[str], Number], default: Number | None = None) -> Number:
    """The environment variable `name` as a number that is not negative. Raises `InputError` for anything else."""
    text = os.environ.get(name)
    try:
        value = kind(text) if text else default
        if value is not None and value >= 0:
            return value
    except ValueError:
        pass
    raise InputError(f"the environment variable {name} is {text!r}, expected a number") from None


def problem_of(address: tuple[str, int]) -> str | None:
    """None when one can listen at `address`, else why not."""
    try:
        socket.create_server(address).close()
    except OSError as error:
        return os.strerror(error.errno) if error.errno else str(error)
    return None


def start() -> None:
    """Begins to watch over this process, a worker or the scheduler of a job. Returns when all workers have come.

    Raises `InputError`, in every process alike, for a busy port, processes that do not come, and processes that differ
    in the version of MindSpore, ms_omni or Python.
    """
    global _marks, _supervised
    if os.environ.get("MS_OMNI_WATCH") == "0" or _supervised is not None:
        return
    port = number("MS_SCHED_PORT", int)
    settings = {
        "process": os.getpid(),
        "role": os.environ["MS_ROLE"],
        "host": os.environ.get("MS_SCHED_HOST", "127.0.0.1"),
        "port": watch_port(port),
        "scheduler_port": port,
        "size": number("MS_WORKER_NUM", int),
        "timeout_s": number("MS_TOPO_TIMEOUT", float, 600.0),
        "hang_s": number("MS_OMNI_HANG_S", float, HANG_S),
        "launcher": number("MS_OMNI_LAUNCHER", int, 0),
    }
    _supervised = os.getpid()
    if settings["role"] == "MS_SCHED":
        problem = problem_of((settings["host"], port))
        if problem:
            problem = f"port {port} of {settings['host']} cannot be used ({problem}); choose another master port"
        return supervise(settings | {"refusal": problem})
    rank = os.environ.get("MS_NODE_ID")  # RANK_ID is 0 everywhere when msrun leaves the numbering to MindSpore
    descriptor, shared = shared_marks()
    shared[:], _marks = _marks, shared  # what has begun before goes on
    supervise(
        settings | {"marks": descriptor, "facts": _facts(settings["size"]), "rank": int(rank) if rank else None}, descriptor
    )
    with contextlib.suppress(AttributeError, OSError, ValueError):  # a standard error without a descriptor
        faulthandler.register(signal.SIGUSR2, file=sys.stderr, all_threads=True)
    atexit.register(_leave)


def _facts(size: int) -> dict[str, Any]:
    import mindspore

    return {
        "MindSpore": mindspore.__version__,
        "ms_omni": __version__,
        "the number of processes": size,
        "Python": ".".join(platform.python_version_tuple()[:2]),
        "the device": mindspore.get_context("device_target"),
    }


def supervise(settings: dict, *descriptors: int) -> None:
    """Starts the supervisor of this process and waits for its answer. Raises `InputError`."""
    process = subprocess.Popen(
        [sys.executable, "-c", BEGIN, json.dumps(settings)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,  # what kills this one's process group leaves the other time to say so
        pass_fds=descriptors,
    )
    assert process.stdout is not None
    with process.stdout as out:
        line = out.readline()
    answer = json.loads(line) if line else {"error": "the process that is to watch over it could not start"}
    if "error" in answer:
        raise InputError(f"the job cannot start: {answer['error']}")
    process.returncode = 0  # it ends after this process, so nobody waits for it


def fail() -> None:
    """This process is about to end with an error; the others are ended, unless they end the same way."""
    global _failed
    _failed = True


def _leave() -> None:
    if os.getpid() == _supervised:  # and not a child that it has forked
        _marks[LEFT] = FAILED if _failed or getattr(sys, "last_value", None) is not None else LEAVING


def rank_is(rank: int) -> None:
    """Tells which rank this process is, where the environment did not say."""
    _marks[RANK] = rank + 1


def step() -> None:
    """Marks one more collective; all ranks do the same ones in the same order."""
    _marks[STEPS] += 1


@contextlib.contextmanager
def busy() -> Iterator[None]:
    """Around work that must go on: a process that stops in it hangs, one that stops outside it waits for its user."""
    with _counting:
        _marks[BUSY] += 1
    try:
        yield
    finally:
        with _counting:
            _marks[BUSY] -= 1
